"""Newton's method with the dense Jacobian, for small d."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.registry import register
from contraflow.solvers.driver import Iterate, RowMap, check_limits


@register
@dataclass(frozen=True)
class Newton:
    """Solve ``x + g(x) = z`` with ``x <- x - (I + J)^{-1} (x + g(x) - z)``.

    I + J is invertible wherever g contracts. Convergence is quadratic; a step that does not
    beat Picard's guarantee is replaced by Picard's.

    Args:
        atol: largest accepted |x - x*| per row, l2 norm; None as in ``Picard``.
        max_steps: iterations; None for Banach's bound.

    Raises:
        ConfigurationError: the map offers no ``linearize``.

    Reference:
        Ortega & Rheinboldt 1970, Iterative Solution of Nonlinear Equations, chapter 7.
    """

    atol: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_limits(self)

    def step(self, f: Callable[[Tensor], Tensor], state: Iterate) -> Tensor:
        """Return the Newton iterate ``[R, *E]``."""
        if not isinstance(f, RowMap):
            raise ConfigurationError(
                "Newton needs a map with linearize(x), such as a residual block's; use Picard()."
            )
        _, jacobian = f.linearize(state.x)
        matrix = jacobian.dense()
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        gap = (state.fx - state.x).reshape(len(matrix), -1, 1)  # [R, D, 1]
        step = torch.linalg.solve_ex(identity + matrix, gap).result
        return state.x + step.reshape(state.x.shape)
