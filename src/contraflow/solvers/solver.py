"""What every root solver is: a tolerance, a limit, and one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from contraflow.errors import ConfigurationError
from contraflow.solvers.problem import Iterate, Proposal, RowMap


@dataclass(frozen=True)
class Solver:
    """Base of all root solvers; a subclass is a frozen dataclass with a ``step``.

    The driver checks every proposal, so a step cannot do harm: what it proposes counts only
    if its residual is at most L times the last one, and Picard's step is taken otherwise.

    Args:
        atol: largest accepted |x - x*| per row, l2 norm, in the units of x; None for as
            exact as the dtype allows: 1e-13 in float64, a quarter of a unit in the last place
            of |x| where a lower dtype is refined in float64, 1e-6 elsewhere. Below what
            rounding allows, the rounding floor takes its place and ``error_bound`` says so.
        max_steps: steps in each dtype; None for Banach's bound, which a contraction cannot
            exceed.

    Raises:
        ConfigurationError: ``atol`` is not above 0, or ``max_steps`` is below 1.
    """

    atol: float | None = None
    max_steps: int | None = None

    linearizes: ClassVar[bool] = False
    """Whether ``step`` reads ``iterate.jacobian``."""

    def __post_init__(self) -> None:
        """Check the limits."""
        name = type(self).__name__
        if self.atol is not None and not self.atol > 0:
            raise ConfigurationError(f"{name}: atol={self.atol}; expected above 0.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigurationError(f"{name}: max_steps={self.max_steps}; expected 1 or more.")

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Propose the next points ``[R, *E]``."""
        raise NotImplementedError(f"{type(self).__name__}.step")

    def choose(self, size: int, lipschitz: float, rows: int, *, smooth: bool = True) -> Solver:
        """Return the solver to run for R = ``rows`` systems of ``size`` unknowns: this one.

        Args:
            size: D, unknowns of a row.
            lipschitz: bound L of the map.
            rows: R.
            smooth: whether the map offers its Jacobian.
        """
        return self


def check_memory(solver: Solver, memory: int) -> None:
    """Refuse a memory that cannot hold a step.

    Raises:
        ConfigurationError: below 1.
    """
    if memory < 1:
        raise ConfigurationError(
            f"{type(solver).__name__}: memory={memory}; expected 1 or more past steps."
        )
