"""The one loop that every root solver runs in.

A contraction ``f`` with bound L has one fixed point, and for ANY iterate, from any method,
``|x - x*| <= |f(x) - x| / (1 - L)`` (Banach). So the stopping rule is the same for all, a
row stops when that proves its tolerance, and rows that have stopped leave the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError, NotContractiveError
from contraflow.jacobian import Jacobian
from contraflow.solvers.solution import Solution

# Below _FLOOR_ULPS units in the last place of |x| + |x0| a residual is rounding; up to
# _STALL_ULPS it is taken for rounding when it has not fallen for _STALL_STEPS steps.
_FLOOR_ULPS = 1.0
_STALL_ULPS = 1024.0
_STALL_STEPS = 8


class Iterate(NamedTuple):
    """A batch of iterates and the map's values there, both ``[R, *E]``."""

    x: Tensor
    fx: Tensor


@runtime_checkable
class RowMap(Protocol):
    """A map of a batch that can be restricted to rows, so that finished rows cost nothing."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``f(x)``, ``[R, *E]``."""
        ...

    def rows(self, index: Tensor) -> RowMap:
        """Return the map for the rows in ``index``."""
        ...

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        """Return ``f(x)`` and the Jacobian J of ``f = z - g``'s branch g, or of ``-f``."""
        ...


@runtime_checkable
class Solver(Protocol):
    """One algorithm: a frozen dataclass with a tolerance and a step."""

    @property
    def atol(self) -> float | None:
        """Return the largest accepted |x - x*|; None for the dtype's default."""
        ...

    @property
    def max_steps(self) -> int | None:
        """Return the most evaluations of f; None for Banach's limit."""
        ...

    def step(self, f: Callable[[Tensor], Tensor], state: Iterate) -> Tensor:
        """Propose the next iterate ``[R, *E]``; the driver checks it."""
        ...


def check_limits(solver: Solver) -> None:
    """Refuse a tolerance or a number of steps that cannot be met.

    Raises:
        ConfigurationError: ``atol`` is not above 0, or ``max_steps`` is below 1.
    """
    name = type(solver).__name__
    if solver.atol is not None and not solver.atol > 0:
        raise ConfigurationError(f"{name}: atol={solver.atol}; expected above 0.")
    if solver.max_steps is not None and solver.max_steps < 1:
        raise ConfigurationError(f"{name}: max_steps={solver.max_steps}; expected 1 or more.")


def default_atol(dtype: torch.dtype) -> float:
    """Return the tolerance that ``atol=None`` stands for: 1e-6 in float32, 1e-13 in float64."""
    return 1e-13 if dtype == torch.float64 else 1e-6


def solve(
    f: Callable[[Tensor], Tensor],
    x0: Tensor,
    solver: Solver,
    *,
    lipschitz: float,
    event_dim: int = 1,
) -> Solution:
    """Find ``x = f(x)`` for a batch of independent rows.

    Args:
        f: a contraction of ``[B, *E]``; a ``RowMap`` also lets finished rows leave.
        x0: start, ``[B, *E]``.
        solver: the algorithm with its tolerance.
        lipschitz: bound L of f, below 1, in the l2 norm of a row.
        event_dim: number of dimensions of E.

    Returns:
        A ``Solution``; rows that missed the tolerance are marked, not raised.

    Raises:
        NotContractiveError: L is 1 or more.

    Example:
        >>> from contraflow.solvers import Picard
        >>> y = torch.tensor([[3.0]], dtype=torch.float64)
        >>> solution = solve(lambda x: y - 0.5 * x, y, Picard(), lipschitz=0.5)
        >>> f"{solution.value.item():.4f}", bool(solution.converged.all())
        ('2.0000', True)
    """
    if not 0 <= lipschitz < 1:
        raise NotContractiveError(
            f"lipschitz={lipschitz}; expected a bound below 1: otherwise neither a fixed point "
            "nor a bound of its error is guaranteed."
        )
    with torch.no_grad():
        return _solve(f, x0, solver, lipschitz, event_dim)


