"""``Flow`` and its edges: shapes, kinds, views, errors, distributions, imports, files."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
)

import contraflow as cf
from contraflow import registry
from contraflow.errors import (
    ConfigurationError,
    DtypeError,
    LoadError,
    ShapeError,
    SupportError,
)
from contraflow.kinds import Kind, Likelihood
from contraflow.lipschitz import MLPBranch
from contraflow.logdet import Exact, NestedRoulette, PowerSeries, Roulette, truncation_bound
from contraflow.serialization import read_metadata
from contraflow.solvers import Auto, Newton, Picard
from contraflow.transforms import (
    ActNorm,
    Logit,
    Reshape,
    ResidualBlock,
    Standardise,
    UniformDequantise,
)


@pytest.fixture(autouse=True)
def _validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch argument validation on: torch.compile, once used, leaves it off for everybody."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def shake(flow: cf.Flow, seed: int = 0) -> cf.Flow:
    """Move every parameter away from its start, where many transforms are the identity."""
    for i, parameter in enumerate(flow.parameters()):
        parameter.data.add_(0.3 * normal(*parameter.shape, seed=seed + i))
    return flow


def vector_flow(features: int = 2, context: int = 0, blocks: int = 1) -> cf.Flow:
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(
        features, context=context, transforms=blocks, hidden_features=(8, 8), lipschitz=0.9
    )
    return shake(flow)


def image_flow() -> cf.Flow:
    torch.manual_seed(0)
    flow = cf.flows.InvertibleResNet(
        shape=(1, 4, 4), num_bins=5, scales=2, transforms=1, hidden_channels=(4, 4)
    )
    return shake(flow)


FLOWS: dict[str, Callable[[int], cf.Flow]] = {
    "residual": lambda context: vector_flow(context=context),
    "i-resnet": lambda context: shake(
        cf.flows.InvertibleResNet(2, context=context, transforms=1, hidden_features=(8,))
    ),
    "realnvp": lambda context: shake(
        cf.flows.RealNVP(2, context=context, transforms=2, hidden_features=(8,))
    ),
    "maf": lambda context: shake(
        cf.flows.MAF(2, context=context, transforms=2, hidden_features=(8,))
    ),
}


# --- shapes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
    ("x_batch", "context_batch", "expected"),
    [
        ((), (), ()),
        ((5,), (), (5,)),
        ((), (4,), (4,)),
        ((5, 1), (4,), (5, 4)),
        ((3, 5, 4), (5, 1), (3, 5, 4)),
        ((0,), (1,), (0,)),
        ((2, 0), (), (2, 0)),
    ],
)
def test_log_prob_broadcasts_x_against_context(
    name: str, x_batch: tuple[int, ...], context_batch: tuple[int, ...], expected: tuple[int, ...]
):
    """Shape, and each entry equal to its own evaluation. Mutant: rows of another context."""
    flow = FLOWS[name](3).eval()
    x, context = normal(*x_batch, 2), normal(*context_batch, 3, seed=1)
    found = flow.log_prob(x, context)
    assert found.shape == expected
    rows = x.expand(*expected, 2).reshape(-1, 2)
    contexts = context.expand(*expected, 3).reshape(-1, 3)
    for i, (row, given) in enumerate(zip(rows, contexts, strict=True)):
        alone = flow.log_prob(row, given)
        torch.testing.assert_close(found.reshape(-1)[i], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shape", [0, 3, (), (3,), (2, 0), (2, 3), torch.Size([4])])
@pytest.mark.parametrize("batch", [None, (), (4,), (2, 1), (0,)])
def test_sample_shapes(name: str, shape: int | tuple[int, ...], batch: tuple[int, ...] | None):
    """sample shape + batch shape + event shape, integer or tuple (nflows got this wrong)."""
    flow = FLOWS[name](0 if batch is None else 3).eval()
    context = None if batch is None else normal(*batch, 3)
    samples = flow.sample(shape, context)
    wanted = (shape,) if isinstance(shape, int) else tuple(shape)
    assert samples.shape == (*wanted, *(batch or ()), 2)
    assert samples.isfinite().all()
    assert not samples.requires_grad


def test_samples_follow_their_own_context():
    """A MAF shifted by its context. Mutant: contexts repeated in the wrong order."""
    flow = cf.flows.MAF(1, context=1, transforms=1, hidden_features=(4,))
    for parameter in flow.parameters():
        parameter.data.zero_()
    net = flow.transform[2].net  # pyright: ignore[reportIndexIssue, reportGeneralTypeIssues]
    net.layers[0].bias.data.fill_(0.0)
    context = torch.tensor([[0.0], [1.0], [2.0]])
    net.context_layer.weight.data.fill_(1.0)
    net.layers[-1].weight.data[0] = 1.0  # the shift: 4 silu(c)
    samples = flow.sample(2000, context)
    assert samples.shape == (2000, 3, 1)
    expected = -4 * torch.nn.functional.silu(context)[:, 0]
    z = (samples.mean(0)[:, 0] - expected) * math.sqrt(2000)
    assert z.abs().max() < 5  # false alarm 2e-6


def test_image_shapes():
    flow = image_flow().eval()
    assert flow.log_prob(torch.zeros(2, 3, 1, 4, 4)).shape == (2, 3)
    assert flow.log_prob(torch.zeros(1, 4, 4)).shape == ()
    assert flow.log_prob(torch.zeros(0, 1, 4, 4)).shape == (0,)
    assert flow.sample((2, 3)).shape == (2, 3, 1, 4, 4)
    assert flow.sample(0).shape == (0, 1, 4, 4)
    # Whole numbers may come in any integer dtype.
    levels = torch.randint(0, 5, (2, 1, 4, 4), generator=generator())
    noise = flow.draw_noise(2, generator(1))
    assert torch.equal(
        flow.log_prob(levels.to(torch.uint8), noise=noise),
        flow.log_prob(levels.float(), noise=noise),
    )


@pytest.mark.parametrize("name", FLOWS)
def test_chunked_equals_unchunked(name: str):
    """Mutants: a chunk's context taken from the first rows, a last partial chunk lost."""
    flow = FLOWS[name](3).eval()
    x, context = normal(1000, 2), normal(1000, 3, seed=1)
    sizes: list[int] = []
    flow.transform.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    whole = flow.log_prob(x, context)  # with gradients: one batch
    assert sizes == [1000]
    flow._chunk_rows = lambda: 64  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        parts = flow.log_prob(x, context)
    assert sizes[1:] == [64] * 15 + [40]
    torch.testing.assert_close(parts, whole.detach(), atol=1e-5, rtol=1e-5)
    parts = flow.sample((5, 2), context[:100], generator=generator(4))
    del flow._chunk_rows  # pyright: ignore[reportAttributeAccessIssue]
    whole = flow.sample((5, 2), context[:100], generator=generator(4))
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_chunks_of_large_events_are_smaller():
    small = vector_flow()
    large = cf.Flow(Standardise(3072), event_shape=(3072,))
    assert small._chunk_rows() == 2048
    assert large._chunk_rows() == 64


