"""Does ``forward`` write nothing, mix no rows, and keep dtype and device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contraflow.testing._compare import close, equal, prepared, row_of, same_bits, shown, where
from contraflow.testing.registry import Case


def check_purity(case: Case, *, rows: int = 4, seed: int = 0) -> None:
    """Check that both directions write nothing and depend on nothing but their arguments.

    No parameter, buffer or attribute may change; equal generators must give equal noise, and
    equal noise equal outputs; with the noise given, torch's global generator must not move.

    Args:
        case: what to check.
        rows: points.
        seed: of points and noise.

    Raises:
        AssertionError: something was written, or two equal calls differ.
    """
    case, generator = prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    before = {name: value.clone() for name, value in case.module.state_dict().items()}
    attributes = _attributes(case.module)
    state = torch.get_rng_state()
    noise = [case.noise(x, torch.Generator().manual_seed(seed)) for _ in range(2)]
    with torch.no_grad():
        first, second = (case.forward(x, context, drawn) for drawn in noise)
    case.forward(x, context, noise[0])  # once more with a graph: it may take another path
    if not torch.equal(torch.get_rng_state(), state):
        raise AssertionError(
            f"{case.name}: forward drew from torch's global generator; expected it to use the "
            "noise that it was given."
        )
    with torch.no_grad():
        x_back, _ = case.transform.inverse(first[0], context)
        again, _ = case.transform.inverse(first[0], context)
    for name, value in case.module.state_dict().items():
        if not same_bits(value, before[name]):
            raise AssertionError(
                f"{case.name}: a pass changed {name!r} from {shown(before[name])} to "
                f"{shown(value)}; expected forward and inverse to write nothing."
            )
    for name, value in _attributes(case.module).items():
        if name not in attributes or attributes[name] is not value:
            raise AssertionError(
                f"{case.name}: a pass wrote the attribute {name!r}; expected forward and inverse "
                "to write nothing."
            )
    equal(case, "z of two calls with equal noise", second[0], first[0])
    equal(case, "ladj of two calls with equal noise", second[1], first[1])
    equal(case, "x of two equal inverses", again, x_back)


def _attributes(module: nn.Module) -> dict[str, Any]:
    found = {}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            found[f"{prefix}.{name}"] = value
    return found


def check_rows(case: Case, *, rows: int = 4, tolerance: float = 1e-10, seed: int = 0) -> None:
    """Check that a row's result ignores its neighbours: their values, their number, their NaN.

    Args:
        case: what to check.
        rows: points in a batch.
        tolerance: largest change, relative to ``1 + max |expected|``; rounding may depend on
            the size of a batch.
        seed: of points and noise.

    Raises:
        AssertionError: a row changed with its neighbours.
    """
    case, generator = prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    other_x, other_context = case.x(generator, rows, 10.0), case.context(generator, rows)
    with torch.no_grad():
        whole = case.forward(x, context, noise)
        backward = case.transform.inverse(whole[0], context)
        other_z = case.forward(other_x, other_context, noise)[0]
    for i in (0, rows - 1):
        here = slice(i, i + 1)
        given = None if context is None else context[here]
        keep = torch.arange(rows) == i
        mixed = where(keep, context, other_context)
        with torch.no_grad():
            results = {
                "other neighbours": case.forward(where(keep, x, other_x), mixed, noise),
                "no neighbours": case.forward(x[here].clone(), given, row_of(noise, i)),
            }
            if not case.iterative:  # an iteration refuses NaN, and rightly
                broken = where(keep, x, torch.full_like(x, math.nan))
                results["NaN neighbours"] = case.forward(broken, context, noise)
            inverses = {
                "other neighbours": case.transform.inverse(where(keep, whole[0], other_z), mixed),
                "no neighbours": case.transform.inverse(whole[0][here].clone(), given),
            }
        for directions, results_of, expected in (
            ("forward", results, whole),
            ("inverse", inverses, backward),
        ):
            for what, (point, ladj) in results_of.items():
                place = slice(0, 1) if what == "no neighbours" else here
                label = f"{directions} of row {i} with {what}"
                close(case, f"the point, {label},", point[place], expected[0][here], tolerance)
                if directions == "forward" or case.exact_ladj:
                    close(case, f"ladj, {label},", ladj[place], expected[1][here], tolerance)


def check_placement(
    case: Case,
    *,
    devices: Sequence[str] | None = None,
    rows: int = 4,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> None:
    """Check that dtype and device follow the input, and that float32 stays near float64.

    Args:
        case: what to check.
        devices: names; None for the CPU, and CUDA where there is one.
        rows: points.
        tolerance: largest error of float32, relative to ``1 + max |expected|``.
        seed: of points and noise.

    Raises:
        AssertionError: an output is of another dtype, elsewhere, or far from the reference.
    """
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    original = case
    for device in devices:
        reference: tuple[Tensor, ...] = ()
        for dtype in (torch.float64, torch.float32):
            generator = torch.Generator().manual_seed(seed)
            case = original.to(dtype, device)
            # Points that both dtypes hold exactly.
            x = case.x(generator, rows).float().to(device, dtype)
            context = case.context(generator, rows)
            context = None if context is None else context.float().to(device, dtype)
            noise = _as_dtype(case.noise(x.to(torch.float32), generator), dtype)
            with torch.no_grad():
                z, ladj = case.forward(x, context, noise)
                back, ladj_back = case.transform.inverse(z, context)
            outputs = (z, ladj, back, ladj_back)
            for name, value in zip(("z", "ladj", "x", "ladj of inverse"), outputs, strict=True):
                if value.dtype != dtype or value.device != x.device:
                    raise AssertionError(
                        f"{case.name}: {name} is {value.dtype} on {value.device}; expected "
                        f"{dtype} on {x.device}, as the input."
                    )
            reference = reference or outputs
            names = ("z", "ladj", "x") if case.bijective else ("z", "ladj")
            for name, value, exact in zip(names, outputs, reference, strict=False):
                close(case, f"{name} in {dtype}", value.double(), exact.double(), tolerance)


def _as_dtype(noise: Any, dtype: torch.dtype) -> Any:
    if isinstance(noise, Tensor):
        return noise.to(dtype) if noise.is_floating_point() else noise
    if isinstance(noise, tuple):
        parts = [_as_dtype(part, dtype) for part in noise]
        return type(noise)(*parts) if hasattr(noise, "_fields") else tuple(parts)
    return noise
