"""Roots: true errors against reported ones, and every way in which a solve can fail.

References are roots known in closed form (the root is chosen first, or the map is linear and
diagonal) or unrolled iterations in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contraflow.errors import (
    ConfigurationError,
    ConvergenceError,
    NotContractiveError,
    ShapeError,
)
from contraflow.evaluation import certify
from contraflow.jacobian import Jacobian, linearize
from contraflow.lipschitz import Branch, LipschitzLinear, MLPBranch
from contraflow.logdet import Exact
from contraflow.solvers import (
    Anderson,
    Auto,
    Broyden,
    InexactNewton,
    Newton,
    Picard,
    Solution,
    Solver,
    default_atol,
    solve,
)
from contraflow.transforms import ResidualBlock

SOLVERS: dict[str, Callable[..., Solver]] = {
    "picard": Picard,
    "anderson": Anderson,
    "broyden": Broyden,
    "newton": Newton,
    "inexact newton": InexactNewton,
    "neumann": functools.partial(InexactNewton, memory=0),
    "auto": Auto,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


class DenseJacobian:
    """J of the branch as matrices ``[B, d, d]``."""

    event_dim = 1

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def mv(self, v: Tensor) -> Tensor:
        return (self.matrix @ v[..., None])[..., 0]

    def rmv(self, u: Tensor) -> Tensor:
        return (self.matrix.mT @ u[..., None])[..., 0]

    def trace(self) -> Tensor | None:
        return None

    def dense(self) -> Tensor:
        return self.matrix

    def rows(self, index: Tensor | slice) -> DenseJacobian:
        return DenseJacobian(self.matrix[index])


class CountingMap:
    """``x -> z - g(x)`` for an elementwise g, counting the rows that it is asked for."""

    def __init__(
        self,
        g: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor], Tensor],
        z: Tensor,
        counter: dict[str, int] | None = None,
    ) -> None:
        self.g, self.slope, self.z = g, slope, z
        self.counter = {"rows": 0, "calls": 0} if counter is None else counter

    def __call__(self, x: Tensor) -> Tensor:
        self.counter["rows"] += len(x)
        self.counter["calls"] += 1
        return self.z - self.g(x)

    def to(self, dtype: torch.dtype) -> None:
        return None

    def rows(self, index: Tensor) -> CountingMap:
        return CountingMap(self.g, self.slope, self.z[index], self.counter)

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        return self(x), DenseJacobian(torch.diag_embed(self.slope(x)))


def linear_map(ratio: float, z: Tensor) -> CountingMap:
    """g(x) = a x, whose root is z / (1 + a)."""
    return CountingMap(lambda x: ratio * x, lambda x: torch.full_like(x, ratio), z)


def sine_map(lipschitz: float, z: Tensor) -> CountingMap:
    """g(x) = L sin x, |g'| <= L."""
    return CountingMap(lambda x: lipschitz * x.sin(), lambda x: lipschitz * x.cos(), z)


def row_norm(x: Tensor) -> Tensor:
    return x.double().norm(dim=-1)


# --- true errors --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [-0.99, -0.5, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", SOLVERS)
def test_linear_roots(name: str, ratio: float, dtype: torch.dtype):
    """Root z / (1 + a). Mutants: a squared step as the criterion (residual-flows: errors of
    1e-3 to .9), a bound without 1 / (1 - L)."""
    z = normal(50, 3, dtype=dtype) * torch.logspace(-6, 3, 50, dtype=dtype)[:, None]
    ratio = float(torch.tensor(ratio, dtype=dtype))  # what the map multiplies by
    solution = solve(linear_map(ratio, z), z, SOLVERS[name](), lipschitz=abs(ratio))
    assert solution.converged.all()
    assert solution.value.dtype == dtype
    error = row_norm(solution.value.double() - z.double() / (1 + ratio))
    assert (error <= solution.error_bound.double()).all()
    rounding = torch.finfo(dtype).eps * (row_norm(z) + row_norm(solution.value))
    allowed = default_atol(dtype) + 64 * rounding / (1 - abs(ratio))
    assert (solution.error_bound.double() <= allowed).all()


