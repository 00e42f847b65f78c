"""Fixed-point iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from contraflow.registry import register
from contraflow.solvers.driver import Iterate, check_limits


@register
@dataclass(frozen=True)
class Picard:
    """Find ``x = f(x)`` by repeated substitution; the error falls by L a step.

    Args:
        atol: largest accepted |x - x*| per row, l2 norm, in the units of x; None for 1e-6 in
            float32 and 1e-13 in float64. Below what rounding allows, the rounding floor
            takes its place and ``error_bound`` says so.
        max_steps: evaluations of f; None for Banach's bound, which a contraction cannot
            exceed.

    Example:
        >>> from contraflow.solvers import solve
        >>> y = torch.tensor([[3.0]], dtype=torch.float64)
        >>> solution = solve(lambda x: y - 0.5 * x, y, Picard(atol=1e-3), lipschitz=0.5)
        >>> bool(solution.error_bound <= 1e-3), abs(solution.value.item() - 2) < 1e-3
        (True, True)

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, Algorithm 1.
    """

    atol: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_limits(self)

    def step(self, f: Callable[[Tensor], Tensor], state: Iterate) -> Tensor:
        """Return ``f(x)``."""
        return state.fx
