"""Does a saved flow come back as it was."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from contraflow import registry
from contraflow.flow import Flow
from contraflow.serialization import load
from contraflow.testing._compare import equal, flow_of, same_bits, shown
from contraflow.testing.registry import Case
from contraflow.transform import Sequential, Transform


def check_save_load(case: Case, *, rows: int = 4, seed: int = 0) -> None:
    """Check that what is loaded has equal type and configuration, and bit-equal outputs.

    A transform is rebuilt from its configuration, as JSON, and its ``state_dict``; whatever
    is or makes a ``Flow`` also passes through a file.

    Args:
        case: one whose types are registered.
        rows: points.
        seed: of points and noise.

    Raises:
        AssertionError: type, configuration, tensors or outputs differ.
    """
    case = case.to(torch.float32)
    description = registry.configuration(case.module)
    rebuilt = registry.build(json.loads(json.dumps(description)))
    # assign, as loading does: dtypes are those of the file
    found = rebuilt.load_state_dict(case.module.state_dict(), strict=False, assign=True)
    if found.missing_keys or found.unexpected_keys:
        raise AssertionError(
            f"{case.name}: rebuilt from its configuration it misses {found.missing_keys} and does "
            f"not know {found.unexpected_keys}; expected the same tensors."
        )
    _check_twin(case, rebuilt, rows, seed)
    flow = flow_of(case)
    if flow is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        flow.save(path)
        loaded = load(path)
    if type(loaded) is not type(flow):
        raise AssertionError(
            f"{case.name}: loaded a {type(loaded).__name__}; expected a {type(flow).__name__}."
        )
    _same_tensors(case, loaded, flow)
    twin: Flow | Transform = loaded
    if not isinstance(case.module, Flow):
        inner = loaded.transform
        twin = (
            inner[0]
            if flow.transform is not case.module and isinstance(inner, Sequential)
            else inner
        )
    _check_twin(case, twin, rows, seed)


def _check_twin(case: Case, twin: Flow | Transform, rows: int, seed: int) -> None:
    if type(twin) is not type(case.module):
        raise AssertionError(
            f"{case.name}: got a {type(twin).__name__}; expected a {type(case.module).__name__}."
        )
    got, expected = registry.configuration(twin), registry.configuration(case.module)
    if got != expected:
        raise AssertionError(f"{case.name}: configuration is {got}; expected {expected}.")
    _same_tensors(case, twin, case.module)
    generator = torch.Generator().manual_seed(seed)
    twin.train(case.module.training)
    other = Case(twin, case.event_shape, dtype=case.dtype)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    with torch.no_grad():
        outputs = case.forward(x, context, noise)
        again = other.forward(x, context, noise)
    equal(case, "z after loading", again[0], outputs[0])
    equal(case, "ladj after loading", again[1], outputs[1])


def _same_tensors(case: Case, twin: nn.Module, original: nn.Module) -> None:
    tensors, expected = twin.state_dict(), original.state_dict()
    for name, value in expected.items():
        if name not in tensors or not same_bits(tensors[name], value):
            raise AssertionError(
                f"{case.name}: {name!r} is {shown(tensors.get(name))} after loading; expected "
                f"{shown(value)}, bit for bit."
            )