def test_common_random_numbers():
    """Equal noise, equal values; equal generators likewise; another generator, another value."""
    flow = image_flow().train()
    x = torch.randint(0, 5, (3, 1, 4, 4), generator=generator()).float()
    noise = flow.draw_noise(3, generator(1))
    first = flow.log_prob(x, noise=noise)
    assert torch.equal(first, flow.log_prob(x, noise=noise))
    assert torch.equal(first, flow.log_prob(x, generator=generator(1)))
    assert not torch.equal(first, flow.log_prob(x, generator=generator(2)))


# --- kinds --------------------------------------------------------------------------------


def test_kinds_compose():
    """The worst wins; bias bounds add. Mutants: the last wins, the largest bias."""
    parts = [
        Likelihood(Kind.UNBIASED, stochastic=True),
        Likelihood(Kind.TRUNCATED, 0.25),
        Likelihood(Kind.EXACT),
        Likelihood(Kind.TRUNCATED, 0.5),
    ]
    assert Likelihood.compose(parts) == Likelihood(Kind.TRUNCATED, 0.75, True)
    assert Likelihood.compose(reversed(parts)) == Likelihood(Kind.TRUNCATED, 0.75, True)
    assert Likelihood.compose([]) == Likelihood()
    order = [Kind.EXACT, Kind.UNBIASED, Kind.TRUNCATED, Kind.NUMERICAL, Kind.LOWER_BOUND]
    for i, better in enumerate(order):
        for worse in order[i:]:
            assert Likelihood.compose([Likelihood(worse), Likelihood(better)]).kind is worse


def test_kind_of_each_strategy():
    flow = vector_flow(blocks=3)
    assert flow.kind is Kind.EXACT
    assert flow.using(log_det=Roulette()).likelihood == Likelihood(Kind.UNBIASED, 0.0, True)
    assert flow.using(log_det=NestedRoulette()).kind is Kind.UNBIASED
    truncated = flow.using(log_det=PowerSeries(terms=4)).likelihood
    assert truncated.kind is Kind.TRUNCATED
    assert math.isclose(truncated.bias_bound, 3 * truncation_bound(2, 0.9, 4))
    assert cf.flows.MAF(2).kind is Kind.EXACT
    images = image_flow().train()
    assert images.kind is Kind.LOWER_BOUND  # dequantisation is the worst part
    assert images.likelihood.bias_bound > 0  # and the series' bias is not forgotten
    assert images.eval().likelihood.bias_bound == 0


def test_kind_follows_the_mode():
    blocks = [ResidualBlock(MLPBranch(2, (8,)), Roulette(), Exact()) for _ in range(2)]
    flow = cf.Flow(cf.Sequential(*blocks), event_shape=(2,))
    assert flow.train().kind is Kind.UNBIASED
    x = normal(4, 2)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    assert flow.eval().kind is Kind.EXACT
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))
    assert "kind in evaluation: exact" in repr(flow)
    assert "kind in training: unbiased" in repr(flow.train())


