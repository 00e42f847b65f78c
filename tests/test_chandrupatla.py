"""Roots of monotone scalar functions: inside the bracket, in few evaluations, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from contraflow.errors import ConfigurationError, ConvergenceError
from contraflow.solvers import Chandrupatla, find_root, monotone_root

Function = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


class Mixture:
    """``y = logit(sum_k pi_k sigma((x - mu_k) e^{-s_k}))`` and its bracket that is a proof."""

    def __init__(self, logits: Tensor, mean: Tensor, log_scale: Tensor) -> None:
        self.log_weight, self.mean = logits.log_softmax(-1), mean
        self.log_scale = log_scale

    def __call__(self, x: Tensor) -> Tensor:
        u = (x[..., None] - self.mean) * (-self.log_scale).exp()
        below = (self.log_weight + logsigmoid(u)).logsumexp(-1)
        return below - (self.log_weight + logsigmoid(-u)).logsumexp(-1)

    def bracket(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return both ends and what rounding may do to them."""
        ends = self.mean + self.log_scale.exp() * v[..., None]
        size = self.mean.abs() + self.log_scale.exp() * v[..., None].abs()
        eps = torch.finfo(v.dtype).eps
        return ends.amin(-1), ends.amax(-1), 8 * eps * size.amax(-1)


def mixture(components: int, spread: tuple[float, float], dtype: torch.dtype) -> Mixture:
    shape = (500, components)
    logits, mean, log_scale = (normal(*shape, seed=seed).to(dtype) for seed in range(3))
    return Mixture(logits, spread[0] * mean, spread[1] * log_scale)


def bisect(h: Function, v: Tensor, low: Tensor, high: Tensor, ulps: float = 4.0) -> Tensor:
    """Return the evaluations of bisection until the same stop, the two ends included."""
    eps, least = torch.finfo(v.dtype).eps, torch.finfo(v.dtype).eps ** 1.5 * (high - low)
    steps, active = torch.full_like(v, 2.0), torch.ones_like(v, dtype=torch.bool)
    for _ in range(200):
        x = low + 0.5 * (high - low)
        f = h(x) - v
        steps = steps + active
        low, high = torch.where(f <= 0, x, low), torch.where(f > 0, x, high)
        wide = high - low > ulps * eps * x.abs() + least
        active = active & wide & (f.abs() > ulps * eps * v.abs())
    return steps


NARROW, WIDE, WILD = (1.0, 0.3), (5.0, 1.0), (30.0, 2.0)


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("spread", [NARROW, WIDE, WILD], ids=["narrow", "wide", "wild"])
@pytest.mark.parametrize("components", [1, 4, 32])
@torch.no_grad()
def test_a_mixture_of_logistics_takes_a_third_of_the_steps_of_bisection(
    components: int, spread: tuple[float, float], scale: float
) -> None:
    """float32, |v| up to 30 scales. Measured: mean 5 to 9 evaluations where bisection takes 20
    to 25, 99 of 100 within 15; means of thirty scales take 13, and 22. One component has no
    width to search. Mutant: bisection alone."""
    h = mixture(components, spread, torch.float32)
    v = normal(500, seed=3, scale=scale).clamp(-30, 30).float()
    low, high, rounding = h.bracket(v)
    solution = find_root(h, v, low, high, rounding=rounding)
    assert solution.converged.all()
    assert ((solution.value >= low - rounding) & (solution.value <= high + rounding)).all()
    steps = solution.steps.double()
    if components == 1:
        assert steps.mean() < 5
        return
    assert steps.mean() < 0.6 * bisect(h, v, low, high).mean()
    if spread is not WILD:
        assert steps.mean() <= 10
        assert steps.quantile(0.99) <= 16
    assert steps.max() <= 30
    # The residual is that of float32, and the root that of float64, a slope apart.
    exact = Mixture(*(t.double() for t in (h.log_weight, h.mean, h.log_scale)))
    truth = find_root(
        exact, v.double(), (low - rounding).double(), (high + rounding).double(),
        Chandrupatla(atol=1e-12),
    )  # fmt: skip
    assert truth.converged.all()
    error = (solution.value.double() - truth.value).abs()
    assert (error <= solution.error_bound.double() + rounding).all()


