"""The solver that nobody has to choose."""

from __future__ import annotations

from dataclasses import dataclass

from contraflow.registry import register
from contraflow.solvers.anderson import Anderson
from contraflow.solvers.newton import Newton
from contraflow.solvers.picard import Picard
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver

# Measured by benchmarks/inverse.py: a dense Jacobian costs about D products, and systems of D
# unknowns one after the other.
_NEWTON_SIZE = 8
_PICARD_BOUND = 0.2


@register
@dataclass(frozen=True)
class Auto(Solver):
    """Choose by d, L and the number of rows, which every process sees alike.

    Newton for a few unknowns, Picard for contractions so strong that nothing is faster,
    Anderson for the rest.

    Args:
        atol, max_steps: as in ``Solver``; handed on.

    Example:
        >>> Auto().choose(2, 0.98, 512), Auto().choose(64, 0.98, 512)
        (Newton(atol=None, max_steps=None), Anderson(atol=None, max_steps=None, memory=5))
    """

    def choose(self, size: int, lipschitz: float, rows: int) -> Solver:
        """Return the solver for R = ``rows`` systems of D = ``size`` unknowns."""
        if lipschitz <= _PICARD_BOUND:
            return Picard(self.atol, self.max_steps)
        if size <= _NEWTON_SIZE:
            return Newton(self.atol, self.max_steps)
        return Anderson(self.atol, self.max_steps)

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Leave the step to the solver that was chosen."""
        raise AssertionError("choose() comes before step()")
