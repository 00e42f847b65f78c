"""The solver that nobody has to choose."""

from __future__ import annotations

from dataclasses import dataclass

from contraflow.registry import register
from contraflow.solvers.anderson import Anderson
from contraflow.solvers.newton import Newton
from contraflow.solvers.picard import Picard
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver

# Measured by benchmarks/solver_choice.py. A dense Jacobian costs about D products a row, and its
# systems are solved one after the other: worth it for few unknowns, or for few rows.
_NEWTON_SIZE = 4
_NEWTON_NUMBERS = 2048  # entries of all rows' Jacobians
_PICARD_BOUND = 0.5  # where 27 steps are enough for the last place of float32


@register
@dataclass(frozen=True)
class Auto(Solver):
    """Choose by d, L and the number of rows, which every process sees alike.

    Picard for contractions so strong that nothing is faster, Newton for small Jacobians,
    Anderson for the rest.

    Args:
        atol, max_steps: as in ``Solver``; handed on.

    Example:
        >>> Auto().choose(2, 0.98, 512), Auto().choose(64, 0.98, 512)
        (Newton(atol=None, max_steps=None), Anderson(atol=None, max_steps=None, memory=5))
    """

    def choose(self, size: int, lipschitz: float, rows: int, *, smooth: bool = True) -> Solver:
        """Return the solver for R = ``rows`` systems of D = ``size`` unknowns."""
        if lipschitz <= _PICARD_BOUND:
            return Picard(self.atol, self.max_steps)
        small = size <= _NEWTON_SIZE or rows * size**2 <= _NEWTON_NUMBERS
        if small and smooth:
            return Newton(self.atol, self.max_steps)
        return Anderson(self.atol, self.max_steps)

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Leave the step to the solver that was chosen."""
        raise AssertionError("choose() comes before step()")