PROBLEMS: dict[str, tuple[Function, float, float, float]] = {
    # name: h, v, low, high
    "linear": (lambda x: 3 * x - 1, 2.0, -10.0, 7.0),
    "cubic": (lambda x: x**3, 2.0, -1.0, 10.0),
    "ninth power": (lambda x: x**9, 1e-9, -1.0, 4.0),  # flat: stops regula falsi
    "triple root": (lambda x: (x - 1) ** 3, 0.0, -2.0, 5.0),
    "exponential": (lambda x: x.exp(), 1.0, -50.0, 300.0),
    "tanh": (lambda x: x.tanh(), -0.999, -40.0, 60.0),
    "steep tanh": (lambda x: (1e6 * (x - 0.3)).tanh(), 0.5, -4.0, 6.0),
    "arctangent": (lambda x: (x - 7).atan(), 0.1, -1e8, 1e3),
    "logit": (lambda x: x.logit(), 20.0, 1e-9, 1 - 1e-12),
    "root": (lambda x: x.sign() * x.abs().sqrt(), 0.0, -1.0, 3.7),
    "reciprocal": (lambda x: -1 / x, -1e-3, 1e-12, 1e12),
    "kink": (lambda x: torch.where(x > 0.1, 1e8 * (x - 0.1), 1e-8 * (x - 0.1)), 3.0, -1e3, 1e3),
    "step": (lambda x: (x > math.pi).to(x.dtype), 0.5, -1e6, 1e6),  # no root, one change of sign
    "far": (lambda x: x, 1e-200, -1e200, 1e200),
}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("atol", [None, 1e-300])
@pytest.mark.parametrize("name", PROBLEMS)
def test_no_problem_leaves_the_bracket_or_takes_three_times_bisection(
    name: str, atol: float | None, mirrored: bool
) -> None:
    """Every point that h is asked for lies inside, the true root lies within the bound, and
    the steps stay below three times those of halving alone. Mutants: regula falsi, which the
    ninth power stops; the parabola's point not kept inside."""
    h, level, low, high = PROBLEMS[name]
    asked: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        asked.append(x)
        return h(-x) if mirrored else h(x)

    if mirrored:
        low, high = -high, -low
    v = torch.tensor([level], dtype=torch.float64)
    solver = Chandrupatla(atol=atol, max_steps=5000)
    solution = find_root(watched, v, low, high, solver, increasing=not mirrored)
    assert solution.converged.all()
    points = torch.cat(asked)
    assert ((points >= low) & (points <= high)).all()
    ends = torch.tensor([[low], [high]], dtype=torch.float64)
    # A bracket of eps^1.5 of the first one is 79 halvings away, and no stop is closer.
    assert int(solution.steps) <= 3 * 79
    # Where h is flat to rounding, every point between these two is a root.
    first, last = _by_halving(h, v, -ends.flip(0) if mirrored else ends)
    first, last = (-last, -first) if mirrored else (first, last)
    x, error = float(solution.value), float(solution.error_bound) * (1 + 1e-12)
    assert first - error <= x <= last + error
    if atol is not None:
        wanted = 8 * 2.3e-16 * max(abs(first), abs(last)) + 4e-24 * (high - low)
        assert float(solution.error_bound) <= wanted


def _by_halving(h: Function, v: Tensor, ends: Tensor) -> tuple[float, float]:
    """Return the least and the greatest x at which h is v, to the last place."""
    found = []
    for side in (torch.lt, torch.le):
        low, high = ends[0].clone(), ends[1].clone()
        for _ in range(1300):
            x = 0.5 * (low + high)
            low, high = (x, high) if bool(side(h(x), v)) else (low, x)
        found.append((low, high))
    return float(found[0][0]), float(found[1][1])


@pytest.mark.parametrize("shrink", [0.9, 0.3, 0.1, 0.01])
def test_an_adversary_cannot_keep_the_bracket_wide(shrink: float) -> None:
    """An h made up as it is asked: monotone, its root always in the wider part, its values
    luring the parabola to the ends. Any three steps still halve the bracket. Mutant: no
    forced halving, where three steps gain .02 % at shrink = .1."""
    points = [(-1.0, -1.0), (1.0, 1.0)]
    widths: list[float] = []

    def adversary(x: Tensor) -> Tensor:
        (low, below), (high, above) = points
        at = float(x)
        if not low < at < high:
            return torch.full_like(x, below if at <= low else above)
        left = at - low > high - at  # the root stays on the wider side
        points[left] = (at, shrink * (above if left else below))
        widths.append(points[1][0] - points[0][0])
        return torch.full_like(x, points[left][1])

    zero = torch.zeros(1, dtype=torch.float64)
    solution = find_root(adversary, zero, -1.0, 1.0, Chandrupatla(atol=1e-9))
    assert solution.converged.all()
    assert len(widths) > 25
    assert all(after <= before / 2 for before, after in zip(widths, widths[3:], strict=False))