def test_bias_stays_within_its_bound():
    """d = 1, where a sign as probe is exact: the gap to the exact value is the bias alone."""
    flow = vector_flow(features=1, blocks=4).double().eval()
    x = 2 * normal(200, 1, dtype=torch.float64)
    exact = flow.log_prob(x)
    for terms in (1, 2, 5):
        view = flow.using(log_det=PowerSeries(terms=terms))
        gap = (view.log_prob(x) - exact).abs()
        assert 1e-9 < gap.max() <= view.likelihood.bias_bound


# --- views --------------------------------------------------------------------------------


def test_using_shares_parameters_and_leaves_the_original_alone():
    """Mutants: a deep copy (weights drift apart), a view whose strategy leaks back."""
    flow = vector_flow(context=1, blocks=2).train()
    before = repr(flow)
    view = flow.using(log_det=Roulette(exact_terms=5), solver=Picard(atol=1e-3))
    assert repr(flow) == before
    assert type(view) is type(flow)
    blocks = [m for m in view.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 2
    for block in blocks:
        assert block.log_det == block.eval_log_det == Roulette(exact_terms=5)
        assert block.solver == Picard(atol=1e-3)
    for block in flow.modules():
        if isinstance(block, ResidualBlock):
            assert block.log_det == Exact()
            assert block.solver == Auto()
    mine, theirs = dict(flow.named_parameters()), dict(view.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)
    assert flow.state_dict().keys() == view.state_dict().keys()
    # Later changes of weights, buffers, dtype and mode.
    x, context = normal(3, 2), normal(3, 1)
    flow.initialise_from(normal(100, 2, seed=3), normal(100, 1, seed=4))
    flow.eval()
    assert all(module.training for module in view.modules())
    exact_view = view.using(log_det=Exact(), solver=Newton())
    assert torch.equal(exact_view.log_prob(x, context), flow.log_prob(x, context))
    flow.double()
    x, context = x.double(), context.double()
    assert torch.equal(exact_view.log_prob(x, context), flow.log_prob(x, context))


def test_using_reaches_into_nested_transforms():
    """Blocks behind factor-out, Inverse and Sequential."""
    view = image_flow().using(log_det=Exact(), solver=Picard())
    blocks = [m for m in view.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 2
    assert all(block.log_det == Exact() and block.solver == Picard() for block in blocks)
    block = ResidualBlock(MLPBranch(2, (4,)))
    flow = cf.Flow(cf.Inverse(cf.Sequential(block)), event_shape=(2,))
    flow.using(solver=Picard(atol=1e-2)).sample(3)
    assert block.solver == Auto()


# --- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_dtype_mismatch_names_the_remedy(name: str):
    flow = FLOWS[name](3)
    with pytest.raises(DtypeError, match=r"x is torch\.float64.*flow\.double\(\)"):
        flow.log_prob(normal(2, dtype=torch.float64), normal(3))
    with pytest.raises(DtypeError, match=r"context is torch\.float64.*flow\.double\(\)"):
        flow.log_prob(normal(2), normal(3, dtype=torch.float64))
    with pytest.raises(DtypeError, match=r"flow\.double\(\)"):
        flow.sample(2, normal(3, dtype=torch.float64))
    with pytest.raises(DtypeError, match=r"flow\.float\(\)"):
        flow.double().log_prob(normal(2), normal(3, dtype=torch.float64))
    with pytest.raises(DtypeError, match="int64"):
        flow.log_prob(torch.zeros(2, dtype=torch.long), normal(3, dtype=torch.float64))


@pytest.mark.parametrize("name", FLOWS)
def test_shape_errors_say_what_was_expected(name: str):
    flow = FLOWS[name](3)
    x, context = normal(5, 2), normal(5, 3)
    for wrong in (normal(5, 3), normal(5), torch.tensor(0.0), normal(2, 5)):
        with pytest.raises(ShapeError, match=r"expected \(\*B, 2\)"):
            flow.log_prob(wrong, context)
    for wrong in (normal(5, 2), torch.tensor(0.0)):
        with pytest.raises(ShapeError, match=r"expected \(\*B, 3\)"):
            flow.log_prob(x, wrong)
        with pytest.raises(ShapeError, match=r"expected \(\*B, 3\)"):
            flow.sample(2, wrong)
    with pytest.raises(ShapeError, match="broadcast"):
        flow.log_prob(x, normal(4, 3))
    for call in (lambda: flow.log_prob(x), lambda: flow.sample(2), lambda: flow(None)):
        with pytest.raises(ShapeError, match="no context"):
            call()
    plain = FLOWS[name](0)
    for call in (
        lambda: plain.log_prob(x, context),
        lambda: plain.sample(2, context),
        lambda: plain(context),
        lambda: plain.rsample_and_log_prob((), context),
    ):
        with pytest.raises(ShapeError, match="expected none"):
            call()


def test_flow_refuses_parts_that_do_not_fit():
    with pytest.raises(ShapeError, match="flat vector"):
        cf.Flow(Logit(event_dim=3), event_shape=(1, 2, 2))
    with pytest.raises(ShapeError, match="3 features"):
        cf.Flow(Standardise(2), cf.distributions.StandardNormal(3), event_shape=(2,))
    with pytest.raises(ShapeError, match="ActNorm"):
        cf.Flow(ActNorm(3), event_shape=(2,))
    with pytest.raises(ShapeError, match="expected"):
        Reshape((2, 2), (5,))
    with pytest.raises(ShapeError, match="keeps the shape"):
        cf.Flow(cf.Inverse(Reshape((4,), (1, 2, 2))), event_shape=(4,))


def bounded_flow() -> cf.Flow:
    torch.manual_seed(0)
    parts = (Logit(-1.0, 3.0), ResidualBlock(MLPBranch(2, (8,), lipschitz=0.9)))
    return cf.Flow(cf.Sequential(*parts), event_shape=(2,))


def test_outside_the_support():
    """-inf from the flow, an error from the distribution, -inf without validation; gradients
    of the rows inside stay finite. Mutants: NaN from the logit, a finite extrapolation."""
    flow = bounded_flow()
    x = torch.tensor([[0.0, 1.0], [-1.5, 1.0], [0.5, 3.5], [-1.0, 3.0], [1.0, math.inf]])
    inside = torch.tensor([True, False, False, True, False])
    log_prob = flow.log_prob(x)
    assert torch.equal(log_prob.isfinite(), inside)
    assert (log_prob[~inside] == -math.inf).all()
    gradients = torch.autograd.grad(log_prob[inside].sum(), list(flow.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    with pytest.raises(SupportError, match="3 of 5"):
        flow().log_prob(x)
    with pytest.raises(SupportError, match="validate_args"):
        flow().log_prob(x[1])
    relaxed = cf.FlowDistribution(flow, validate_args=False)
    assert torch.equal(relaxed.log_prob(x), log_prob)
    assert torch.equal(flow().log_prob(x[inside]), log_prob[inside])
    assert flow().support.check(x).tolist() == inside.tolist()


def test_samples_lie_in_the_support():
    """``d.log_prob(d.sample())`` is finite. Mutant: a domain smaller than the range of the
    inverse, such as ``[low, high]`` for a logit with an alpha."""
    d = bounded_flow().eval()()
    torch.manual_seed(0)
    x = d.sample((500,))
    assert d.support.check(x).all()
    assert d.log_prob(x).isfinite().all()


def test_outside_the_support_of_counts():
    flow = image_flow().eval()
    x = torch.zeros(4, 1, 4, 4)
    x[1, 0, 0, 0], x[2, 0, 0, 0], x[3, 0, 0, 0] = 0.5, 5.0, -1.0
    assert flow.log_prob(x).isfinite().tolist() == [True, False, False, False]
    assert flow().support.check(x).tolist() == [True, False, False, False]
    with pytest.raises(SupportError):
        flow().log_prob(x)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
@pytest.mark.parametrize("name", [*FLOWS, "bounded", "image"])
def test_a_value_that_is_infinite_has_density_0(name: str, bad: float):
    """And its neighbours keep theirs. Mutants: nan_to_num, a clamp, a masked fill with 0."""
    flow = {"bounded": bounded_flow, "image": image_flow}.get(name, lambda: FLOWS[name](0))().eval()
    x = torch.zeros(3, *flow.event_shape)
    expected = flow.log_prob(x, generator=generator())
    x[1].view(-1)[1] = bad
    found = flow.log_prob(x, generator=generator())
    assert found[1] == -math.inf
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=1e-5)
    with pytest.raises(SupportError, match="1 of 3"):
        flow().log_prob(x)


@pytest.mark.parametrize("name", [*FLOWS, "bounded", "image"])
def test_nan_is_refused_and_its_row_named(name: str):
    """Mutant: NaN counted as outside of a bounded support, where -inf would hide it."""
    flow = {"bounded": bounded_flow, "image": image_flow}.get(name, lambda: FLOWS[name](0))().eval()
    x = torch.zeros(3, *flow.event_shape)
    x[1].view(-1)[1] = math.nan
    with pytest.raises(SupportError, match=r"1 of 3 rows .* NaN \(first: row 1\)"):
        flow.log_prob(x)
    with pytest.raises(SupportError, match="1 of 3"):
        flow().log_prob(x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", FLOWS)
def test_a_context_that_is_not_finite_is_refused(name: str, bad: float):
    flow = FLOWS[name](3).eval()
    context = torch.zeros(3, 3)
    context[1, 0] = bad
    for call in (lambda: flow.log_prob(torch.zeros(2), context), lambda: flow.sample(2, context)):
        with pytest.raises(SupportError, match="row 1 of the context"):
            call()


# --- distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_distribution_shapes(name: str):
    flow = FLOWS[name](3)
    for batch in ((), (4,), (2, 4)):
        d = flow(normal(*batch, 3))
        assert isinstance(d, Distribution)
        assert (d.batch_shape, d.event_shape) == (batch, (2,))
        assert d.has_rsample
        for shape in ((), (5,), (5, 2)):
            for draw in (d.sample, d.rsample):
                x = draw(shape)
                assert x.shape == (*shape, *batch, 2)
                assert d.log_prob(x).shape == (*shape, *batch)
        assert d.log_prob(torch.zeros(2)).shape == batch
        assert d.sample().requires_grad is False
        assert d.rsample().requires_grad is True
    plain = FLOWS[name](0)()
    assert (plain.batch_shape, plain.event_shape) == ((), (2,))
    assert plain.sample((7,)).shape == (7, 2)


@pytest.mark.parametrize("name", FLOWS)
def test_distribution_expands(name: str):
    """Mutant: an expanded distribution that keeps its old batch shape in ``sample``."""
    flow = FLOWS[name](3).eval()
    d = flow(normal(4, 3))
    wide = d.expand((5, 4))
    assert wide.batch_shape == (5, 4)
    x = wide.sample((6,))
    assert x.shape == (6, 5, 4, 2)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x), atol=1e-5, rtol=1e-5)
    plain = FLOWS[name](0).eval()().expand((3,))
    assert plain.batch_shape == (3,)
    assert plain.sample((2,)).shape == plain.rsample((2,)).shape == (2, 3, 2)
    assert plain.log_prob(torch.zeros(2)).shape == (3,)
    strict = cf.FlowDistribution(flow, normal(4, 3), validate_args=False).expand((2, 4))
    assert not strict._validate_args


def test_distribution_support_is_a_constraint():
    assert vector_flow()().support is not None
    assert vector_flow()().support.event_dim == 1
    assert isinstance(bounded_flow()().support, constraints.independent)
    assert image_flow()().support.is_discrete
    assert not vector_flow()().support.is_discrete


def test_distribution_inside_torch_distributions():
    flow = vector_flow(context=3).eval()
    context = normal(4, 3)
    d = flow(context)
    x = normal(4, 2, seed=1)
    each = flow.log_prob(x, context)
    torch.testing.assert_close(Independent(d, 1).log_prob(x), each.sum())
    mixture = MixtureSameFamily(Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4])), d)
    assert mixture.sample((3,)).shape == (3, 2)
    expected = torch.logsumexp(
        torch.tensor([0.1, 0.2, 0.3, 0.4]).log() + d.log_prob(x[:, None]), -1
    )
    torch.testing.assert_close(mixture.log_prob(x), expected)
    scaled = TransformedDistribution(d, [AffineTransform(1.0, 2.0, event_dim=1)])
    torch.testing.assert_close(scaled.log_prob(1 + 2 * x), each - 2 * math.log(2))
    assert scaled.rsample((3,)).shape == (3, 4, 2)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("features", [1, 2])
