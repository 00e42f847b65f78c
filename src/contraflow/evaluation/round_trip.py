"""Does the inverse invert: forward and back over a data set."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from contraflow.flow import Flow
from contraflow.transform import Sequential, Transform
from contraflow.transforms import Dequantise


def split_dequantisation(transform: Transform) -> tuple[Dequantise | None, Transform]:
    """Split a chain into its dequantisation, if it begins with one, and the bijection behind."""
    if isinstance(transform, Sequential) and len(transform):
        first = transform.transforms[0]
        if isinstance(first, Dequantise):
            return first, transform[1:]
    return None, transform


@torch.no_grad()
def reconstruct(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the data after dequantisation, and what forward and inverse make of them.

    Args:
        flow: any flow.
        x: ``[N, *E]`` of the flow's dtype, data units.
        context: ``[N, M]``.
        generator: source of the dequantisation noise.

    Raises:
        ConvergenceError: a root missed its tolerance.
    """
    dequantise, transform = split_dequantisation(flow.transform)
    if dequantise is not None:
        x, _ = dequantise(x, context, noise=dequantise.draw(x.shape, x, generator))
    outputs, size = [], 512
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        given = None if context is None else context[start : start + size]
        z = rows
        for part in transform if isinstance(transform, Sequential) else (transform,):
            z = part(z, given)[0]
        outputs.append(transform.solve_inverse(z, given).check("round trip").value)
    return x, torch.cat(outputs)


def round_trip_error(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Return the largest |inverse(forward(x)) - x|, in data units, before any rounding.

    Args:
        flow: any flow; it is not changed.
        x: ``[N, *E]``.
        context: ``[N, M]``.
        dtype: evaluate a copy of the flow in this dtype; None for the flow's own.
        generator: source of the dequantisation noise.

    Raises:
        ConvergenceError: a root missed its tolerance.
    """
    if dtype is not None:
        flow = copy.deepcopy(flow).to(dtype)
    like = next((p for p in flow.parameters()), torch.empty(0))
    x = x.to(like.dtype)
    context = None if context is None else context.to(like.dtype)
    start, back = reconstruct(flow, x, context, generator=generator)
    return (back - start).abs().max().item()