def test_ends_infinities_and_nothing_at_all() -> None:
    """Exact roots at both ends take the evaluations of the start; v = inf has the end that is
    infinite as its root, and a finite bracket holds none. Mutant: a root strictly inside."""
    v = torch.tensor([-8.0, 27.0], dtype=torch.float64)
    solution = find_root(lambda x: x**3, v, -2.0, 3.0)
    assert solution.value.tolist() == [-2.0, 3.0]
    assert solution.steps.tolist() == [3, 3]
    infinite = torch.tensor([math.inf, -math.inf, 1.0])
    low = torch.tensor([math.inf, -math.inf, 0.0])
    high = torch.tensor([math.inf, -math.inf, 2.0])
    solution = find_root(lambda x: x, infinite, low, high)
    assert solution.value.tolist() == [math.inf, -math.inf, 1.0]
    assert solution.error_bound[:2].tolist() == [0.0, 0.0]
    assert solution.converged.all()
    bad = find_root(lambda x: x, infinite, -5.0, 5.0)
    assert bad.converged.tolist() == [False, False, True]
    empty = find_root(torch.exp, torch.zeros(4, 0), -1.0, 1.0)
    assert empty.value.shape == empty.converged.shape == (4, 0)


def test_a_bracket_that_holds_no_root_is_found_out() -> None:
    """Above, below, in the wrong direction, NaN in v, in the bracket and in h: those elements
    alone fail. Mutants: the ends unchecked; a NaN that spreads."""
    v = torch.tensor([[0.5, 3.0, -3.0], [math.nan, 0.2, 0.0]], dtype=torch.float64)
    low = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    solution = find_root(lambda x: x, v, low, 1.0)
    assert solution.converged.tolist() == [[True, False, False], [False, True, True]]
    assert solution.value.isnan().equal(~solution.converged)
    assert solution.error_bound.isinf().equal(~solution.converged)
    with pytest.raises(ConvergenceError, match="3 of 6"):
        solution.check("test")
    with pytest.raises(ConvergenceError, match="Chandrupatla: 3 of 6"):
        monotone_root(lambda x: x, v, low, 1.0)
    good = v[0, :1]
    assert not find_root(lambda x: -x, good, -1.0, 1.0).converged.any()
    assert find_root(lambda x: -x, good, -1.0, 1.0, increasing=False).converged.all()
    broken = torch.tensor([math.nan, -1.0, -1.0], dtype=torch.float64)
    assert find_root(lambda x: x, v[1].nan_to_num(0.1), broken, 1.0).converged.tolist() == [
        False, True, True,
    ]  # fmt: skip
    hole = find_root(lambda x: torch.where(x.abs() < 0.3, torch.nan, x), v[0, :1] * 0 + 0.1, -1, 1)
    assert not hole.converged.any()


def test_only_rounding_may_misplace_an_end() -> None:
    """An end that is off by 3 units in the last place still brackets, one off by 1e-3 does
    not, and one off by 1e-3 with that much rounding declared does. h is steep, so that no
    test in y could tell. Mutants: no third point; a slack in y."""
    v = torch.full((3,), 0.5)
    root = 1.0 + 0.5e-6  # 1e6 (x - 1) = .5
    off = torch.tensor([1 + 4e-7 + 0.5e-6, 1.001, 1.001])
    rounding = torch.tensor([1e-6, 1e-6, 2e-3])
    solution = find_root(lambda x: 1e6 * (x - 1), v, off, 2.0, rounding=rounding)
    assert solution.converged.tolist() == [True, False, True]
    assert (solution.value[[0, 2]] - root).abs().max() < 1e-6
    mirrored = find_root(lambda x: 1e6 * (x + 1), -v, -2.0, -off, rounding=rounding)
    assert mirrored.converged.tolist() == [True, False, True]