def test_rsample_gradient_is_that_of_finite_differences(name: str, features: int):
    """One seed, the loss E[cos x_1 + log q(x)], a random direction in all parameters.

    Mutants: a detached root, the score term counted twice, log_prob at a detached x.
    """
    if name == "realnvp" and features == 1:
        with pytest.raises(ConfigurationError, match="2 or more"):
            cf.flows.RealNVP(1)
        return
    torch.manual_seed(0)
    classes = {"residual": cf.flows.ResidualFlow, "i-resnet": cf.flows.InvertibleResNet}
    if name in classes:
        flow = classes[name](features, context=1, transforms=1, hidden_features=(6,), lipschitz=0.9)
    elif name == "maf":
        flow = cf.flows.MAF(features, context=1, transforms=1, hidden_features=(6,))
    else:
        flow = cf.flows.RealNVP(features, context=1, transforms=2, hidden_features=(6,))
    flow = shake(flow).double().eval()
    context = normal(30, 1, dtype=torch.float64)

    def loss() -> Tensor:
        x, log_prob = flow.rsample_and_log_prob((), context, generator=generator(5))
        return (x[:, 0].cos() + log_prob).mean()

    def loss_by_distribution() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            x = flow(context).rsample()
        return (x[:, 0].cos() + flow.log_prob(x, context)).mean()

    parameters = list(flow.parameters())
    directions = [normal(*p.shape, seed=i, dtype=torch.float64) for i, p in enumerate(parameters)]
    for value in (loss, loss_by_distribution):
        gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
        slope = sum(
            (g * v).sum() for g, v in zip(gradients, directions, strict=True) if g is not None
        )
        sides = []
        for sign in (1, -1):
            for p, v in zip(parameters, directions, strict=True):
                p.data.add_(v, alpha=sign * 1e-5)
            sides.append(value().detach())
            for p, v in zip(parameters, directions, strict=True):
                p.data.add_(v, alpha=-sign * 1e-5)
        torch.testing.assert_close(slope, (sides[0] - sides[1]) / 2e-5, atol=1e-7, rtol=1e-6)
    # Both roads give the same value.
    x, log_prob = flow.rsample_and_log_prob((), context, generator=generator(5))
    torch.testing.assert_close(log_prob, flow.log_prob(x, context), atol=1e-9, rtol=0)


