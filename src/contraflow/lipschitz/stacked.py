"""All norms of a flow bounded together: equal shapes stacked into one batched iteration.

A small norm costs its operations' overhead, not their arithmetic: forty layers one by one are
two thousand operations, three shapes a hundred and fifty. ``norm_bounds`` is a pure function
of the weights, like every single bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from contraflow.lipschitz.convolutions import conv_bound, reduced
from contraflow.lipschitz.norms import GRAM_STEPS, gram_bound

# Entries of the weights in one stack: beyond, an operation costs its arithmetic, and stacking
# only costs memory.
_LARGEST_STACK = 2**20


class NormProblem(NamedTuple):
    """An operator whose norm is wanted; those of equal shape and size are stacked.

    Args:
        weight: a matrix ``[m, n]`` or a kernel ``[c_out, c_in, k_h, k_w]``.
        size: image height and width of a kernel; None for a matrix.
        steps: of the Gram iteration.
    """

    weight: Tensor
    size: tuple[int, int] | None = None
    steps: int = GRAM_STEPS

    @classmethod
    def matrix(cls, weight: Tensor, steps: int = GRAM_STEPS) -> NormProblem:
        """Return the problem of a matrix, the longer side first."""
        return cls(weight if weight.shape[0] >= weight.shape[1] else weight.mT, None, steps)

    @classmethod
    def convolution(
        cls, kernel: Tensor, size: tuple[int, int], steps: int = GRAM_STEPS
    ) -> NormProblem:
        """Return the problem of a zero-padded convolution, a matrix where one tap is left."""
        kernel, size = reduced(kernel, size)
        if kernel.shape[-2:] == (1, 1):
            return cls.matrix(kernel[..., 0, 0], steps)
        return cls(kernel, size, steps)


class HasNorm(Protocol):
    """A layer whose weight is to be normalised."""

    def norm_problem(self) -> NormProblem:
        """Return the raw weight as an operator."""
        ...


class TakesNorms:
    """A class whose passes accept norms that were bounded elsewhere, as the value ``norms``.

    ``takes_norms`` says so. A subclass that writes one of those passes anew, and need not know
    of norms, is handed none unless it says so again; it bounds its own norms, as before.
    """

    takes_norms: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "takes_norms" not in vars(cls) and any(name in vars(cls) for name in _PASSES):
            cls.takes_norms = False


_PASSES = (
    "norm_bound",
    "prepare",
    "forward",
    "inverse",
    "solve_inverse",
    "invert",
)


def norm_bounds(layers: Sequence[HasNorm]) -> list[Tensor]:
    """Bound the raw norm of every layer, equal shapes in one batched iteration.

    Args:
        layers: any number of layers.

    Returns:
        One scalar a layer, in their order: at least the norm, with the gradient of
        ``u^T W v``.

    Example:
        >>> from contraflow.lipschitz import LipschitzLinear
        >>> layers = [LipschitzLinear(3, 4, 0.9), LipschitzLinear(4, 3, 0.9)]
        >>> together = torch.stack(norm_bounds(layers))
        >>> torch.allclose(together, torch.stack([layer.norm_bound() for layer in layers]))
        True
    """
    problems = [layer.norm_problem() for layer in layers]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (weight, size, steps) in enumerate(problems):
        key = (*weight.shape, size, steps, str(weight.dtype), str(weight.device))
        groups.setdefault(key, []).append(place)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        most = max(1, _LARGEST_STACK // math.prod(problems[places[0]].weight.shape))
        for start in range(0, len(places), most):
            part = places[start : start + most]
            found.update(zip(part, _bounds_of([problems[i] for i in part]), strict=True))
    return [found[place] for place in range(len(problems))]


def _bounds_of(problems: Sequence[NormProblem]) -> Sequence[Tensor]:
    _, size, steps = problems[0]
    if len(problems) == 1:
        return [norm_bound(problems[0])]
    weights = torch.stack([problem.weight for problem in problems])
    return norm_bound(NormProblem(weights, size, steps)).unbind()


def norm_bound(problem: NormProblem) -> Tensor:
    """Bound the norm of one operator, or of a stack ``[*G, ...]`` of equal ones."""
    # A product in bfloat16 is off by more than the bound exceeds the norm.
    with torch.autocast(problem.weight.device.type, enabled=False):
        if problem.size is None:
            return gram_bound(problem.weight, problem.steps)
        return conv_bound(problem.weight, problem.size, problem.steps)
