"""Saved flows: one safetensors file of weights and JSON, from which nothing executes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from contraflow import registry
from contraflow._files import written_beside
from contraflow._version import __version__
from contraflow.errors import LoadError
from contraflow.evaluation.certificate import certify
from contraflow.flow import Flow

FORMAT = 1  # raised when an older reader could not understand a newer file


def save(
    flow: Flow, path: str | os.PathLike[str], *, metadata: dict[str, Any] | None = None
) -> None:
    """Write a flow into one file, atomically: beside the target first, then renamed.

    Args:
        flow: any flow whose parts are registered types.
        path: target, usually ``*.safetensors``.
        metadata: further JSON data to keep, returned by ``read_metadata``.

    Raises:
        ConfigurationError: a part is not registered.
        OSError: the file cannot be written, for example because the disk is full; an earlier
            file of that name is still there.
    """
    header = {
        "format": FORMAT,
        "version": __version__,
        "configuration": registry.configuration(flow),
        "certificate": certify(flow).to_json(),
        "metadata": metadata or {},
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in flow.state_dict().items()}
    header["digest"] = _digest(header["configuration"], tensors)
    with written_beside(path) as partial:
        try:
            save_file(tensors, partial, {"contraflow": json.dumps(header, allow_nan=False)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), os.fspath(path)) from error


def load(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> Flow:
    """Read a flow back, in ``eval()`` mode, with the dtype that it was saved in.

    The structure is built without memory first and its shapes are compared with the file's,
    so that a damaged or hostile header cannot allocate more than the file holds.

    A flow that is not certified is loaded with a warning that says so.

    Args:
        path: a file that ``save`` wrote.
        types: classes of your own that the file names, if they are not registered.

    Raises:
        LoadError: the file is damaged, foreign, of a newer format, or names unknown types.

    Example:
        >>> import contraflow as cf
        >>> flow = cf.flows.MAF(features=2, transforms=1)
        >>> path = tmp_path / "flow.safetensors"
        >>> flow.save(path)
        >>> type(cf.load(path)).__name__
        'MAF'
    """
    header, tensors = _read(path)
    types = tuple(types)
    with torch.device("meta"):
        flow = registry.build(header["configuration"], types)
    if not isinstance(flow, Flow):
        raise LoadError(f"{path}: describes a {type(flow).__name__}; expected a Flow.")
    expected = {name: tuple(tensor.shape) for name, tensor in flow.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        names = sorted(expected.keys() | found.keys())
        odd = next(name for name in names if expected.get(name) != found.get(name))
        raise LoadError(
            f"{path}: tensor {odd!r} has shape {found.get(odd)}; the configuration asks "
            f"for {expected.get(odd)}. The file is damaged or from another version."
        )
    if header.get("digest") != _digest(header["configuration"], tensors):
        raise LoadError(
            f"{path}: weights or configuration do not match the digest they were saved with; the "
            "file was damaged or edited. Restore it from a copy."
        )
    flow.load_state_dict(tensors, assign=True)
    _check_whole(path, flow)
    if not certify(flow).certified:
        warnings.warn(
            f"{path}: this flow is NOT certified: print(certify(flow)) shows which block is not "
            "proved, flow.enforce_bounds_() rescales contractive blocks.",
            stacklevel=2,
        )
    return flow.eval()


def _check_whole(path: str | os.PathLike[str], flow: Flow) -> None:
    """Refuse a flow that keeps numbers where no file could hold them."""
    for module in flow.modules():
        for name, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise LoadError(
                    f"{path}: {type(module).__name__} keeps the tensor {name!r} outside of its "
                    "saved state; make it a parameter or register_buffer it."
                )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a saved flow's header: configuration, certificate, version, metadata, digest."""
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not Path(path).is_file():
        raise LoadError(f"{path}: no such file; expected one that flow.save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("contraflow")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(f"{path}: not a readable safetensors file ({error}).") from error
    if text is None:
        raise LoadError(f"{path}: holds weights but no contraflow configuration.")
    try:
        header = json.loads(text)
        known = isinstance(header, dict) and header["format"] <= FORMAT
        header["configuration"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoadError(f"{path}: its contraflow header is damaged.") from error
    if not known:
        raise LoadError(
            f"{path}: format {header.get('format')}; this version ({__version__}) reads up to "
            f"{FORMAT}. Install a newer contraflow."
        )
    return header, tensors


def _digest(configuration: Any, tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the configuration and of every tensor's name, type and bytes."""
    total = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