# --- import -------------------------------------------------------------------------------

_IMPORT_PROBE = """
    import json, logging, os, signal, sys, warnings
    import numpy, safetensors.torch, torch
    import torch.distributions as D

    def state():
        return {
            "default dtype": str(torch.get_default_dtype()),
            "default device": str(torch.get_default_device()),
            "validation": [D.Distribution._validate_args, D.Transform.__dict__.get("validate")],
            "distribution": sorted(D.Distribution.__dict__),
            "transform": sorted(D.Transform.__dict__),
            "constraint": sorted(D.constraints.Constraint.__dict__),
            "module": sorted(torch.nn.Module.__dict__),
            "tensor": sorted(torch.Tensor.__dict__),
            "kl": len(D.kl._KL_REGISTRY),
            "torch rng": torch.get_rng_state().tolist(),
            "numpy rng": [str(part) for part in numpy.random.get_state()],
            "warnings": [str(item) for item in warnings.filters],
            "showwarning": str(warnings.showwarning),
            "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "precision": torch.get_float32_matmul_precision(),
            "grad": torch.is_grad_enabled(),
            "anomaly": torch.is_anomaly_enabled(),
            "environment": dict(os.environ),
            "logging": [logging.root.level, len(logging.root.handlers)],
            "signals": str(signal.getsignal(signal.SIGINT)),
            "recursion": sys.getrecursionlimit(),
            "path": sys.path,
            "hooks": [str(sys.excepthook), str(sys.displayhook)],
            "print": str(torch._tensor_str.PRINT_OPTS),
        }

    before, modules = state(), set(sys.modules)
    import contraflow
    after = state()
    new = {name.partition(".")[0] for name in set(sys.modules) - modules}
    print(json.dumps({
        "changed": [key for key in before if before[key] != after[key]],
        "modules": sorted(name for name in new if name not in sys.stdlib_module_names),
    }))
"""