def _solve(
    f: Callable[[Tensor], Tensor], x0: Tensor, solver: Solver, lipschitz: float, event_dim: int
) -> Solution:
    batch, device = x0.shape[0], x0.device
    atol = default_atol(x0.dtype) if solver.atol is None else solver.atol
    value = x0.clone()
    residual = torch.full((batch,), math.inf, dtype=x0.dtype, device=device)
    floor = torch.zeros(batch, dtype=x0.dtype, device=device)
    steps = torch.zeros(batch, dtype=torch.long, device=device)
    converged = torch.zeros(batch, dtype=torch.bool, device=device)

    active = torch.arange(batch, device=device)
    x, active_f = x0, f
    fx = f(x) if batch else x
    last = _row_norm(fx - x, event_dim)
    start = _row_norm(x0, event_dim)
    limit = _step_limit(last, lipschitz, atol) if solver.max_steps is None else solver.max_steps
    best, stalled = last, torch.zeros_like(steps)
    count = 1
    while True:
        # A row is done when its residual proves atol, or when rounding is all that is left:
        # in exact arithmetic no contraction's residual could stall.
        ulps = torch.finfo(x.dtype).eps * (_row_norm(x, event_dim) + start)
        stuck = stalled >= _STALL_STEPS
        if solver.max_steps is None and count >= limit:  # Banach's steps are all taken
            stuck = torch.ones_like(stuck)
        rounded = (last <= _FLOOR_ULPS * ulps) | ((last <= _STALL_ULPS * ulps) & stuck)
        done = (last <= (1 - lipschitz) * atol) | rounded
        value[active], residual[active], steps[active] = x, last, count
        floor[active], converged[active] = _FLOOR_ULPS * ulps, done
        going = ~done & last.isfinite()
        if count >= limit or not bool(going.any()):
            break
        if not bool(going.all()):
            keep = going.nonzero().reshape(-1)
            active, x, fx, last = active[keep], x[keep], fx[keep], last[keep]
            start, best, stalled = start[keep], best[keep], stalled[keep]
            if isinstance(active_f, RowMap):
                active_f = active_f.rows(keep)
            else:
                active_f = _RestrictedMap(f, value, active)
        x, fx, last = _guarded_step(active_f, solver, x, fx, last, lipschitz, event_dim)
        stalled = torch.where(last < best, 0, stalled + 1)
        best = torch.minimum(best, last)
        count += 1
    bound = (residual + floor) / (1 - lipschitz)
    return Solution(value, bound, residual, steps, converged)


def _guarded_step(
    f: Callable[[Tensor], Tensor],
    solver: Solver,
    x: Tensor,
    fx: Tensor,
    last: Tensor,
    lipschitz: float,
    event_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the solver's step where it beats Picard's guarantee, Picard's step elsewhere.

    A proposal counts only if its residual is at most L times the last one, which Picard's
    always is: so Banach's limit on the number of steps holds for every method.
    """
    proposal = solver.step(f, Iterate(x, fx))
    if proposal is fx:  # Picard's own step
        image = f(fx)
        return fx, image, _row_norm(image - fx, event_dim)
    image = f(proposal)
    norm = _row_norm(image - proposal, event_dim)
    refused = ~(norm <= lipschitz * last)
    if bool(refused.any()):
        keep = refused.reshape(-1, *(1,) * event_dim)
        proposal = torch.where(keep, fx, proposal)
        image = f(proposal)
        norm = _row_norm(image - proposal, event_dim)
    return proposal, image, norm


class _RestrictedMap:
    """A plain function of the whole batch, seen on some of its rows."""

    def __init__(self, f: Callable[[Tensor], Tensor], value: Tensor, active: Tensor) -> None:
        self.f, self.value, self.active = f, value, active

    def __call__(self, x: Tensor) -> Tensor:
        whole = self.value.clone()
        whole[self.active] = x
        return self.f(whole)[self.active]


def _row_norm(x: Tensor, event_dim: int) -> Tensor:
    return x.flatten(-event_dim).norm(dim=-1) if event_dim else x.abs()


def _step_limit(first: Tensor, lipschitz: float, atol: float) -> int:
    """Return Banach's limit: a contraction cannot need more steps from this first residual."""
    finite = first[first.isfinite()]
    top = float(finite.max()) if len(finite) else 0.0
    target = (1 - lipschitz) * atol
    if top <= target or lipschitz == 0:
        return _STALL_STEPS + 2
    return _STALL_STEPS + 2 + math.ceil(math.log(top / target) / -math.log(lipschitz))