def test_neighbours_do_not_matter() -> None:
    """An element alone and among others takes the same steps to the same root. Mutant: a
    stop, or a tolerance, of the batch."""
    h = mixture(4, WIDE, torch.float64)
    v = normal(500, seed=3, scale=5.0)
    low, high, rounding = h.bracket(v)
    together = find_root(h, v, low, high, rounding=rounding)
    for i in (0, 17, 499):
        one = Mixture(*(t[i : i + 1] for t in (h.log_weight, h.mean, h.log_scale)))
        s = slice(i, i + 1)
        alone = find_root(one, v[s], low[s], high[s], rounding=rounding[s])
        assert torch.equal(alone.steps, together.steps[s])
        torch.testing.assert_close(alone.value, together.value[s], rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(dtype: torch.dtype) -> None:
    """The root is the nearest number of the dtype and the bound knows that. Mutant: half
    arithmetic, where x^3 overflows at 41 in float16."""
    v = torch.tensor([2.0, 300.0, 60_000.0], dtype=dtype)
    solution = find_root(lambda x: x**3, v, 0.0, 60.0, Chandrupatla(atol=1e-4))
    exact = v.double() ** (1 / 3)
    assert solution.value.dtype == solution.error_bound.dtype == dtype
    assert torch.equal(solution.value, exact.to(dtype))
    error = (solution.value.double() - exact).abs()
    assert (error <= solution.error_bound.double() * (1 + torch.finfo(dtype).eps)).all()
    attached = monotone_root(lambda x: x**3, v.requires_grad_(), 0.0, 60.0)
    assert attached.dtype == dtype
    (gradient,) = torch.autograd.grad(attached.sum(), v)
    torch.testing.assert_close(gradient.double(), exact**-2 / 3, rtol=2e-2, atol=0)


def test_steps_run_out_as_a_failure() -> None:
    """Mutant: the last bracket passed off as an answer."""
    solution = find_root(torch.exp, torch.tensor([1.5]), -50.0, 80.0, Chandrupatla(max_steps=5))
    assert not solution.converged.any()
    assert solution.steps.tolist() == [5]
    assert abs(float(solution.value) - math.log(1.5)) <= float(solution.error_bound)


def test_refused_settings() -> None:
    for make in (
        lambda: Chandrupatla(atol=0.0),
        lambda: Chandrupatla(atol=math.nan),
        lambda: Chandrupatla(ulps=0.5),
        lambda: Chandrupatla(max_steps=2),
    ):
        with pytest.raises(ConfigurationError, match=r"Chandrupatla: .*; expected"):
            make()


# --- gradients ----------------------------------------------------------------------------


def test_gradients_of_first_and_second_order() -> None:
    """In v and in every parameter of a mixture, float64. Mutants: one Newton step (second
    order wrong by h'' x'^2 / h'), the slope detached."""
    logits, mean, log_scale = (0.5 * normal(2, 2, seed=seed) for seed in range(3))
    v = normal(2, seed=4)
    inputs = tuple(t.requires_grad_() for t in (v, logits, mean, log_scale))

    def root(v: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        return monotone_root(
            Mixture(logits, mean, log_scale), v, -60.0, 60.0, Chandrupatla(atol=1e-15)
        )

    assert torch.autograd.gradcheck(root, inputs)
    assert torch.autograd.gradgradcheck(root, inputs)


def test_derivatives_of_the_cube_root_to_third_order() -> None:
    """By hand: x = v^{1/3} has 1/3 v^{-2/3}, -2/9 v^{-5/3}, 10/27 v^{-8/3}; decreasing h
    likewise. Mutant: one Newton step, whose second derivative is 0."""
    v = torch.tensor([8.0], dtype=torch.float64, requires_grad=True)
    for h, increasing, sign in ((lambda x: x**3, True, 1.0), (lambda x: -(x**3), False, -1.0)):
        x = monotone_root(h, sign * v, 0.0, 5.0, Chandrupatla(atol=1e-15), increasing=increasing)
        found = []
        for _ in range(3):
            (x,) = torch.autograd.grad(x.sum(), v, create_graph=True)
            found.append(x.item())
        expected = [8 ** (-2 / 3) / 3, -2 / 9 * 8 ** (-5 / 3), 10 / 27 * 8 ** (-8 / 3)]
        assert found == pytest.approx(expected, rel=1e-9)


def test_an_infinite_root_spoils_no_gradient() -> None:
    """Mutant: one ``where`` only, whose zero times infinity is NaN."""
    v = torch.tensor([math.inf, 4.0], dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([math.inf, 0.0], dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = monotone_root(lambda x: scale * x, v, ends, ends.clamp_min(9.0))
    assert x.tolist() == [math.inf, 2.0]
    gradients = torch.autograd.grad(x[1], (v, scale))
    assert gradients[0].tolist() == [0.0, 0.5]
    assert gradients[1].item() == -1.0


def test_it_compiles_whole() -> None:
    """``fullgraph``: no value decides a branch; the same roots and gradients. Mutant: the
    early exit while compiling."""

    def root(v: Tensor, mean: Tensor) -> Tensor:
        solver = Chandrupatla(ulps=1e4, max_steps=12)
        return monotone_root(lambda x: x**3 + x - mean, v, -3.0, 3.0, solver, check=False)

    v, mean = normal(6).requires_grad_(), normal(6, seed=1).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(root, fullgraph=True, backend="eager")
    found, expected = compiled(v, mean), root(v, mean)
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), (v, mean)), torch.autograd.grad(expected.sum(), (v, mean))
    )
    torch.compiler.reset()