def run_python(code: str, *arguments: str) -> str:
    """Run in a fresh interpreter; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_changes_nothing_and_pulls_in_no_extra():
    """zuko switches validation off; others print, seed or patch. The core needs torch, numpy
    and safetensors alone: no lightning, matplotlib, sklearn, pandas, jsonargparse ..."""
    found = json.loads(run_python(_IMPORT_PROBE))
    assert found["changed"] == []
    # What torch itself loads late (sympy with torch.distributions or dynamo, say) is not ours.
    optional = {
        "jsonargparse", "lightning", "lightning_fabric", "lightning_utilities", "matplotlib",
        "pandas", "PIL", "pooch", "pyarrow", "pyro", "pytorch_lightning", "rich", "scipy",
        "sklearn", "tensorboard", "torchdiffeq", "torchmetrics", "torchvision", "yaml", "zuko",
    }  # fmt: skip
    assert "contraflow" in found["modules"]
    assert optional.isdisjoint(found["modules"])


# --- registry -----------------------------------------------------------------------------


@pytest.fixture
def own_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register types without leaving them behind."""
    monkeypatch.setattr(registry, "_TYPES", dict(registry._TYPES))


@pytest.mark.usefixtures("own_types")
def test_registry_refuses_two_types_of_one_name():
    class Standardise:  # another module's class of a known name
        pass

    with pytest.raises(ConfigurationError, match="registered already"):
        cf.register(Standardise)
    assert registry.registered_types().count(Standardise) == 0


@pytest.mark.usefixtures("own_types")
def test_registry_names_what_cannot_be_saved():
    class Foreign(cf.Transform):
        pass

    @cf.register
    class Forgetful(cf.Transform):
        def __init__(self, size: int = 3) -> None:
            super().__init__()

    @cf.register
    class Anything(cf.Transform):
        def __init__(self, **options: int) -> None:
            super().__init__()

    for part, words in (
        (Foreign(), "@contraflow.register"),
        (Forgetful(), "'size'"),
        (Anything(), "names its arguments"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            registry.configuration(cf.Sequential(part))

    class Child(Standardise):  # its parent is registered, it is not
        pass

    with pytest.raises(ConfigurationError, match="Child"):
        registry.configuration(Child(2))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "Standardize", "features": 2}, "did you mean 'Standardise'"),
        ({"type": "Standardise", "feature": 2}, "did you mean 'features'"),
        ({"type": "Standardise"}, "refused"),
        ({"type": "Standardise", "features": "two"}, "refused"),
        ({"type": "Standardise", "features": -1}, "refused"),
        ({"type": "MLPBranch", "features": 2, "lipschitz": 1.5}, "refused"),
        ({"type": ["Standardise"]}, "unknown type"),
        ({"type": {"type": "Standardise", "features": 2}}, "unknown type"),
        ({"type": None}, "unknown type"),
        ({"type": "os.system", "command": "true"}, "unknown type"),
        ({"type": "builtins.eval"}, "unknown type"),
        ({"type": "contraflow.flow.Flow"}, "unknown type"),
        ({"type": "__import__", "name": "os"}, "unknown type"),
    ],
)
def test_build_refuses(config: dict[str, Any], words: str):
    with pytest.raises(LoadError, match=words):
        registry.build(config)


