"""Saved flows: one safetensors file of weights and JSON, from which nothing executes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from contraflow import registry
from contraflow._files import written_beside
from contraflow._version import __version__
from contraflow.errors import LoadError, in_brief
from contraflow.evaluation.certificate import Certificate, certify
from contraflow.flow import Flow
from contraflow.transform import Transform

FORMAT = 1  # raised when an older reader could not understand a newer file

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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

    The structure is built without memory first, with no more work than so many tensors need,
    and its shapes and dtypes are compared with the file's: a damaged or hostile header cannot
    allocate more than the file holds.

    A flow that is not certified is loaded with a ``UserWarning`` that names its blocks.

    Args:
        path: a file that ``save`` wrote.
        types: classes of your own that the file names, if they are not registered.

    Raises:
        LoadError: the file is damaged, foreign, of another format, or names unknown types.

    Example:
        >>> import contraflow as cf
        >>> flow = cf.flows.MAF(features=2, transforms=1)
        >>> path = tmp_path / "flow.safetensors"
        >>> flow.save(path)
        >>> type(cf.load(path)).__name__
        'MAF'
    """
    flow, certificate = load_certified(path, types=types)
    if certificate.warning:
        warnings.warn(f"{path}: {certificate.warning}", stacklevel=2)
    return flow


def load_certified(
    path: str | os.PathLike[str], *, types: Iterable[type] = ()
) -> tuple[Flow, Certificate]:
    """Read a flow back as ``load`` does, with the certificate of the weights that were read.

    No warning is given: whoever calls this looks at ``certificate.warning``.

    Args:
        path: a file that ``save`` wrote.
        types: as in ``load``.

    Raises:
        LoadError: as in ``load``.
    """
    header, tensors = _read(path)
    flow = _build(path, header["configuration"], tuple(types), len(tensors))
    _check_tensors(path, flow, tensors)
    _check_digest(path, header, tensors)
    flow.load_state_dict(tensors, assign=True)
    _check_whole(path, flow)
    certificate = _examined(path, flow)
    return flow.eval(), certificate


class _Frugal(TorchFunctionMode):
    """Stop a construction that takes more steps than the tensors of its file can need.

    Our layers take at most 30 calls a tensor; a list of a million widths takes millions.
    """

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.left = 4_000 + 100 * tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise LoadError("refused: the configuration asks for more tensors than the file holds.")
        return func(*args, **(kwargs or {}))


def _build(
    path: str | os.PathLike[str], configuration: Any, types: tuple[type, ...], tensors: int
) -> Flow:
    try:
        with torch.device("meta"), _Frugal(tensors):
            flow = registry.build(configuration, types)
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error
    if not isinstance(flow, Flow):
        raise LoadError(f"{path}: describes a {type(flow).__name__}; expected a Flow.")
    return flow


def _check_tensors(
    path: str | os.PathLike[str], flow: Flow, tensors: dict[str, torch.Tensor]
) -> None:
    """Refuse tensors that are not those the configuration asks for."""
    state = flow.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        names = sorted(expected.keys() | found.keys())
        odd = next(name for name in names if expected.get(name) != found.get(name))
        raise LoadError(
            f"{path}: tensor {odd!r} has shape {found.get(odd)}; the configuration asks "
            f"for {expected.get(odd)}. The file is damaged or from another version."
        )
    default, learned = torch.get_default_dtype(), dict(flow.named_parameters())
    common = [tensors[name].dtype for name, tensor in state.items() if tensor.dtype == default]
    for name, tensor in tensors.items():
        built = state[name].dtype  # of the default dtype, which all such tensors changed together
        allowed = (common[0],) if built == default else _FLOATS
        if not built.is_floating_point:
            allowed = (built,)
        if tensor.dtype not in allowed or (built.is_floating_point and allowed[0] not in _FLOATS):
            raise LoadError(
                f"{path}: tensor {name!r} is {tensor.dtype}; expected {built}, or one floating "
                "dtype for all. The file is damaged or was edited."
            )
        # An end of a buffer's domain may be infinite; a NaN is never meant.
        sound = tensor.isfinite() if name in learned else ~tensor.isnan()
        if not bool(sound.all()):
            raise LoadError(
                f"{path}: tensor {name!r} holds values that are not finite; expected numbers. The "
                "flow diverged in training; go back to an earlier checkpoint."
            )


def _examined(path: str | os.PathLike[str], flow: Flow) -> Certificate:
    """Return the flow's certificate, after a look at what every use of it begins with."""
    try:
        for part in flow.modules():
            if isinstance(part, Transform):
                part.check_state()
        for mode in (True, False):
            flow.train(mode)
            if not flow.likelihood.bias_bound >= 0:
                raise ValueError("a bias bound that is no number")
        if flow.transform.domain.unbounded is None:
            raise ValueError("a domain that is none")
        return certify(flow)
    except Exception as error:
        raise LoadError(
            f"{path}: holds no usable flow ({in_brief(error)}); it is damaged or was edited."
        ) from error


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
    """Return a saved flow's header: configuration, certificate, version, metadata, digest.

    Raises:
        LoadError: the file is damaged, foreign or of another format.
    """
    header, tensors = _read(path)
    _check_digest(path, header, tensors)
    return header


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not Path(path).is_file():
        raise LoadError(f"{path}: no such file; expected one that flow.save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("contraflow")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # unknown dtypes end in a KeyError, for one
        raise LoadError(
            f"{path}: not a readable safetensors file ({in_brief(error)}); expected a whole one "
            "that flow.save wrote."
        ) from error
    if text is None:
        raise LoadError(
            f"{path}: holds weights but no contraflow configuration; expected a file that "
            "flow.save wrote."
        )
    try:
        header = json.loads(text, parse_constant=_refuse_constant)
        configuration, number = header["configuration"], header["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoadError(
            f"{path}: its contraflow header is damaged ({in_brief(error)}); restore it from a copy."
        ) from error
    if type(number) is not int or number != FORMAT:
        newer = type(number) is int and number > FORMAT
        raise LoadError(
            f"{path}: format {reprlib.repr(number)}; this version ({__version__}) reads format "
            f"{FORMAT}. {'Install a newer contraflow.' if newer else 'The file is damaged.'}"
        )
    try:
        registry.check_plain(configuration)
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error
    return header, tensors


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_digest(
    path: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Refuse what is not as it was saved, and a header without its other parts."""
    if header.get("digest") != _digest(header["configuration"], tensors):
        raise LoadError(
            f"{path}: weights or configuration do not match the digest they were saved with; the "
            "file was damaged or edited. Restore it from a copy."
        )
    for name, kind in (("version", str), ("certificate", dict), ("metadata", dict)):
        if not isinstance(header.get(name), kind):
            raise LoadError(
                f"{path}: its {name} is {reprlib.repr(header.get(name))}; expected a "
                f"{'text' if kind is str else 'mapping'}. The file was damaged or edited."
            )


def _digest(configuration: Any, tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the configuration and of every tensor's name, type and bytes."""
    total = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
