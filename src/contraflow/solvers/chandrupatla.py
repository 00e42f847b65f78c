"""Roots of monotone functions of one number, all elements of a tensor at once.

A bracket [a, b] with h(a) <= v <= h(b) proves that the root lies inside, whatever the method
did to get there. Chandrupatla's method interpolates the inverse function by a parabola where
that parabola is monotone through the last three points, and halves the bracket elsewhere. Here
a bracket that two steps in a row failed to halve is halved by the third, so that no function
takes more than three times the steps of bisection. Steps are masked, not branched: nothing
depends on values but the early exit of eager mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.registry import register
from contraflow.solvers.solution import Solution

_PATIENCE = 2  # steps that may fail to halve the bracket
_EAGER_STEPS, _COMPILED_STEPS = 200, 40  # most evaluations where ``max_steps`` is None
_NUDGE_ULPS = 8.0  # by how far the rounding of its formula may misplace an end of the bracket


@register
@dataclass(frozen=True)
class Chandrupatla:
    """Solve ``h(x) = v`` for each element by bracketing and inverse quadratic interpolation.

    Args:
        atol: largest accepted width of the bracket that proves the root, in the units of x;
            None stops on the residual, which takes an evaluation or two less: at
            ``|h(x) - v| <= ulps * eps * |v|``. Both stop where the bracket is ``ulps`` units
            in the last place of x wide.
        ulps: units in the last place, at least 1.
        max_steps: most evaluations of h, those at the two ends included. Compiled code takes
            them all; eager code stops when every element is done. None for 200, which covers
            three times the bisections from any bracket to the last place of float64, and for
            40 while compiling.

    Raises:
        ConfigurationError: a number is too small.

    Example:
        >>> v = torch.tensor([-8.0, 0.0, 27.0], dtype=torch.float64)
        >>> solution = find_root(lambda x: x**3, v, -5.0, 5.0, Chandrupatla())
        >>> [f"{x:.6f}" for x in solution.value.tolist()]
        ['-2.000000', '0.000000', '3.000000']

    Reference:
        Chandrupatla 1997, Advances in Engineering Software 28(3), 145-149.
    """

    atol: float | None = None
    ulps: float = 4.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.atol is not None and not self.atol > 0:
            raise ConfigurationError(f"Chandrupatla: atol={self.atol}; expected above 0, or None.")
        if not self.ulps >= 1:
            raise ConfigurationError(f"Chandrupatla: ulps={self.ulps}; expected 1 or more.")
        if self.max_steps is not None and self.max_steps < 3:
            raise ConfigurationError(
                f"Chandrupatla: max_steps={self.max_steps}; expected 3 or more, or None."
            )

    @property
    def limit(self) -> int:
        """Return the most evaluations of h."""
        if self.max_steps is not None:
            return self.max_steps
        return _COMPILED_STEPS if torch.compiler.is_compiling() else _EAGER_STEPS


class _State(NamedTuple):
    """The last point a, the end b beyond the root, and the point c before; f = h - v rises."""

    a: Tensor
    fa: Tensor
    b: Tensor
    fb: Tensor
    c: Tensor
    fc: Tensor
    reference: Tensor  # width of the bracket when it was last halved
    idle: Tensor  # steps since then


@torch.no_grad()
def find_root(
    h: Callable[[Tensor], Tensor],
    v: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    solver: Chandrupatla | None = None,
    *,
    increasing: bool = True,
    rounding: Tensor | float | None = None,
) -> Solution:
    """Solve ``h(x) = v`` in ``[low, high]`` for each element of v, without gradient.

    Args:
        h: elementwise and monotone, ``[*B] -> [*B]``.
        v: ``[*B]``, any shape; half precision is computed in float32.
        low: lower end of the bracket, broadcast against v: rounding aside, the root must lie
            inside. It is not widened. Where both ends are the same infinity, that is the root.
        high: upper end, likewise.
        solver: tolerance and most steps; None for ``Chandrupatla()``.
        increasing: whether h rises.
        rounding: by how much rounding may have misplaced the ends, in the units of x,
            broadcast against v; None for 8 units in their last place. Ends that are small
            differences of large numbers need more.

    Returns:
        A ``Solution`` whose every field has the shape of v. ``error_bound`` is the distance to
        the far end of the last bracket, between whose ends h as computed crosses v;
        ``residual`` is ``|h(x) - v|``. An element whose
        bracket holds no root, or which met a NaN, has not converged, its bound is infinite,
        and a NaN is its value; its neighbours do not notice.

    Example:
        >>> find_root(torch.exp, torch.tensor([1.0, -1.0]), -1.0, 1.0).converged.tolist()
        [True, False]
    """
    solver, dtype = solver or Chandrupatla(), v.dtype
    work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    v = v.to(work)
    ends = [torch.as_tensor(end, dtype=work, device=v.device) for end in (low, high)]
    v, first, second = torch.broadcast_tensors(v, *ends)
    endless = (first == second) & first.isinf()
    low, high = (torch.where(endless, 0.0, torch.fmin(first, second)),
                 torch.where(endless, 0.0, torch.fmax(first, second)))  # fmt: skip
    unknown = v.isnan() | ~low.isfinite() | ~high.isfinite()
    sign = 1.0 if increasing else -1.0

    def f(x: Tensor) -> Tensor:
        return sign * (h(x).to(work) - v)

    eps = torch.finfo(work).eps
    if rounding is None:
        rounding = _NUDGE_ULPS * eps * torch.maximum(low.abs(), high.abs()).clamp_min(eps)
    state, holds = _start(f, low, high, torch.as_tensor(rounding, dtype=work, device=v.device))
    tolerance = _Tolerance(solver, eps, v, high - low)
    done = tolerance.met(state) & holds
    steps = torch.full_like(v, 3, dtype=torch.long)
    stopped = done | ~holds | endless | unknown
    for _ in range(3, solver.limit):
        if not torch.compiler.is_compiling() and bool(stopped.all()):
            break
        x = _proposal(state, tolerance)
        fx = f(x)
        pairs = zip(state, _updated(state, x, fx), strict=True)
        state = _State(*(torch.where(stopped, old, new) for old, new in pairs))
        steps = steps + (~stopped).long()
        unknown = unknown | (fx.isnan() & ~stopped)
        done = done | (tolerance.met(state) & ~stopped & ~unknown)
        stopped = stopped | done | unknown
    x, fx = _best(state)
    found = done | endless
    slack = eps * x.abs()  # the ends are rounded themselves
    bound = torch.where(found | (holds & ~unknown), (state.a - state.b).abs() + slack, torch.inf)
    x = torch.where(endless, first, torch.where(unknown | ~holds, torch.nan, x))
    value = x.to(dtype)
    if dtype != work:
        bound = bound + (value.to(work) - x).abs().nan_to_num(0.0)
    residual = torch.where(endless, 0.0, fx.abs())
    bound = torch.where(endless, 0.0, bound)
    none = torch.zeros_like(steps)
    return Solution(value, bound.to(dtype), residual.to(dtype), steps, found, none, none.bool())


def _start(
    f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, rounding: Tensor
) -> tuple[_State, Tensor]:
    """Evaluate both ends and a third point; tell where they hold a root between them.

    Rounding may put an end of a true bracket on the wrong side of the root. There the third
    point is as far outside that end as rounding explains; elsewhere it is the middle.
    """
    f_low, f_high = f(low), f(high)
    below, above = f_low > 0, f_high < 0
    middle = low + 0.5 * (high - low)
    third = torch.where(below, low - rounding, torch.where(above, high + rounding, middle))
    f_third = f(third)
    to_low = below | (~above & (f_third > 0))  # the root lies between low and the third point
    a, fa = third, f_third
    b, fb = torch.where(to_low, low, high), torch.where(to_low, f_low, f_high)
    c, fc = torch.where(to_low, high, low), torch.where(to_low, f_high, f_low)
    width = (a - b).abs()
    # The end that is not left between must be on the other side of zero; NaN is nowhere.
    holds = ((fa <= 0) & (fb >= 0)) | ((fa >= 0) & (fb <= 0))
    return _State(a, fa, b, fb, c, fc, width, torch.zeros_like(width)), holds


def _proposal(state: _State, tolerance: _Tolerance) -> Tensor:
    """Return the next point, inside the bracket."""
    a, fa, b, fb, c, fc, _, idle = state
    # Chandrupatla's test: the inverse parabola through the three points is monotone.
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    good = (phi.square() < xi) & ((1 - phi).square() < 1 - xi) & (idle < _PATIENCE)
    t = fa / (fb - fa) * (fc / (fb - fc)) + (c - a) / (b - a) * (fa / (fc - fa)) * (fb / (fc - fb))
    t = torch.where(good & t.isfinite(), t, 0.5)
    # The first step beyond the root is half a tolerance; where h is flat to rounding, longer.
    least = (tolerance.in_x(state) * 8**idle / (2 * (b - a).abs())).clamp(0.0, 0.5)
    return a + torch.minimum(torch.maximum(t, least), 1 - least) * (b - a)


def _updated(state: _State, x: Tensor, fx: Tensor) -> _State:
    """Take in a point: the bracket keeps the ends between which f changes sign."""
    a, fa, b, fb, _, _, reference, idle = state
    same = (fx > 0) == (fa > 0)
    b_new, fb_new = torch.where(same, b, a), torch.where(same, fb, fa)
    c_new, fc_new = torch.where(same, a, b), torch.where(same, fa, fb)
    width = (x - b_new).abs()
    halved = width <= 0.5 * reference
    return _State(
        x, fx, b_new, fb_new, c_new, fc_new,
        torch.where(halved, width, reference), torch.where(halved, 0.0, idle + 1),
    )  # fmt: skip


def _best(state: _State) -> tuple[Tensor, Tensor]:
    """Return the end of the bracket with the smaller residual, and f there."""
    first = state.fa.abs() <= state.fb.abs()
    return torch.where(first, state.a, state.b), torch.where(first, state.fa, state.fb)


class _Tolerance:
    """When an element is done."""

    def __init__(self, solver: Chandrupatla, eps: float, v: Tensor, width: Tensor) -> None:
        self.ulps, self.atol = solver.ulps * eps, solver.atol
        self.in_y = self.ulps * v.abs()
        # A root at 0 has no last place: there the first bracket's width sets the unit.
        self.least = eps**1.5 * width

    def in_x(self, state: _State) -> Tensor:
        """Return the width of the bracket that is small enough."""
        return (self.ulps * _best(state)[0].abs() + self.least).clamp_min(self.atol or 0.0)

    def met(self, state: _State) -> Tensor:
        """Tell which elements are done."""
        narrow = (state.a - state.b).abs() <= self.in_x(state)
        if self.atol is not None:
            return narrow
        return narrow | (_best(state)[1].abs() <= self.in_y)


def monotone_root(
    h: Callable[[Tensor], Tensor],
    v: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    solver: Chandrupatla | None = None,
    *,
    increasing: bool = True,
    rounding: Tensor | float | None = None,
    check: bool = True,
) -> Tensor:
    """Return the root of ``h(x) = v`` with its derivatives in v and in all that h depends on.

    The root is found without a graph. Then two Newton steps of value zero are taken with one:
    Newton's map at a root has no first derivative in x, so that each step doubles the order to
    which the derivatives in v and in the parameters are those of the implicit function; two
    steps make first, second and third derivatives exact. h needs forward-mode derivatives,
    which all of torch's elementwise functions have.

    Args:
        h: as for ``find_root``; elementwise, with everything that it depends on in its graph.
        v: as for ``find_root``.
        low: as for ``find_root``.
        high: as for ``find_root``.
        solver: as for ``find_root``.
        increasing: as for ``find_root``.
        rounding: as for ``find_root``.
        check: raise where an element has no root; False, for compiled code, leaves a NaN there.

    Raises:
        ConvergenceError: an element did not converge.

    Example:
        >>> v = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
        >>> x = monotone_root(torch.square, v, 0.0, 10.0)
        >>> f"{x.item():.6f}, {torch.autograd.grad(x, v)[0].item():.6f}"  # 2, and 1 / (2 x)
        '2.000000, 0.250000'
    """
    solution = find_root(h, v.detach(), low, high, solver, increasing=increasing, rounding=rounding)
    if check:
        solution = solution.check("Chandrupatla")
    root = torch.where(solution.converged, solution.value, torch.nan)
    if not torch.is_grad_enabled():
        return root
    finite = root.isfinite()
    work = torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    # Twice where: a derivative at infinity must not reach the gradients of the others.
    start = torch.where(finite, root, 0.0).to(work)
    x = start
    for _ in range(2):
        value, slope, *_ = torch.func.jvp(h, (x,), (torch.ones_like(x),))
        x = x - torch.where(finite, (value - v) / torch.where(finite, slope, 1.0), 0.0)
    return root + (x - x.detach()).to(v.dtype)