# --- files --------------------------------------------------------------------------------


class Halve(cf.Transform):
    """A user's own transform: not registered, named when loading."""

    closed_form = True

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ladj = x.new_full(x.shape[:-1], -self.times * x.shape[-1] * math.log(2))
        return x / 2**self.times, ladj

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * 2**self.times, -self.forward(z)[1]


@pytest.mark.usefixtures("own_types")
def test_own_types_are_saved_and_named_when_loading(tmp_path: Path):
    cf.register(Halve)
    flow = cf.Flow(cf.Sequential(Halve(3), Standardise(2)), event_shape=(2,)).double()
    flow.save(tmp_path / "mine.safetensors", metadata={"note": "kept"})
    del registry._TYPES["Halve"]
    with pytest.raises(LoadError, match=r"types=\[\.\.\.\]"):
        cf.load(tmp_path / "mine.safetensors")
    again = cf.load(tmp_path / "mine.safetensors", types=[Halve])
    x = normal(3, 2, dtype=torch.float64)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert not again.training
    header = read_metadata(tmp_path / "mine.safetensors")
    assert header["metadata"] == {"note": "kept"}
    assert header["version"] == cf.__version__


def test_a_failed_save_leaves_the_old_file_and_no_partial_one(tmp_path: Path):
    path = tmp_path / "flow.safetensors"
    vector_flow().save(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError):
        cf.Flow(Halve(), event_shape=(2,)).save(path)
    with pytest.raises((TypeError, ValueError)):
        vector_flow().save(path, metadata={"not json": math.nan})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["flow.safetensors"]


def header_of(transform: Any, features: Any = 2, **changes: Any) -> dict[str, Any]:
    configuration = {
        "type": "Flow",
        "transform": transform,
        "base": {"type": "StandardNormal", "features": features},
        "event_shape": [features],
        "context": 0,
    }
    return {
        "format": 1,
        "version": "0",
        "configuration": configuration,
        "certificate": {},
    } | changes


def write(path: Path, header: Any, tensors: dict[str, Tensor] | None = None) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors or {"x": torch.zeros(1)}, path, {"contraflow": text})
    return path


def nested(depth: int) -> str:
    """JSON that is deeper than any recursion limit."""
    return '{"format": 1, "configuration": ' + '{"a": ' * depth + "1" + "}" * depth + "}"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "null",
        "[]",
        "3",
        "{not json",
        "{}",
        '{"format": 1}',
        '{"format": "one", "configuration": {}}',
        '{"format": 1, "configuration": null}',
        '{"format": 1, "configuration": []}',
        '{"format": 1, "configuration": {"type": "Flow"}}',
        nested(100_000),
        json.dumps(header_of({"type": "Nothing"})),
        json.dumps(header_of({"type": "Exact"})),
        json.dumps(header_of([1, 2])),
        json.dumps(header_of({"type": "Standardise", "features": 2}, features=3)),
        json.dumps(header_of({"type": "Standardise", "features": 2}, features="2")),
        json.dumps(header_of({"type": "Standardise", "features": 2}, format=2)),
        json.dumps(header_of({"type": "Sequential", "transforms": [3]})),
        json.dumps({"format": 1, "configuration": {"type": "Standardise", "features": 2}}),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: str):
    """LoadError and nothing else. Mutant: an AttributeError or RecursionError that escapes."""
    path = write(tmp_path / "bad.safetensors", header)
    with pytest.raises(LoadError):
        cf.load(path)


