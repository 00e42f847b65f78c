"""Fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

from contraflow.registry import register
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver


@register
@dataclass(frozen=True)
class Picard(Solver):
    """Find ``x = f(x)`` by repeated substitution; the error falls by L a step.

    Args:
        atol, max_steps: as in ``Solver``.

    Example:
        >>> from contraflow.solvers import solve
        >>> y = torch.tensor([[3.0]], dtype=torch.float64)
        >>> solution = solve(lambda x: y - 0.5 * x, y, Picard(atol=1e-3), lipschitz=0.5)
        >>> bool(solution.error_bound <= 1e-3), abs(solution.value.item() - 2) < 1e-3
        (True, True)

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, Algorithm 1.
    """

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Propose ``f(x)``."""
        return Proposal(iterate.fx)