@pytest.mark.parametrize("atol", [1e-2, 1e-5, 1e-10, None])
@pytest.mark.parametrize(
    ("name", "lipschitz"),
    [("picard", 0.1), ("picard", 0.95), ("newton", 0.1), ("newton", 0.95), ("newton", 0.9999)],
)
def test_error_bound_is_never_below_the_error(name: str, lipschitz: float, atol: float | None):
    """x* chosen first, z = x* + L sin x*. Mutants: an error bound that is the residual, or
    that forgets what rounding leaves open."""
    root = normal(300, 2) * torch.logspace(-4, 2, 300, dtype=torch.float64)[:, None]
    z = root + lipschitz * root.sin()
    solution = solve(sine_map(lipschitz, z), z, SOLVERS[name](atol=atol), lipschitz=lipschitz)
    assert solution.converged.all()
    error = row_norm(solution.value - root)
    assert (error <= solution.error_bound).all()
    if atol is not None and atol >= 1e-5:
        assert (solution.error_bound <= atol * 1.01).all()
    # The residual is what was measured at the value returned, not at the iterate before.
    residual = row_norm(z - lipschitz * solution.value.sin() - solution.value)
    torch.testing.assert_close(solution.residual, residual, atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_error_bound_holds_when_stopped_early(name: str):
    """Any iterate of any method has a proved error. Mutant: a bound only for the converged."""
    root = 3 * normal(40, 2)
    z = root + 0.9 * root.sin()
    for max_steps in (1, 2, 3, 5, 9):
        solution = solve(sine_map(0.9, z), z, SOLVERS[name](max_steps=max_steps), lipschitz=0.9)
        # A step is one evaluation; more where a line search or the guard turn it down.
        assert (solution.steps <= 1 + 5 * max_steps).all()
        assert (row_norm(solution.value - root) <= solution.error_bound).all()
        assert (solution.error_bound[solution.converged] <= 1e-11).all()
        assert (solution.error_bound[~solution.converged] > 1e-13).all()


def test_tolerance_tightens_the_answer():
    root = normal(20, 2)
    z = root + 0.9 * root.sin()
    errors = [
        row_norm(solve(sine_map(0.9, z), z, Picard(atol=atol), lipschitz=0.9).value - root).max()
        for atol in (1e-1, 1e-4, 1e-8)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1e-8


def test_newton_needs_few_steps():
    """solvers.md: 5-7 evaluations at 1e-10, L = .91; each step is guarded by one more.

    Mutant: a transposed Jacobian, or I - J, which the guard would hide behind Picard steps.
    """
    branch = MLPBranch(6, (24,), lipschitz=0.91).double()
    for parameter in branch.parameters():
        parameter.data.mul_(10)
    z = 2 * normal(100, 6)
    newton = ResidualBlock(branch, solver=Newton(atol=1e-10)).solve_inverse(z)
    picard = ResidualBlock(branch, solver=Picard(atol=1e-10)).solve_inverse(z)
    torch.testing.assert_close(newton.value, picard.value, atol=1e-9, rtol=0)
    assert newton.steps.max() <= 9
    assert picard.steps.max() > 2 * newton.steps.max()


@pytest.mark.parametrize(
    ("size", "lipschitz", "rows", "expected"),
    [
        (64, 0.5, 512, Picard),
        (2, 0.98, 10_000, Newton),
        (32, 0.98, 2, Newton),
        (64, 0.98, 512, Anderson),
        (784, 0.9, 1, Anderson),
    ],
)
def test_auto_hands_its_limits_on(size: int, lipschitz: float, rows: int, expected: type[Solver]):
    """Mutant: a choice that forgets the tolerance."""
    chosen = Auto(atol=1e-3, max_steps=7).choose(size, lipschitz, rows)
    assert type(chosen) is expected
    assert (chosen.atol, chosen.max_steps) == (1e-3, 7)


# --- rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_converged_rows_leave_the_batch(name: str):
    """999 easy rows beside a hard one. Mutant: no compaction (rows = calls x 1000)."""
    z = torch.zeros(1000, 2, dtype=torch.float64)
    z[500] = 5.0
    problem = sine_map(0.99, z)
    solution = solve(problem, z, SOLVERS[name](), lipschitz=0.99)
    assert solution.converged.all()
    assert solution.steps[500] > 3
    assert (solution.steps[:500] == 1).all()
    # Newton evaluates a row twice a step: its linearisation, and the proposal.
    assert problem.counter["rows"] <= 1000 + 4 * solution.steps[500]
    assert (solution.value[:500] == 0).all()


def test_a_plain_function_of_the_whole_batch_is_solved_as_well():
    """Mutant: compacted rows that meet other rows' z."""
    ratios = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)[:, None]
    z = normal(7, 2)
    solution = solve(lambda x: z - ratios * x, z, Picard(), lipschitz=0.9)
    torch.testing.assert_close(solution.value, z / (1 + ratios), atol=1e-11, rtol=0)
    assert len(set(solution.steps.tolist())) > 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", SOLVERS)
def test_one_bad_row_is_the_only_one_named(name: str, bad: float):
    """Mutants: a batch-wide norm (all rows fail), NaN taken for converged, a bare tensor."""
    block = ResidualBlock(MLPBranch(2, (8,), lipschitz=0.9), solver=SOLVERS[name]()).double()
    x = normal(5, 2)
    z, _ = block(x)
    z[3, 1] = bad
    solution = block.solve_inverse(z)
    assert solution.converged.tolist() == [True, True, True, False, True]
    good = solution.converged
    torch.testing.assert_close(solution.value[good], x[good], atol=1e-11, rtol=0)
    assert not solution.error_bound[3] < math.inf  # infinite or NaN, never a finite promise
    with pytest.raises(ConvergenceError, match=r"1 of 5 rows .*\(rows 3\)") as caught:
        block.inverse(z)
    assert isinstance(caught.value.solution, Solution)
    assert caught.value.solution.converged.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_does_not_depend_on_its_neighbours(name: str):
    z = normal(6, 3) * torch.tensor([1.0, 100, 1, 1e-3, 1, 10], dtype=torch.float64)[:, None]
    together = solve(sine_map(0.95, z), z, SOLVERS[name](), lipschitz=0.95)
    for i in range(6):
        row = z[i : i + 1]
        alone = solve(sine_map(0.95, row), row, SOLVERS[name](), lipschitz=0.95)
        torch.testing.assert_close(alone.value[0], together.value[i], atol=1e-12, rtol=0)
        assert together.converged[i] == alone.converged[0]


@pytest.mark.parametrize("event", [(), (2,), (2, 3, 4)])
def test_event_dimensions(event: tuple[int, ...]):
    """Mutant: a norm over the last dimension of an image."""
    z = normal(5, *event)
    solution = solve(
        lambda x: z - 0.9 * x.sin(), z, Picard(atol=1e-6), lipschitz=0.9, event_dim=len(event)
    )
    assert solution.value.shape == z.shape
    gap = (z - 0.9 * solution.value.sin() - solution.value).reshape(5, -1).norm(dim=1)
    torch.testing.assert_close(solution.residual, gap, atol=1e-15, rtol=1e-12)
    assert (gap <= 0.1 * 1e-6).all()
    for name in ("error_bound", "residual", "steps", "converged"):
        assert getattr(solution, name).shape == (5,)


# --- failure ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_a_map_that_does_not_contract_is_found_out(name: str):
    """Declared .5, true 2: a two-cycle and a divergence. Mutants: giving up silently
    (residual-flows, FrEIA, torchflows), NaN or infinity returned as a value."""
    z = 1 + normal(4, 2).abs()
    sine = CountingMap(lambda x: 2 * x.sin(), lambda x: 2 * x.cos(), z)
    linear = CountingMap(lambda x: -2 * x, lambda x: torch.full_like(x, -2.0), z)
    if name == "picard":
        problems = [sine, linear]
    else:  # Newton meets its end in the linear map only where its guard turns it down
        problems = [CountingMap(lambda x: 2 * x.sin(), lambda x: torch.zeros_like(x), z)]
    for problem in problems:
        solution = solve(problem, z, SOLVERS[name](), lipschitz=0.5)
        assert not solution.converged.any()
        with pytest.raises(ConvergenceError, match="4 of 4 rows did not converge") as caught:
            solution.check("test")
        assert caught.value.solution is solution
        assert "certify" in str(caught.value)


class LyingBranch(Branch):
    """g(x) = 2 sin x that calls itself a contraction of .5; also its own prepared form."""

    lipschitz = 0.5
    event_shape = (2,)

    def prepare(self, context: Tensor | None = None) -> LyingBranch:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.sin()

    def rows(self, index: Tensor) -> LyingBranch:
        return self

    def certified_bound(self) -> float:
        return math.inf


def test_a_lying_branch_is_found_out():
    """``inverse`` raises and the error carries the whole solution; nothing certifies it."""
    block = ResidualBlock(LyingBranch(), solver=Picard())
    z = 1 + normal(20, 2).abs()
    with pytest.raises(ConvergenceError) as caught:
        block.inverse(z)
    assert caught.value.solution.value.shape == (20, 2)
    assert not certify(block).certified


@pytest.mark.parametrize("name", SOLVERS)
def test_max_steps_ends_in_an_error(name: str):
    branch = MLPBranch(2, (8,), lipschitz=0.99)
    for parameter in branch.parameters():
        parameter.data.mul_(10)
    block = ResidualBlock(branch, solver=SOLVERS[name](max_steps=1)).double()
    solution = block.solve_inverse(normal(3, 2))
    assert not solution.converged.any()
    assert (solution.steps <= 3).all()
    with pytest.raises(ConvergenceError, match="max_steps"):
        block.inverse(normal(3, 2))


def test_many_failures_are_not_all_listed():
    solution = solve(
        linear_map(0.9, normal(30, 2)), normal(30, 2), Picard(max_steps=1), lipschitz=0.9
    )
    with pytest.raises(ConvergenceError, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7, \.\.\."):
        solution.check("test")


@pytest.mark.parametrize("lipschitz", [-0.1, 1.0, 2.0, math.nan])
def test_no_solve_without_a_bound_below_one(lipschitz: float):
    with pytest.raises(NotContractiveError, match="lipschitz"):
        solve(lambda x: x, normal(1, 1), Picard(), lipschitz=lipschitz)


def test_newton_says_what_it_needs():
    z = normal(2, 2)
    with pytest.raises(ConfigurationError, match="Picard"):
        solve(lambda x: z - 0.5 * x, z, Newton(), lipschitz=0.5)


# --- edges --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_empty_batch(name: str):
    z = torch.zeros(0, 3, dtype=torch.float64)
    solution = solve(linear_map(0.5, z), z, SOLVERS[name](), lipschitz=0.5)
    assert solution.value.shape == (0, 3)
    assert solution.converged.shape == (0,)
    block = ResidualBlock(MLPBranch(3, (8,)), solver=SOLVERS[name]()).double()
    x, ladj = block.inverse(z.requires_grad_())
    assert x.shape == (0, 3)
    assert ladj.shape == (0,)
    (x.sum() + ladj.sum()).backward()


@pytest.mark.parametrize("ratio", [-0.9999, 0.9999])
def test_one_dimension_near_the_limit(ratio: float):
    """d = 1, L = .9999, both ends of the slopes (1e-4 and 2). Mutant: a fixed step limit."""
    z = normal(20, 1)
    solution = solve(linear_map(ratio, z), z, Newton(), lipschitz=0.9999)
    assert solution.converged.all()
    error = row_norm(solution.value - z / (1 + ratio))
    assert (error <= solution.error_bound).all()
    assert (solution.error_bound <= 3e-11 * row_norm(solution.value)).all()


def test_picard_near_the_limit():
    """Thousands of steps, within Banach's limit. Mutant: giving up after 1,000."""
    z = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    solution = solve(linear_map(-0.995, z), z, Picard(atol=1e-6), lipschitz=0.995)
    assert solution.converged.all()
    assert 3_000 < solution.steps.min()
    assert (row_norm(solution.value - 200 * z) <= 1e-6).all()


def test_banach_limit_is_enough_and_finite():
    """A contraction cannot run out of steps; a map that cannot converge stops near there."""
    z = torch.full((1, 1), 4.0, dtype=torch.float64)
    sharp = linear_map(0.9, z)  # the slowest contraction of bound .9
    solution = solve(sharp, z, Picard(atol=1e-9), lipschitz=0.9)
    assert solution.converged.all()
    limit = math.log(4 * 0.9 / (0.1 * 1e-9)) / -math.log(0.9)
    assert abs(int(solution.steps[0]) - limit) < 3


def test_two_points_too_far_apart_give_a_map_away():
    """Declared .9, true 1 and 1.1: found out within a step, before any limit.

    Mutants: no comparison (thousands of steps, or a root of a map whose bound is wrong taken
    for proved); a comparison that rounding near the root sets off.
    """
    z = torch.full((3, 1), 4.0, dtype=torch.float64)
    ratios = torch.tensor([[1.0], [0.9], [1.1]], dtype=torch.float64)
    for solver in (Picard(), Anderson(), Broyden()):
        solution = solve(lambda x: z - ratios * x, z, solver, lipschitz=0.9)
        assert solution.contradicted.tolist() == [True, False, True]
        assert solution.converged.tolist() == [False, True, False]
        assert (solution.steps[[0, 2]] <= 3).all()
        assert solution.error_bound[0] == math.inf
        with pytest.raises(ConvergenceError, match=r"rows 0, 2.*no contraction"):
            solution.check("test")


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("features", [1, 2, 8])
@pytest.mark.parametrize("name", SOLVERS)
def test_float32_blocks_far_out(name: str, features: int, sigma: float):
    """L = .99, weights at the bound: no false alarm, and an error within the reported bound
    (the reference inverts the same z and float32 weights in float64).

    Mutants: a tolerance below what float32 can resolve, which never converges; a bound that
    leaves rounding out.
    """
    torch.manual_seed(features)
    block = ResidualBlock(MLPBranch(features, (32, 32), lipschitz=0.99), solver=SOLVERS[name]())
    for parameter in block.branch.parameters():
        parameter.data.mul_(3)
    with torch.no_grad():
        x = sigma * normal(200, features, dtype=torch.float32)
        z, _ = block(x)
        solution = block.solve_inverse(z).check("float32")
        prepared = block.branch.prepare()
    exact = ResidualBlock(block.branch, solver=Newton()).double()
    # prepare() in float32 and in float64 differ by rounding: the float64 branch must have the
    # weights that float32 used, below a bound that leaves them as they are.
    for layer, map_ in zip(exact.branch.layers, prepared.maps, strict=True):  # pyright: ignore
        layer.weight.data.copy_(map_.weight)
    exact.branch.lipschitz = 0.995
    reference = exact.solve_inverse(z.double()).check("float64")
    error = row_norm(solution.value.double() - reference.value)
    assert (error <= solution.error_bound.double() + reference.error_bound).all()
    ulp = torch.finfo(torch.float32).eps * row_norm(reference.value)
    assert (error <= ulp).all()  # as near as float32 comes
    assert (solution.error_bound.double() <= 10 * error.clamp_min(ulp / 10)).all()


# --- gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_gradient_of_the_inverse_is_that_of_500_steps(name: str):
    """In z, context and every weight, through x and ladj, with a weight for each row.

    Mutants: a one-step or phantom gradient, the adjoint with J instead of J^T, ladj's own
    dependence on x forgotten.
    """
    torch.manual_seed(0)
    branch = MLPBranch(3, (10, 9), "clipswish", lipschitz=0.9, context=2).double()
    for parameter in branch.parameters():
        parameter.data.mul_(3)
    block = ResidualBlock(branch, Exact(), Exact(), SOLVERS[name]())
    z = normal(5, 3).requires_grad_()
    context = normal(5, 2, seed=1).requires_grad_()
    row, entry = normal(5, seed=2), normal(5, 3, seed=3)
    leaves = [z, context, *branch.parameters()]

    x, ladj = block.inverse(z, context)
    found = torch.autograd.grad((entry * x).sum() + (row * ladj).sum(), leaves)

    prepared = branch.prepare(context)
    unrolled = z
    for _ in range(500):
        unrolled = z - prepared(unrolled)
    _, jacobian = linearize(prepared, unrolled)
    log_det = torch.linalg.slogdet(torch.eye(3, dtype=torch.float64) + jacobian.dense()).logabsdet
    expected = torch.autograd.grad((entry * unrolled).sum() - (row * log_det).sum(), leaves)

    torch.testing.assert_close(x, unrolled, atol=1e-11, rtol=0)
    torch.testing.assert_close(ladj, -log_det, atol=1e-11, rtol=0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def steep_block(scale: float = 10.0) -> ResidualBlock:
    """A 1-D block near g(x) = -L x at 0, L = .99: dx/dz is above 90 there."""
    block = ResidualBlock(MLPBranch(1, (4,), "softplus", lipschitz=0.99), solver=Newton()).double()
    first, last = (layer for layer in block.branch.layers)  # pyright: ignore
    first.weight.data.fill_(scale)
    first.bias.data.fill_(30.0)  # where softplus has slope 1
    last.weight.data.fill_(-scale)
    return block


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_near_the_limit_in_any_units(sign: float):
    """Rows weighted by 1e-12 ... 1e12 in one batch, each as exact as if alone.

    Mutants: an absolute adjoint tolerance; one tolerance for the batch, set by its largest
    row, under which the small rows' gradients are noise.
    """
    block = steep_block()
    scale = sign * torch.tensor([1e-12, 0.0, 1.0, 1e12], dtype=torch.float64)
    z = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    x, _ = block.inverse(z)
    (gradient,) = torch.autograd.grad((scale * x[:, 0]).sum(), z)
    with torch.no_grad():
        _, jacobian = linearize(block.branch.prepare(), x.detach())
    expected = scale / (1 + jacobian.dense()[:, 0, 0])
    assert (expected / scale)[0] > 90
    torch.testing.assert_close(gradient[:, 0], expected, atol=0, rtol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_adjoint_that_cannot_converge_raises(bad: float):
    """Row 2's incoming gradient is bad. Mutants: a backward that gives up silently (ImpFlow at
    L >= .9); an infinite tolerance under which every row counts as converged."""
    branch = MLPBranch(2, (8,), lipschitz=0.99).double()
    block = ResidualBlock(branch, solver=Newton())
    z = normal(4, 2).requires_grad_()
    x, _ = block.inverse(z)
    weights = torch.ones_like(x)
    weights[2] = bad
    with pytest.raises(ConvergenceError, match=r"adjoint.*1 of 4 rows.*\(rows 2\)"):
        torch.autograd.grad(x, z, weights)


@pytest.mark.parametrize("name", SOLVERS)
def test_second_derivatives_through_the_inverse(name: str):
    """gradcheck and gradgradcheck of x and ladj in z, context and every weight.

    Mutants: an adjoint whose solution is a constant in the second pass; a root that forgets
    there that it moves with the weights.
    """
    torch.manual_seed(1)
    branch = MLPBranch(2, (3,), "tanh", lipschitz=0.9, context=1).double()
    for layer in branch.layers:  # just below the norm at which it would be divided by its bound
        assert isinstance(layer, LipschitzLinear)
        layer.weight.data *= 0.94 / torch.linalg.matrix_norm(layer.weight.data, 2)
    block = ResidualBlock(branch, Exact(), Exact(), SOLVERS[name](atol=1e-14))
    names = [n for n, _ in branch.named_parameters()]

    def inverse(z: Tensor, context: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        replaced = {f"block.branch.{n}": w for n, w in zip(names, weights, strict=True)}
        return torch.func.functional_call(_Inverse(block), replaced, (z, context))

    z, context = normal(2, 2), normal(2, 1, seed=1)
    leaves = [t.detach().clone().requires_grad_() for t in (z, context, *branch.parameters())]
    assert torch.autograd.gradcheck(inverse, leaves, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(inverse, leaves, atol=1e-6, fast_mode=True)


def test_third_derivatives_are_refused():
    """They would be wrong. Mutant: no check."""
    block = ResidualBlock(MLPBranch(2, (3,), "tanh", lipschitz=0.9)).double()
    z = normal(2, 2).requires_grad_()
    (first,) = torch.autograd.grad(block.inverse(z)[0].sum(), z, create_graph=True)
    with pytest.raises(ConfigurationError, match="third derivatives"):
        torch.autograd.grad(first.square().sum(), z, create_graph=True)


class _Inverse(torch.nn.Module):
    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.block.inverse(z, context)


def saved_numbers(function: Callable[[], Tensor]) -> int:
    """Count what autograd keeps for the backward pass of a result."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(tensor.numel() for tensor in kept.values())


def test_the_inverse_keeps_nothing_of_the_solve():
    """4 evaluations and 20 leave the same behind.

    Mutant: a backward through the iterations.
    """
    branch = MLPBranch(8, (32,), lipschitz=0.95).double()
    for parameter in branch.parameters():
        parameter.data.mul_(10)
    z = normal(64, 8)

    def root(atol: float) -> tuple[Tensor, int]:
        block = ResidualBlock(branch, solver=Picard(atol=atol))
        solution = block.solve_inverse(z)
        return block.inverse(z)[0], int(solution.steps.max())

    few, many = root(1.0)[1], root(1e-12)[1]
    assert many >= 5 * few
    assert saved_numbers(lambda: root(1.0)[0]) == saved_numbers(lambda: root(1e-12)[0])


# --- hostile ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("call", [2, 3, 5])
def test_nan_in_the_middle_of_a_solve(name: str, call: int):
    """Row 1 turns to NaN at some call; the others do not notice.

    Mutants: NaN as a value, a bound for a row that met NaN, neighbours that fail as well.
    """
    z = 3 * normal(4, 2)
    calls = {"count": 0}
    keep = torch.ones(4, 1, dtype=torch.float64)
    keep[1] = math.nan

    def g(x: Tensor) -> Tensor:
        calls["count"] += 1
        return 0.9 * x.sin()

    class Spoiled(CountingMap):
        def __init__(self, z: Tensor, spoil: Tensor) -> None:
            super().__init__(g, lambda x: 0.9 * x.cos(), z)
            self.spoil = spoil

        def __call__(self, x: Tensor) -> Tensor:
            value = super().__call__(x)
            return value * self.spoil if calls["count"] >= call else value

        def rows(self, index: Tensor) -> Spoiled:
            return Spoiled(self.z[index], self.spoil[index])

    solution = solve(Spoiled(z, keep), z, SOLVERS[name](), lipschitz=0.9)
    assert solution.converged.tolist() == [True, False, True, True]
    assert solution.value.isfinite().all()  # the last good iterate
    assert solution.error_bound[1] == math.inf
    gap = z - 0.9 * solution.value.sin() - solution.value
    assert (row_norm(gap)[[0, 2, 3]] < 1e-13).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision(name: str, dtype: torch.dtype):
    """The root of the half-precision weights, rounded once: nothing else is lost.

    Mutants: a search in steps of half precision, which never meets its tolerance; a tolerance
    of 1e-6 that half precision cannot meet; a bound rounded down.
    """
    torch.manual_seed(0)
    branch = MLPBranch(5, (16, 16), lipschitz=0.9)
    for parameter in branch.parameters():
        parameter.data.mul_(3)
    block = ResidualBlock(branch, solver=SOLVERS[name]()).to(dtype)
    z = normal(50, 5, dtype=dtype)
    with torch.no_grad():
        solution = block.solve_inverse(z).check("half")
        exact = branch.prepare().in_dtype(torch.float64)
    assert solution.value.dtype == dtype
    assert exact.certified_bound() < 0.9
    x = solution.value.double()
    reference = solve(lambda x: z.double() - exact(x), x, Anderson(), lipschitz=0.9).check("")
    error = row_norm(reference.value - x)
    assert (error <= solution.error_bound.double()).all()
    assert (error <= torch.finfo(dtype).eps * row_norm(x)).all()


# --- a hundred blocks -----------------------------------------------------------------------


def blocks_at_their_bound(count: int, features: int) -> list[ResidualBlock]:
    torch.manual_seed(0)
    blocks = []
    for _ in range(count):
        branch = MLPBranch(features, (32, 32), lipschitz=0.99)
        for layer in branch.layers:
            assert isinstance(layer, LipschitzLinear)
            layer.weight.data.mul_(10)
        blocks.append(ResidualBlock(branch))
    return blocks


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
def test_a_hundred_blocks_lose_no_more_than_they_must(sigma: float):
    """L = .99, float32: at most twice the error of the same z inverted in float64 with the same
    weights; block by block the true error is below the bound, the median bound below 10 times it.

    Mutants: no refinement in float64 (bounds 100 times the error); a bound without the rounding
    of the value (errors above it); a tolerance of 1e-6 at every scale.
    """
    blocks = blocks_at_their_bound(100, 8)
    x = sigma * normal(50, 8, dtype=torch.float32)
    true, reported = [], []
    with torch.no_grad():
        z = x
        for block in blocks:
            z = block(z)[0]
        ours, exact = z, z.double()
        for block in reversed(blocks):
            branch = block.branch.prepare().in_dtype(torch.float64)  # pyright: ignore

            def root(z: Tensor, branch: Callable[[Tensor], Tensor] = branch) -> Tensor:
                return solve(lambda y: z - branch(y), z, Anderson(), lipschitz=0.99).check("").value

            exact = root(exact)
            solution = block.solve_inverse(ours).check("")
            true.append(row_norm(solution.value.double() - root(ours.double())))
            reported.append(solution.error_bound.double())
            ours = solution.value
    error, irreducible = row_norm(ours.double() - x), row_norm(exact - x.double())
    assert error.max() <= 2 * irreducible.max()
    assert error.median() <= 2 * irreducible.median()
    ratio = torch.stack(reported) / torch.stack(true)
    assert (ratio >= 1).all()
    assert ratio.median() <= 10


def test_close_to_one_from_either_side():
    """L = .9999 in 16 dimensions, both ends of the slopes, far out: converged, and right.

    Mutants: a fixed limit of steps; a guard that refuses every accelerated step near L = 1.
    """
    slopes = torch.linspace(-0.9999, 0.9999, 16, dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        z = scale * normal(5, 16)
        solution = solve(lambda x, z=z: z - slopes * x, z, Anderson(), lipschitz=0.9999)
        assert solution.converged.all()
        assert (solution.steps < 500).all()  # Picard: 150,000
        error = row_norm(solution.value - z / (1 + slopes))
        assert (error <= solution.error_bound).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_no_large_residual_for_rounding(dtype: torch.dtype):
    """``x -> y - x`` jumps to and fro. Mutant: 1,024 units in the last place, all of x."""
    y = torch.full((3, 2), 3.0, dtype=dtype)
    assert not solve(lambda x: y - x, 1.3 * y, Picard(), lipschitz=0.9).converged.any()


def test_a_root_that_overflows_its_dtype_has_not_converged():
    """Mutant: the largest number of float32 stands for that of float16."""
    torch.manual_seed(0)
    branch = MLPBranch(2, (16,), lipschitz=0.9)
    branch.get_parameter("layers.1.bias").data[0] = -6e4
    block = ResidualBlock(branch).half()
    z = torch.tensor([[3e4, 0.0], [-3e4, 0.0]], dtype=torch.float16)
    solution = block.solve_inverse(z)  # at x = 90,000 and 30,000
    assert solution.converged.tolist() == [False, True]
    with pytest.raises(ConvergenceError, match="rows 0"):
        solution.check("half")


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Newton()])
def test_inner_values_far_larger_than_x(solver: Solver, scale: float):
    """Shifts of 1e6 leave rounding of 1e-10 in g: no contraction is suspected, no solve endless.

    Mutants: rounding measured by |x| alone (a third of the rows "contradicted", or 30,000 steps);
    a bound that forgets it.
    """
    torch.manual_seed(0)
    branch = MLPBranch(2, (128,), "elu", lipschitz=0.99).double()
    first, last = (layer for layer in branch.layers)
    assert isinstance(first, LipschitzLinear)
    assert isinstance(last, LipschitzLinear)
    first.weight.data.mul_(10)
    last.weight.data.mul_(10)
    first.bias.data.normal_().mul_(scale)
    with torch.no_grad():
        last.bias.data.sub_(branch.prepare()(torch.zeros(1, 2, dtype=torch.float64))[0])
        x = normal(64, 2)
        block = ResidualBlock(branch, solver=solver)
        solution = block.solve_inverse(block(x)[0]).check("")
    assert (solution.steps < 3000).all()
    assert (row_norm(solution.value - x) <= solution.error_bound + 1e-15 * scale).all()


def test_a_plain_function_needs_no_derivative():
    """Whatever its size. Mutant: Newton chosen for a map that offers no Jacobian."""
    for size, rows in ((1, 3), (2, 500), (16, 2), (64, 9)):
        z = normal(rows, size)
        solution = solve(lambda x, z=z: z - 0.9 * x.sin(), z, Auto(), lipschitz=0.9)
        assert solution.converged.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("features", [1, 3, 6])
def test_half_precision_there_and_back_with_gradients(features: int, dtype: torch.dtype):
    """Both log-determinants and a gradient. Mutant: a raw error of torch's linear algebra."""
    torch.manual_seed(0)
    block = ResidualBlock(MLPBranch(features, (16,), lipschitz=0.9), Exact(), Exact()).to(dtype)
    x = normal(8, features, dtype=dtype)
    z, ladj = block(x)
    z = z.detach().requires_grad_()
    back, inverse_ladj = block.inverse(z)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(back, x, atol=16 * eps, rtol=16 * eps)
    torch.testing.assert_close(inverse_ladj, -ladj, atol=16 * eps, rtol=16 * eps)
    (back.sum() + inverse_ladj.sum()).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_warm_start_saves_evaluations(name: str):
    """From the root of a z close by, to the same root. Mutant: a start that is not used."""
    torch.manual_seed(0)
    branch = MLPBranch(6, (32,), lipschitz=0.95).double()
    for parameter in branch.parameters():
        parameter.data.mul_(10)
    block = ResidualBlock(branch, solver=SOLVERS[name](atol=1e-8))
    z = 3 * normal(40, 6)
    cold = block.solve_inverse(z).check("cold")
    near = block.solve_inverse(z + 1e-4 * normal(40, 6, seed=1)).check("near")
    warm = block.solve_inverse(z, start=near.value).check("warm")
    assert (row_norm(warm.value - cold.value) <= warm.error_bound + cold.error_bound).all()
    assert warm.steps.sum() < 0.8 * cold.steps.sum()
    with pytest.raises(ShapeError, match="start"):
        block.solve_inverse(z, start=z[:3])
