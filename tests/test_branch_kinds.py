"""Kinds of branches beside the plain ones: almost orthogonal, sandwich, dense, mixed norms.

Prepared float32 weights are examined in float64: a certificate may not be below any singular
value of a dense Jacobian, nor below the stretch of any pair of points, by more than 1e-12.
"""

import functools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

import contraflow as cf
from contraflow import registry
from contraflow.cli._config import add_model_and_data, instantiate
from contraflow.cli._parser import Parser
from contraflow.errors import ConfigurationError, NotContractiveError, ShapeError
from contraflow.jacobian import linearize
from contraflow.lipschitz import (
    ACTIVATIONS,
    AOL,
    AOLConv2d,
    AOLLinear,
    Branch,
    ConvBranch,
    DenseConvBranch,
    DenseMLPBranch,
    LipschitzLinear,
    MixedNormConvBranch,
    MixedNormMLPBranch,
    MLPBranch,
    PreparedChain,
    PreparedDense,
    PreparedLinear,
    PreparedSandwich,
    SandwichBranch,
    activation,
    certified_chain_norm,
    certified_conv_norm,
    certified_norm,
    mixed_norm_estimate,
    overlap_bound,
)
from contraflow.lipschitz import aol as aol_module
from contraflow.lipschitz.composition import _is_proved
from contraflow.lipschitz.layers import PreparedMap
from contraflow.lipschitz.sandwich import cayley
from contraflow.testing import CASES, INVARIANTS, Case, check_compiled, invariants_of, randomise_
from contraflow.testing.branches import BRANCH_KINDS, WEIGHT_LAWS, random_branch, redraw_
from contraflow.transforms import ResidualBlock

Build = Callable[..., Branch]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.detach().double(), 2).item()