def test_newer_formats_and_foreign_files_are_named(tmp_path: Path):
    path = write(tmp_path / "new.safetensors", header_of({"type": "Standardise"}, format=99))
    with pytest.raises(LoadError, match="newer contraflow"):
        cf.load(path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(LoadError, match="no contraflow configuration"):
        cf.load(tmp_path / "foreign.safetensors")
    with pytest.raises(LoadError, match="no such file"):
        cf.load(tmp_path / "absent.safetensors")
    with pytest.raises(LoadError):
        cf.load(tmp_path)


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def test_loading_executes_nothing(tmp_path: Path):
    """A pickle is not read, a dotted path is not a type, an argument is not code."""
    mark = tmp_path / "executed"
    command = f"touch {mark}"
    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(pickle.dumps(Bomb(command)))
    torch_file = tmp_path / "torch.safetensors"
    torch.save({"a": Bomb(command)}, torch_file)
    paths = [pickled, torch_file]
    for i, config in enumerate(
        (
            {"type": "os.system", "command": command},
            {"type": "system", "command": command},
            {"type": "subprocess.run", "args": command},
            {"type": "Bomb", "command": command},
            {"type": "eval", "source": f"__import__('os').system({command!r})"},
            {"type": "Standardise", "features": f"__import__('os').system({command!r})"},
            {"type": "Standardise", "features": {"type": "os.system", "command": command}},
            {"type": "Flow.rebuild"},
            {"type": "Module"},
        )
    ):
        header = json.dumps(header_of(config))
        paths.append(write(tmp_path / f"{i}.safetensors", header))
    for path in paths:
        with pytest.raises(LoadError):
            cf.load(path)
    assert not mark.exists()


def saved_bytes(tmp_path: Path, flow: cf.Flow) -> tuple[bytes, int]:
    """Return a saved flow and the length of its safetensors header."""
    flow.save(tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    return data, 8 + struct.unpack("<Q", data[:8])[0]


def test_truncated_files_are_refused(tmp_path: Path):
    data, header = saved_bytes(tmp_path, vector_flow())
    path = tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(LoadError):
            cf.load(path)
    path.write_bytes(struct.pack("<Q", 2**62) + data[8:])
    with pytest.raises(LoadError):
        cf.load(path)
    path.write_bytes(data + b"more")
    with pytest.raises(LoadError):
        cf.load(path)


@pytest.mark.parametrize("name", ["residual", "realnvp", "maf", "image"])
def test_flipped_bits_are_refused_or_change_a_value(tmp_path: Path, name: str):
    """100 single flips of the header: a LoadError, or a flow that differs in some value;
    never another exception. (Flips of the weights cannot be told from weights.)"""
    flow = image_flow() if name == "image" else FLOWS[name](0)
    data, header = saved_bytes(tmp_path, flow)
    source, refused = random.Random(0), 0
    path = tmp_path / "flipped.safetensors"
    for _ in range(100):
        changed = bytearray(data)
        bit = source.randrange(64, 8 * header)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert isinstance(cf.load(path), cf.Flow)
        except LoadError:
            refused += 1
    assert refused > 50


_SIZE_PROBE = """
    import json, resource, sys, time
    import contraflow as cf
    from contraflow.errors import LoadError

    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = used + 512 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sys.argv[1:]:
        start = time.monotonic()
        try:
            cf.load(path)
        except LoadError as error:
            assert "refused" in str(error) or "shape" in str(error), (path, error)
            assert "memory" not in str(error).lower(), (path, error)
        else:
            raise SystemExit(f"{path} was loaded")
        assert time.monotonic() - start < 20, path
    print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, limits memory")
def test_absurd_sizes_allocate_nothing(tmp_path: Path):
    """A header that claims features = 10**9 in a file of 1 kB, under a limit of 512 MB more.

    Mutants: building on the CPU instead of the meta device; a Python list as long as a
    number in the file.
    """
    huge = 10**9
    branch = {"type": "MLPBranch", "features": huge, "hidden_features": [huge]}
    image = {"type": "ConvBranch", "shape": [huge, 2, 2], "hidden_channels": [huge, huge]}
    transforms = [
        {"type": "Standardise", "features": huge},
        {"type": "ActNorm", "features": huge},
        {"type": "LULinear", "features": huge},
        {"type": "LULinear", "features": 10**12},
        {"type": "LULinear", "features": 10**30},
        {"type": "Autoregressive", "features": huge},
        {"type": "Autoregressive", "features": huge, "order": [1, 0]},
        {"type": "Autoregressive", "features": huge, "hidden_features": [huge, huge]},
        {"type": "Coupling", "features": huge, "mask": [True, False]},
        {"type": "ResidualBlock", "branch": branch},
        {"type": "ResidualBlock", "branch": image},
        {"type": "MarginalSpline", "features": huge},
    ]
    paths = [
        write(tmp_path / f"{i}.safetensors", header_of(transform, huge))
        for i, transform in enumerate(transforms)
    ]
    assert all(path.stat().st_size < 2000 for path in paths)
    assert run_python(_SIZE_PROBE, *map(str, paths)) == "done\n"


@pytest.mark.parametrize("name", FLOWS)
def test_copies_are_independent(name: str):
    """deepcopy and pickle, which Lightning and multiprocessing rely on."""
    flow = FLOWS[name](0).eval()
    x = normal(3, 2)
    expected = flow.log_prob(x)
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(twin.log_prob(x), expected)
        for parameter in twin.parameters():
            parameter.data.add_(1)
        assert torch.equal(flow.log_prob(x), expected)


def test_dequantisation_alone_takes_noise():
    """Mutant: noise handed to a transform that does not declare itself stochastic."""
    chain = cf.Sequential(UniformDequantise(3), Halve(), Logit(0.0, 3.0))
    noise = chain.draw(torch.Size((2, 2)), torch.zeros(1), generator())
    assert noise[1:] == (None, None)
    z, _ = chain(torch.zeros(2, 2), noise=noise)
    assert z.isfinite().all()
