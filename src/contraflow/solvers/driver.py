"""The one loop that every root solver runs in.

A contraction ``f`` with bound L has one fixed point, and for ANY iterate, from any method,
``|x - x*| <= |f(x) - x| / (1 - L)`` (Banach). So the stopping rule is the same for all, a
row stops when that proves its tolerance, and rows that have stopped leave the batch.

Below float64 the rounding of f hides the last digits of a residual. Where the map can be had in
float64 as well, the search goes on there once rounding is reached, and what is returned is the
refined root, rounded once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from contraflow.errors import NotContractiveError
from contraflow.solvers._rows import Rows, row_norm
from contraflow.solvers.problem import Iterate, PlainMap, RowMap, inner_size
from contraflow.solvers.solution import Solution
from contraflow.solvers.solver import Solver

# Below _FLOOR_ULPS units in the last place of |x| + |x0| a residual is rounding; up to
# _STALL_ULPS it is taken for rounding when it has not fallen for _STALL_STEPS steps.
_FLOOR_ULPS = 1.0
_STALL_ULPS = 1024.0
_STALL_STEPS = 8
# A residual above this share of |x| + |x0| is no rounding: 1024 units of half precision are all x.
_STALL_SHARE = 2.0**-4
# Where float64 goes on, a lower dtype is left at _HANDOVER_ULPS, or as soon as it stalls.
_HANDOVER_ULPS = 2.0
_HANDOVER_STEPS = 1
# Rows leave once they are this share of the active ones: copying the others costs as well.
_LEAVING = 1 / 8


def default_atol(dtype: torch.dtype) -> float:
    """Return what ``atol=None`` stands for without refinement: 1e-13 in float64, else 1e-6."""
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
        f: a contraction of ``[B, *E]``; a ``RowMap`` also lets finished rows leave, offers its
            Jacobian, and is refined in float64.
        x0: start, ``[B, *E]``; a good one saves evaluations.
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
    size = math.prod(x0.shape[x0.ndim - event_dim :])
    solver = solver.choose(size, lipschitz, len(x0), smooth=isinstance(f, RowMap))
    problem = f if isinstance(f, RowMap) else PlainMap(f, x0)
    with torch.no_grad():
        return _solve(problem, x0, solver, lipschitz)


def _solve(f: RowMap, x0: Tensor, solver: Solver, lipschitz: float) -> Solution:
    refined = None if x0.dtype == torch.float64 else f.to(torch.float64)
    if refined is None:
        atol = default_atol(x0.dtype) if solver.atol is None else solver.atol
        search = _Search(f, x0, row_norm(x0), solver, lipschitz)
        search.run(atol)
        return search.solution(x0.dtype)
    # Half precision is no place to search in: its steps are as coarse as its numbers.
    coarse = f if x0.dtype == torch.float32 else f.to(torch.float32)
    assert coarse is not None
    scale = row_norm(x0.double())
    first = _Search(coarse, x0.float(), scale.float(), solver, lipschitz)
    first.run(solver.atol or 0.0, handover=True)
    second = _Search(refined, first.x.double(), scale, solver, lipschitz)
    second.resume(first)
    second.run(solver.atol or 0.0, relative=torch.finfo(x0.dtype).eps / 4)
    return second.solution(x0.dtype)


class _Search:
    """All rows of a solve in one dtype: where they stand, and what became of them."""

    def __init__(
        self, f: RowMap, x0: Tensor, scale: Tensor, solver: Solver, lipschitz: float
    ) -> None:
        self.f, self.solver, self.lipschitz = f, solver, lipschitz
        self.x = x0.clone()
        self.scale = scale  # |x0|, which with |x| sets what rounding can do
        self.residual = torch.full_like(scale, math.inf)
        self.steps = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self.products = torch.zeros_like(self.steps)
        self.converged = torch.zeros_like(self.steps, dtype=torch.bool)
        self.contradicted = torch.zeros_like(self.converged)
        self.memory: tuple[Tensor, ...] = ()

    def run(self, atol: float, *, relative: float = 0.0, handover: bool = False) -> None:
        """Step until every row is done, or shows that it never will be.

        Args:
            atol: accepted error, absolute.
            relative: accepted error, in units of |x|, where that is larger.
            handover: whether another search goes on from where rounding is reached.
        """
        if len(self.x) == 0:
            return
        floor = _HANDOVER_ULPS if handover else _FLOOR_ULPS
        stall = _HANDOVER_STEPS if handover else _STALL_STEPS
        rounding = min(_STALL_ULPS, _STALL_SHARE / torch.finfo(self.x.dtype).eps)
        linearize = self.solver.linearizes
        rows = Rows.begin(self.f, self.x, self.scale, self.memory, linearize=linearize)
        limit = None
        for step in itertools.count():
            # A row is done when its residual proves atol, or when rounding is all that is left:
            # in exact arithmetic no contraction's residual could stall.
            ulps = rows.ulps()
            target = (1 - self.lipschitz) * (rows.size * relative).clamp_min(atol)
            if limit is None:
                least = torch.maximum(target, floor * ulps)
                limit = self.solver.max_steps or _step_limit(rows.residual, least, self.lipschitz)
            stuck = rows.stalled >= stall
            if self.solver.max_steps is None and step >= limit:  # Banach's steps are all taken
                stuck = torch.ones_like(stuck)
            met = (rows.residual <= target) | (rows.residual <= floor * ulps)
            met |= (rows.residual <= rounding * rows.inner_ulps()) & stuck
            failed = rows.broken | rows.contradicted
            last = step >= limit
            leaving = (met | failed | last) & ~rows.finished
            if bool(leaving.any()):
                self._record(rows, leaving, met & ~failed, keep_memory=handover)
                rows.finished = rows.finished | leaving
                going = ~rows.finished
                left = int(going.sum())
                if left == 0:
                    return
                if left <= (1 - _LEAVING) * len(going):
                    keep = going.nonzero().reshape(-1)
                    rows, target = rows.keep(keep), target[keep]
            iterate = Iterate(
                rows.x, rows.fx, target, step, rows.previous, rows.jacobian, rows.memory
            )
            proposal = self.solver.step(rows.f, iterate)
            rows.advance(proposal, self.lipschitz, suspicious=not handover)

    def resume(self, earlier: _Search) -> None:
        """Take over what an earlier search has spent and learned."""
        self.steps += earlier.steps
        self.products += earlier.products
        self.memory = earlier.memory

    def _record(self, rows: Rows, leaving: Tensor, met: Tensor, *, keep_memory: bool) -> None:
        """Write down where the leaving rows stand."""
        keep = leaving.nonzero().reshape(-1)
        index = rows.index[keep]
        self.x[index] = rows.x[keep]
        self.residual[index] = rows.residual.masked_fill(rows.broken, math.inf)[keep]
        self.converged[index] = met[keep]
        self.contradicted[index] = rows.contradicted[keep]
        self.steps[index] += rows.steps[keep]
        self.products[index] += rows.products[keep]
        if not keep_memory:
            return
        if not self.memory:
            shapes = [(len(self.x), *kept.shape[1:]) for kept in rows.memory]
            self.memory = tuple(
                kept.new_zeros(shape) for kept, shape in zip(rows.memory, shapes, strict=True)
            )
        for whole, kept in zip(self.memory, rows.memory, strict=False):
            whole[index] = kept[keep]

    def solution(self, dtype: torch.dtype) -> Solution:
        """Return the answer, rounded to ``dtype``; the bound knows of the rounding."""
        value = self.x.to(dtype)
        sizes = row_norm(self.x) + self.scale + inner_size(self.f, self.scale)
        floor = _FLOOR_ULPS * torch.finfo(self.x.dtype).eps * sizes
        bound = (self.residual + floor) / (1 - self.lipschitz)
        bound = bound + row_norm(value.to(self.x.dtype) - self.x)
        bound = bound.masked_fill(self.contradicted, math.inf)
        held = value.isfinite().reshape(len(value), math.prod(value.shape[1:])).all(1)
        if dtype != self.x.dtype:  # a bound may be rounded, but never down
            bound = bound.to(dtype) * (1 + torch.finfo(dtype).eps)
        return Solution(
            value,
            bound,
            self.residual.to(dtype),
            self.steps,
            self.converged & held,  # a root beyond the dtype's largest number is not
            self.products,
            self.contradicted,
        )


def _step_limit(first: Tensor, last: Tensor, lipschitz: float) -> int:
    """Return Banach's limit: a contraction needs no more steps from ``first`` to ``last``."""
    ratio = (first / last.clamp_min(torch.finfo(last.dtype).tiny)).nan_to_num(1.0, 1.0, 1.0)
    top = float(ratio.max())
    if top <= 1 or lipschitz == 0:
        return _STALL_STEPS + 2
    return _STALL_STEPS + 2 + math.ceil(math.log(top) / -math.log(lipschitz))