def context_of(branch: Branch, rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor | None:
    features = getattr(branch, "context", 0)
    return normal(rows, features, seed=seed).to(dtype) if features else None


@torch.no_grad()
def largest_gain(branch: Branch, seed: int = 0, rows: int = 4) -> tuple[float, float]:
    """Return the largest gain found, in float64 of the prepared weights, and the certificate."""
    dtype = next(branch.parameters()).dtype
    context = context_of(branch, 1, dtype, seed)
    prepared = branch.prepare(context)
    assert isinstance(prepared, PreparedChain | PreparedDense)
    exact, bound = prepared.in_dtype(torch.float64), prepared.certified_bound()
    gains = [0.0]
    for scale in (0.3, 1.0, 10.0):
        a = scale * normal(rows, *branch.event_shape, seed=seed + 1)
        for row in a:
            matrix = linearize(exact, row[None], len(branch.event_shape))[1].dense()
            gains.append(torch.linalg.svdvals(matrix).max().item())
        for step in (1e-3, 1.0, 30.0):
            b = a + step * normal(rows, *branch.event_shape, seed=seed + 2)
            moved = (exact(a) - exact(b)).flatten(1).norm(dim=1)
            gains.append((moved / (a - b).flatten(1).norm(dim=1)).max().item())
    return max(gains), bound


# --- every kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("law", WEIGHT_LAWS)
@pytest.mark.parametrize("kind", BRANCH_KINDS)
def test_certificate_is_above_every_gain_and_below_the_bound_asked_for(kind: str, law: str):
    """Mutants: AOL without the square root of its sums; a sandwich whose Cayley transform is not
    orthogonal (one solve, no refinement, in float32); a dense layer whose eta is not on the
    circle; a last dense layer that may have norm 1."""
    rng = generator(sum(map(ord, kind + law)))
    for seed in range(3):
        branch = random_branch(kind, rng, law)
        gain, bound = largest_gain(branch, seed)
        assert gain <= bound * (1 + 1e-12)
        assert bound <= branch.lipschitz
        if law != "sparse":  # which may cut every path
            assert (bound == 0) == (law == "zero")


SMALL: dict[str, Callable[[int], Branch]] = {
    "aol": lambda m: MLPBranch(3, (8, 6), "cpila", 0.9, m, AOL()),
    "aol-conv": lambda m: ConvBranch((2, 3, 4), (4, 3), (3, 1, 3), "elu", 0.9, m, AOL()),
    "sandwich": lambda m: SandwichBranch(3, (8, 6, 5), "elu", 0.9, m),
    "dense": lambda m: DenseMLPBranch(3, (6, 5), "clipswish", 0.9, m),
    "dense-aol": lambda m: DenseMLPBranch(3, (6, 5), "elu", 0.9, m, AOL()),
    "dense-conv": lambda m: DenseConvBranch((2, 3, 4), (3, 4), None, "clipswish", 0.9, m),
}


@pytest.mark.parametrize("kind", SMALL)
def test_trained_branches_stay_below_their_bound(kind: str):
    """Forty steps that push the gain up, at a learning rate which throws the weights about.

    Mutant: a norm that is computed once, when the branch is built.
    """
    torch.manual_seed(0)
    branch = SMALL[kind](0)
    optimiser = torch.optim.Adam(branch.parameters(), lr=0.1)
    x = normal(16, *branch.event_shape, seed=1).float()
    before = largest_gain(branch)[0]
    for _ in range(40):
        optimiser.zero_grad()
        y = branch.prepare()(x)
        (-(y - y.roll(1, 0)).square().sum()).backward()
        optimiser.step()
    gain, bound = largest_gain(branch)
    assert before < gain <= bound * (1 + 1e-12)
    assert bound <= 0.9


@pytest.mark.parametrize("kind", SMALL)
def test_context_shifts_and_does_not_enter_the_bound(kind: str):
    """Mutants: a context that is ignored; one that scales a weight."""
    torch.manual_seed(0)
    branch = SMALL[kind](2)
    x = normal(1, *branch.event_shape).float()
    near, far = (branch.prepare(scale * torch.ones(1, 2)) for scale in (0.0, 100.0))
    assert near.certified_bound() == far.certified_bound()
    assert not torch.allclose(near(x), far(x))
    with pytest.raises(ShapeError, match="context"):
        branch.prepare()
    many = branch.prepare(torch.tensor([[0.0, 0.0], [100.0, 100.0]]))
    torch.testing.assert_close(many.rows(torch.tensor([1]))(x), far(x))


@pytest.mark.parametrize("kind", SMALL)
def test_enforcing_the_bound_keeps_the_function(kind: str):
    """Mutant: writing an almost-orthogonal weight back, which a second pass shrinks again."""
    torch.manual_seed(0)
    branch = redraw_(SMALL[kind](2).double(), "large", generator())
    x, context = normal(4, *branch.event_shape), normal(4, 2)
    before = branch.prepare(context)(x)
    branch.enforce_bounds_()
    torch.testing.assert_close(branch.prepare(context)(x), before, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("kind", [*SMALL, "dense-one", "mixed", "mixed-conv"])
def test_jacobian_is_the_derivative(kind: str):
    """Products, matrix, rows and trace against autograd. Mutants: a transpose that forgets the
    kept part of a dense layer, or one half of a concatenation."""
    torch.manual_seed(0)
    branch = (one_dense_layer() if kind == "dense-one" else built(kind)).double()
    context = context_of(branch, 3, torch.float64)
    x, event = normal(3, *branch.event_shape, seed=1), len(branch.event_shape)
    prepared = branch.prepare(context)
    value, jacobian = linearize(prepared, x, event)
    assert type(jacobian).__name__ != "FunctionJacobian"
    torch.testing.assert_close(value, prepared(x))
    size = x[0].numel()
    expected = torch.autograd.functional.jacobian(lambda v: prepared(v).sum(0), x)
    assert isinstance(expected, Tensor)
    expected = expected.reshape(size, 3, size).movedim(1, 0)
    torch.testing.assert_close(jacobian.dense(), expected, atol=1e-12, rtol=1e-12)
    v = normal(2, *x.shape, seed=2)[0]
    flat = v.reshape(3, size, 1)
    torch.testing.assert_close(jacobian.mv(v).reshape(3, size), (expected @ flat)[..., 0])
    torch.testing.assert_close(jacobian.rmv(v).reshape(3, size), (expected.mT @ flat)[..., 0])
    index = torch.tensor([2, 0])
    torch.testing.assert_close(jacobian.rows(index).dense(), expected[index])
    trace = jacobian.trace()
    without = {"dense", "dense-aol", "dense-conv", "sandwich", "mixed-conv"}
    assert (trace is None) == (kind in without)
    if trace is not None:
        torch.testing.assert_close(trace, expected.diagonal(dim1=1, dim2=2).sum(1))


def one_dense_layer() -> Branch:
    return DenseMLPBranch(3, (6,), "cpila", 0.9)


def built(kind: str) -> Branch:
    if not kind.startswith("mixed"):
        return SMALL[kind](2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is experimental")
        if kind == "mixed":
            return MixedNormMLPBranch(3, (6, 5), "lipswish", 0.9, 2)
        return MixedNormConvBranch((2, 3, 4), (3, 4), (3, 3, 1), "sine", 0.9, 2)


@pytest.mark.parametrize("kind", [*SMALL, "mixed", "mixed-conv"])
def test_double_holds_the_very_same_numbers(kind: str):
    """Mutant: weights normalised again in float64, or a lost shift."""
    torch.manual_seed(0)
    branch = built(kind)
    context = context_of(branch, 3, torch.float32)
    prepared = branch.prepare(context)
    assert isinstance(prepared, PreparedChain | PreparedDense)
    exact = prepared.in_dtype(torch.float64)
    assert type(exact) is type(prepared)
    for map_, other in zip(prepared.maps, exact.maps, strict=True):
        assert torch.equal(map_.weight.double(), other.weight)
    x = normal(3, *branch.event_shape)
    assert exact(x).dtype == torch.float64
    torch.testing.assert_close(prepared(x.float()).double(), exact(x), atol=1e-5, rtol=1e-5)
    # The slack for a scale that another stack rounds differently is that of the dtype.
    assert exact.certified_bound() == pytest.approx(prepared.certified_bound(), rel=2e-5)


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(SandwichBranch, 2, (4,), "elu"),
        functools.partial(DenseMLPBranch, 2, (4,), "elu"),
        functools.partial(DenseConvBranch, (1, 4, 4), (4,), None, "elu"),
        functools.partial(MixedNormMLPBranch, 2, (4,), "elu"),
        functools.partial(MixedNormConvBranch, (1, 4, 4), (4, 4), (3, 1, 3), "elu"),
    ],
)
@pytest.mark.parametrize("lipschitz", [1.0, math.inf, math.nan, 0.0, -0.5])
def test_bounds_that_do_not_contract_are_refused(build: Build, lipschitz: float):
    with pytest.raises(NotContractiveError, match=r"\(0, 1\)"):
        build(lipschitz)
    with pytest.raises(ConfigurationError, match="activation"):
        build.func(*build.args[:-1], "eluu", 0.9)  # pyright: ignore


@pytest.mark.parametrize("kind", ["residual-sandwich", "residual-dense"])
def test_one_graph_holds_the_whole_block(kind: str):
    """Mutant: a Cayley transform with a check of its result on the host."""
    check_compiled(CASES[kind](generator()))


# --- almost-orthogonal layers -------------------------------------------------------------


@pytest.mark.parametrize("law", WEIGHT_LAWS)
def test_almost_orthogonal_matrices_have_norm_at_most_one(law: str):
    """Mutants: rows rescaled instead of columns; sums without absolute values."""
    for seed, (m, n) in enumerate(((1, 1), (1, 7), (7, 1), (5, 5), (40, 3), (3, 40))):
        layer = AOLLinear(n, m, max_norm=0.7)
        layer.weight.data.copy_(WEIGHT_LAWS[law](layer.weight, generator(seed)))
        assert norm(layer.prepare().weight) <= 0.7
        assert norm(layer.prepare(0.3).weight) <= 0.3


def test_almost_orthogonal_matrices_keep_orthogonal_columns():
    """Orthogonal columns of any length reach the norm. Mutant: a looser factor (1 / sum)."""
    columns = torch.linalg.qr(normal(6, 4))[0] * torch.tensor([1.0, 10.0, 0.1, 3.0])
    layer = AOLLinear(4, 6, max_norm=0.7).double()
    layer.weight.data.copy_(columns)
    values = torch.linalg.svdvals(layer.prepare().weight)
    torch.testing.assert_close(values, torch.full_like(values, 0.7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_columns_have_finite_gradients(dtype: torch.dtype):
    """Mutant: no floor under the sums: 0 times infinity."""
    for layer in (AOLLinear(4, 3, 0.7), AOLConv2d(4, 3, 3, (5, 5), 0.7)):
        layer = layer.to(dtype)
        layer.weight.data[:, 1] = 0
        weight = layer.prepare().weight
        assert weight[:, 1].abs().max() == 0
        weight.sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()


def conv_matrix(kernel: Tensor, size: tuple[int, int], padding: int) -> Tensor:
    columns = kernel.shape[1] * size[0] * size[1]
    basis = torch.eye(columns, dtype=torch.float64).reshape(columns, kernel.shape[1], *size)
    return torch.nn.functional.conv2d(basis, kernel.double(), padding=padding).flatten(1).mT


@pytest.mark.parametrize("law", WEIGHT_LAWS)
def test_almost_orthogonal_convolutions_have_norm_at_most_one_for_any_padding(law: str):
    """No padding, 'same' and full. Mutants: overlaps of 'same' padding alone, which miss the
    far shifts; one factor for each output channel; overlaps summed before their absolute value."""
    for seed, (c_out, c_in, k, size) in enumerate(
        ((2, 3, 3, (5, 4)), (1, 1, 5, (6, 6)), (4, 1, 3, (2, 2)), (2, 2, 1, (3, 3)))
    ):
        layer = AOLConv2d(c_in, c_out, k, size, max_norm=0.7)
        layer.weight.data.copy_(WEIGHT_LAWS[law](layer.weight, generator(seed)))
        prepared = layer.prepare()
        for padding in (0, k // 2, k - 1):
            if min(size) + 2 * padding >= k:
                top = norm(conv_matrix(prepared.weight.detach(), size, padding))
                assert top <= 0.7
        assert norm(conv_matrix(prepared.weight.detach(), size, k // 2)) <= (
            prepared.certified_norm() * (1 + 1e-12)
        )


def test_large_images_are_certified_by_the_overlaps(monkeypatch: pytest.MonkeyPatch):
    """Beyond the limit no frequency grid is built, and the bound still holds and is no worse
    than what was asked for. Mutant: the plain row sums, without the factors' weights."""
    layer = AOLConv2d(3, 4, 3, (6, 6), max_norm=0.7)
    layer.weight.data.copy_(normal(4, 3, 3, 3) * torch.tensor([1.0, 100.0, 0.01])[:, None, None])
    prepared = layer.prepare()
    tight = prepared.certified_norm()
    monkeypatch.setattr(aol_module, "_LARGEST_CERTIFICATE", 0)

    def forbidden(*_: object) -> float:
        raise AssertionError("the grid was built")

    monkeypatch.setattr(aol_module, "certified_conv_norm", forbidden)
    loose = prepared.certified_norm()
    true = norm(conv_matrix(prepared.weight.detach(), (6, 6), 1))
    assert true <= tight <= loose <= 0.7
    assert loose > 0.699
    assert overlap_bound(prepared.weight.detach()).item() > loose  # equal weights are looser here


def test_overlap_bound_is_above_the_certified_norm():
    """For any weights of the channels. Mutant: weights applied on one side alone."""
    for seed in range(5):
        kernel, q = normal(3, 4, 3, 3, seed=seed), normal(4, seed=seed + 9).exp()
        true = norm(conv_matrix(kernel, (7, 6), 1))
        assert true <= certified_conv_norm(kernel, (7, 6))
        assert true <= overlap_bound(kernel).item()
        assert true <= overlap_bound(kernel, q).item()


# --- sandwich branches --------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_lie_in_the_interval_stated(name: str):
    """Mutant: LipSwish with slopes from 0."""
    tails = torch.logspace(1, 30, 300, dtype=torch.float64)
    grid = torch.cat([torch.arange(-30_000, 30_001, dtype=torch.float64) / 1000, tails, -tails])
    act = activation(name).double()
    for beta in (-20.0, 0.0, 0.5413, 30.0):
        for parameter in act.parameters():
            parameter.data.fill_(beta)
        slope = act.value_and_slope(grid[:, None])[1].detach()
        assert act.slopes[0] - 1e-12 <= slope.min()
        assert slope.max() <= act.slopes[1] + 1e-12


@pytest.mark.parametrize("name", ["lipswish", "sine", "clipswish", "cpila"])
def test_sandwich_refuses_slopes_below_zero(name: str):
    """With slope -.091 the composition may stretch by 1.09 times the bound."""
    with pytest.raises(ConfigurationError, match=r"slopes in.*Take one of elu, tanh, softplus"):
        SandwichBranch(2, (4,), name)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(2, 1), (5, 5), (9, 4), (64, 40)])
def test_cayley_transform_is_orthogonal(shape: tuple[int, int], scale: float):
    """In float32 too. Mutants: no refinement; X + X^T for X - X^T."""
    weight = scale * normal(*shape) / math.sqrt(shape[0])
    exact = cayley(weight)
    identity = torch.eye(shape[1], dtype=torch.float64)
    torch.testing.assert_close(exact.mT @ exact, identity, atol=1e-13, rtol=0)
    single = cayley(weight.float()).double()
    torch.testing.assert_close(single.mT @ single, identity, atol=3e-6, rtol=0)


def test_cayley_transform_is_the_published_one():
    """Against the formula with explicit inverses. Mutant: a sign."""
    weight = normal(7, 3)
    x, y = weight[:3], weight[3:]
    z = x - x.mT + y.mT @ y
    inverse = torch.linalg.inv(torch.eye(3, dtype=torch.float64) + z)
    expected = torch.cat([inverse @ (torch.eye(3, dtype=torch.float64) - z), -2 * y @ inverse])
    torch.testing.assert_close(cayley(weight), expected)


def tight_sandwich() -> SandwichBranch:
    """Return g = +-L x where all slopes are 1: ``A = B = I / sqrt(2)`` inside, ``B = I`` last."""
    branch = SandwichBranch(3, (3,), "softplus", 0.9).double()
    for layer, y in zip(branch.layers, (math.sqrt(2) - 1, 1.0), strict=True):
        weight = torch.cat([torch.zeros(3, 3), y * torch.eye(3)]).double()
        layer.weight.data.copy_(weight)  # pyright: ignore
        layer.bias.data.fill_(100.0)  # pyright: ignore
    return branch


def test_sandwich_reaches_its_bound():
    """Mutants: a bound shrunk by 1 %; layers without the factor sqrt(2)."""
    branch = tight_sandwich()
    gain, bound = largest_gain(branch)
    assert 0.9 * (1 - 3e-4) < gain <= bound <= 0.9
    weights = [map_.weight for map_ in branch.prepare().maps]
    assert bound < 0.55 * math.prod(certified_norm(weight) for weight in weights) * 2


def test_composition_is_proved_and_not_assumed():
    """The verification refuses a bound 1e-3 below the truth, whatever the elimination says.

    Mutants: ``_is_proved`` that returns True; a factorisation without the coupling blocks.
    """
    prepared = tight_sandwich().prepare()
    weights = [map_.weight.detach() for map_ in prepared.maps]
    scale = prepared.multipliers[0].sqrt()
    scaled = [scale[:, None] * weights[0], weights[1] / scale]
    truth = norm(weights[1] @ weights[0])
    assert _is_proved(scaled, truth * 1.001)
    assert not _is_proved(scaled, truth * 0.999)
    assert not _is_proved(scaled, 0.0)


@pytest.mark.parametrize("place", [0, 1])
def test_corrupted_sandwich_weights_raise_the_bound(place: int):
    """What is certified are the weights as they are. Mutant: a certificate that returns L."""
    prepared = tight_sandwich().prepare()
    maps = list(prepared.maps)
    for factor in (1.1, 1.5, 4.0):
        damaged = list(maps)
        damaged[place] = PreparedLinear(factor * maps[place].weight, maps[place].bias)
        bound = PreparedSandwich(
            damaged, prepared.activations, prepared.shifts, False, 0.9, prepared.multipliers
        ).certified_bound()
        assert bound >= 0.9 * factor * (1 - 3e-4)
    assert not ResidualBlock(tight_sandwich()).certificates("")[0].lipschitz == bound


def worst_over_slopes(weights: Sequence[Tensor], rng: torch.Generator) -> float:
    """Return the largest norm over slopes in {0, 1} that greedy search finds."""
    worst = 0.0
    for _ in range(3):
        slopes = [torch.rand(len(w), generator=rng, dtype=torch.float64).round() for w in weights]
        current = _norm_with(weights, slopes)
        for k, unit in product(range(len(weights) - 1), range(16)):
            if unit < len(slopes[k]):
                slopes[k][unit] = 1 - slopes[k][unit]
                changed = _norm_with(weights, slopes)
                if changed < current:
                    slopes[k][unit] = 1 - slopes[k][unit]
                current = max(current, changed)
        worst = max(worst, current)
    return worst


def _norm_with(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> float:
    matrix = weights[0]
    for weight, slope in zip(weights[1:], slopes, strict=False):
        matrix = weight @ (slope[:, None] * matrix)
    return norm(matrix)


def test_chain_bound_is_above_every_choice_of_slopes():
    """Any weights and multipliers, good or poor. Mutants: the product of two norms left out of a
    chain of three; multipliers applied to one side of a layer; a matrix without its last block."""
    rng = generator()
    tighter = 0
    for seed in range(12):
        widths = (3, 6, 5, 2)[: 3 + seed % 2]
        weights = [
            normal(m, n, seed=10 * seed + k) * 10.0 ** (seed % 5 - 2)
            for k, (n, m) in enumerate(pairwise(widths))
        ]
        multipliers = [normal(len(w), seed=seed + 50).exp() for w in weights[:-1]]
        bound = certified_chain_norm(weights, multipliers)
        assert worst_over_slopes(weights, rng) <= bound
        whole = math.prod(certified_norm(weight) for weight in weights)
        assert bound <= whole
        tighter += bound < 0.99 * whole
    branch = redraw_(SandwichBranch(4, (8, 8, 8), "elu", 0.9), "normal", rng)
    prepared = branch.prepare()
    assert isinstance(prepared, PreparedSandwich)
    weights = [map_.weight.detach().double() for map_ in prepared.maps]
    bound = prepared.certified_bound()
    assert worst_over_slopes(weights, rng) <= bound <= 0.9
    assert bound < 0.7 * math.prod(certified_norm(weight) for weight in weights)


def test_chain_bound_of_hard_weights():
    """No hidden layer, zeros, infinite multipliers, numbers whose squares would overflow."""
    one = torch.ones(1, 1)
    assert certified_chain_norm([2 * one], []) == pytest.approx(2)
    assert certified_chain_norm([one, 0 * one], [one[0]]) == 0
    assert certified_chain_norm([one, one], [one[0] * math.inf]) == pytest.approx(1)
    for size in (1e-30, 1e30):
        assert certified_chain_norm([size * one, one], [one[0]]) == pytest.approx(size)
        assert certified_chain_norm([size * one, one / size], [one[0]]) == pytest.approx(1)


# --- dense branches -----------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2, 2.0, -1.0])
def test_dense_branch_reaches_its_bound(angle: float):
    """``W = I``, slopes 1 and ``W_out`` proportional to ``[eta_1 I, eta_2 I]`` give g = L x.

    Mutants: eta off the circle; a bound shrunk by 1 %; the bound of a sum, eta_1 + eta_2.
    """
    branch = DenseMLPBranch(3, (3,), "softplus", 0.9).double()
    hidden, last = branch.layers
    assert isinstance(hidden, LipschitzLinear)
    assert isinstance(last, LipschitzLinear)
    identity = torch.eye(3, dtype=torch.float64)
    hidden.weight.data.copy_(7 * identity)
    hidden.bias.data.fill_(100.0)
    last.weight.data.copy_(
        7 * torch.cat([math.cos(angle) * identity, math.sin(angle) * identity], 1)
    )
    branch.angles.data.fill_(angle)
    gain, bound = largest_gain(branch)
    # Six Gram steps leave 3 ** (1 / 128) - 1 = .9 % of three equal singular values.
    assert 0.9 * 0.98 < gain <= bound <= 0.9


def test_certificate_of_a_dense_branch_sees_its_mixing():
    """Mutant: a certificate that takes the circle for granted."""
    prepared = SMALL["dense"](0).prepare()
    assert isinstance(prepared, PreparedDense)
    wide = PreparedDense(
        prepared.maps, prepared.activations, prepared.shifts, 2 * prepared.mixing, -1, False, 0.9
    )
    assert wide.certified_bound() == pytest.approx(4 * prepared.certified_bound())


def test_dense_layers_grow_by_their_expansion():
    """Mutant: a width that forgets the second half of a concatenation."""
    branch = DenseMLPBranch(3, (4, 5), "clipswish")
    assert [tuple(layer.weight.shape) for layer in branch.layers] == [(4, 3), (5, 11), (3, 21)]  # pyright: ignore
    with pytest.raises(ConfigurationError, match="kernel sizes"):
        DenseConvBranch((1, 4, 4), (3, 3), (3, 1))
    with pytest.raises(ConfigurationError, match="odd"):
        DenseConvBranch((1, 4, 4), (3,), (2, 1))
    with pytest.raises(ConfigurationError, match="at least one hidden layer"):
        DenseMLPBranch(3, ())


# --- mixed norms --------------------------------------------------------------------------


def linear_map(matrix: Tensor) -> PreparedMap:
    return PreparedLinear(matrix, torch.zeros(len(matrix), dtype=matrix.dtype))


def order(p: float) -> Tensor:
    return torch.tensor(p, dtype=torch.float64)


def test_mixed_norm_is_the_spectral_norm_between_l2_spaces():
    for seed in range(4):
        matrix = normal(5, 4, seed=seed)
        found = mixed_norm_estimate(linear_map(matrix), (4,), order(2.0), order(2.0), steps=500)
        assert found.item() == pytest.approx(norm(matrix), rel=1e-9)


@pytest.mark.parametrize(("p", "q"), [(1.5, 3.0), (3.0, 1.5), (2.0, 4.0), (1.1, 1.1), (8.0, 1.2)])
def test_mixed_norm_of_known_matrices(p: float, q: float):
    """A rank-one matrix has |u|_q |v|_p*; a positive one has a single maximum, which beats
    every other point. Mutants: p for its conjugate; p and q exchanged."""
    u, v = normal(5, seed=1), normal(4, seed=2)
    expected = u.abs().pow(q).sum() ** (1 / q) * v.abs().pow(p / (p - 1)).sum() ** (1 - 1 / p)
    found = mixed_norm_estimate(linear_map(u[:, None] * v), (4,), order(p), order(q))
    torch.testing.assert_close(found, expected)
    matrix = normal(5, 4, seed=3).abs() + 0.1
    top = mixed_norm_estimate(linear_map(matrix), (4,), order(p), order(q), steps=300)
    x = normal(4000, 4, seed=4).abs()
    image = (x @ matrix.mT).pow(q).sum(1) ** (1 / q)
    ratios = image / x.pow(p).sum(1) ** (1 / p)
    if p >= q:  # a global maximum, Boyd 1974
        assert ratios.max() <= top * (1 + 1e-9)
    assert ratios.max() >= 0.95 * top  # and no estimate is above the norm


@pytest.mark.parametrize("kind", ["mixed", "mixed-conv"])
def test_mixed_norms_are_never_certified(kind: str):
    """Even where the weights are zero. Mutants: the product of l2 norms as a certificate; an
    estimate returned as a bound."""
    branch = redraw_(built(kind), "zero", generator())
    block = ResidualBlock(branch)
    (certificate,) = block.certificates("g")
    assert certificate.lipschitz is certificate.forward is certificate.inverse is None
    assert certificate.method == "an estimate, not proved"
    assert not cf.certify(block).certified
    assert "NOT certified" in str(cf.certify(block))
    for parameter in branch.parameters():
        parameter.grad = None
    x = normal(2, *branch.event_shape).float()
    branch.prepare(torch.zeros(2, 2))(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in branch.parameters())


def test_mixed_norms_warn_when_built():
    with pytest.warns(UserWarning, match="experimental.*never certified"):
        MixedNormMLPBranch(2, (4,))
    with pytest.warns(UserWarning, match="experimental.*never certified"):
        MixedNormConvBranch((1, 4, 4), (4, 4))
    with pytest.raises(ConfigurationError, match="joins 2 outputs"):
        MixedNormMLPBranch(2, (4,), "clipswish")
    with pytest.raises(ConfigurationError, match="steps=0"):
        MixedNormMLPBranch(2, (4,), steps=0)
    with pytest.raises(ConfigurationError, match="odd sizes"):
        MixedNormConvBranch((1, 4, 4), (4, 4), (3, 2, 3))


def test_mixed_norms_learn_their_orders():
    """Mutant: orders that the weights do not see."""
    torch.manual_seed(0)
    branch = built("mixed").double()
    assert isinstance(branch, MixedNormMLPBranch)
    torch.testing.assert_close(branch.norm_orders(), torch.full((3,), 2.0, dtype=torch.float64))
    for parameter in branch.layers.parameters():
        parameter.data.mul_(5)
    x = normal(8, 3)
    branch.prepare(torch.zeros(8, 2, dtype=torch.float64))(x).square().sum().backward()
    assert branch.orders.grad is not None
    assert branch.orders.grad.abs().min() > 0


MIXED_INVARIANTS = [n for n in INVARIANTS if n not in ("certificate", "compiled", "density")]


@functools.cache
def mixed_case() -> Case:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is experimental")
        # Steps enough for the estimate to have the gradient of the norm.
        branch = MixedNormMLPBranch(2, (5,), lipschitz=0.6, steps=150)
    block = ResidualBlock(branch).double().eval()
    randomise_(block, generator())
    return Case(block, (2,))


@pytest.mark.filterwarnings("ignore:.*is experimental", "ignore:.*NOT certified")
@pytest.mark.parametrize("invariant", MIXED_INVARIANTS)
def test_invariants_of_mixed_norms(invariant: str):
    assert invariant in set(invariants_of(mixed_case()))
    INVARIANTS[invariant](mixed_case())


def test_mixed_norms_claim_no_bound():
    assert "certificate" not in set(invariants_of(mixed_case()))


# --- recipes ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is experimental", "ignore:.*NOT certified")
@pytest.mark.parametrize(
    ("branch", "name", "act"),
    [
        ("plain", "MLPBranch", "lipswish"),
        ("aol", "MLPBranch", "lipswish"),
        ("dense", "DenseMLPBranch", "clipswish"),
        ("sandwich", "SandwichBranch", "elu"),
        ("mixed", "MixedNormMLPBranch", "lipswish"),
    ],
)
@pytest.mark.parametrize("recipe", ["ResidualFlow", "InvertibleResNet"])
def test_recipes_take_a_kind_of_branch(recipe: str, branch: str, name: str, act: str, tmp_path):
    """Through a file and back."""
    given = {"features": 2, "transforms": 2, "hidden_features": [8, 8], "context": 1}
    flow = getattr(cf.flows, recipe)(**given, activation=act, branch=branch)
    kinds = {type(m.branch).__name__ for m in flow.modules() if isinstance(m, ResidualBlock)}
    assert kinds == {name}
    assert cf.certify(flow).certified == (branch != "mixed")
    flow.save(tmp_path / "flow.safetensors")
    loaded = cf.load(tmp_path / "flow.safetensors")
    assert json.dumps(registry.configuration(loaded)) == json.dumps(registry.configuration(flow))
    x, context = normal(4, 2).float(), normal(4, 1).float()
    assert torch.equal(loaded.log_prob(x, context), flow.eval().log_prob(x, context))


def test_yaml_names_the_kind_of_branch():
    """Mutant: an argument that the parser of configurations cannot express."""
    parser = Parser(prog="contraflow train")
    add_model_and_data(parser)
    text = """
        model:
          class_path: ResidualFlow
          init_args: {features: 2, transforms: 1, activation: tanh, branch: sandwich}
        data: {class_path: Digits}
    """
    flow = instantiate(parser, model=parser.parse_string(text).model)
    assert any(isinstance(part, SandwichBranch) for part in flow.modules())


def test_recipes_build_images_of_every_kind_with_convolutions():
    image = {"shape": (1, 4, 4), "transforms": 1, "scales": 1, "tail": 0}
    for branch, name in (("aol", "ConvBranch"), ("dense", "DenseConvBranch")):
        flow = cf.flows.ResidualFlow(**image, hidden_channels=(4, 4), branch=branch)
        blocks = [m for m in flow.modules() if isinstance(m, ResidualBlock)]
        assert [type(block.branch).__name__ for block in blocks] == [name]
        assert cf.certify(flow).certified
    with pytest.raises(ConfigurationError, match=r"no convolutional version.*aol, dense, mixed"):
        cf.flows.ResidualFlow(**image, branch="sandwich", activation="elu")
    flat = {**image, "scales": 0, "tail": 1}
    assert cf.certify(cf.flows.ResidualFlow(**flat, branch="sandwich", activation="elu")).certified


def test_unknown_kinds_name_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'sandwich'"):
        cf.flows.ResidualFlow(features=2, branch="sandwhich")
    with pytest.raises(ConfigurationError, match="slopes in"):
        cf.flows.ResidualFlow(features=2, branch="sandwich")
    with pytest.raises(ConfigurationError, match="known: aol"):
        random_branch("plain", generator())
    with pytest.raises(ConfigurationError, match="known: normal"):
        random_branch("aol", generator(), "cauchy")


def test_certificates_name_their_methods():
    """Mutant: one text for all."""
    methods = {
        kind: ResidualBlock(build(0)).certificates("")[0].method for kind, build in SMALL.items()
    }
    assert methods["aol"] == "product of certified layer norms"
    assert methods["sandwich"] == "semidefinite bound of the composition"
    assert methods["dense"] == methods["dense-conv"] == "product of certified norms of dense layers"
