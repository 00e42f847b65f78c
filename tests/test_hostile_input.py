"""Hostile input to the Python API: a documented answer or one of our errors, never a third thing.

Hypothesis draws shapes, dtypes, values and memory layouts; ``holds`` is the rule.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import contraflow as cf
from contraflow import flow as flow_module
from contraflow.errors import (
    ConfigurationError,
    ContraflowError,
    ConvergenceError,
    DataError,
    DivergenceError,
    DtypeError,
    ShapeError,
    SupportError,
)
from contraflow.evaluation import evaluate_likelihood

DRAWS = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

# --- flows --------------------------------------------------------------------------------

_BOUNDED = [cf.Domain(low=0.0), cf.Domain(0.0, 1.0)]
_ORDINAL = [cf.Domain(0, 4, integer=True), cf.Domain()]
_SMALL: dict[str, Any] = {"transforms": 1, "hidden_features": (8,)}

FLOWS: dict[str, Callable[[], cf.Flow]] = {
    "residual": lambda: cf.flows.ResidualFlow(2, marginals=4, **_SMALL),
    "residual-context": lambda: cf.flows.ResidualFlow(2, context=3, **_SMALL),
    "image": lambda: cf.flows.InvertibleResNet(
        shape=(1, 4, 4), num_bins=5, scales=2, transforms=1, hidden_channels=(4, 4)
    ),
    "maf": lambda: cf.flows.MAF(2, **_SMALL),
    "maf-bounded": lambda: cf.flows.MAF(2, support=_BOUNDED, **_SMALL),
    "maf-ordinal": lambda: cf.flows.MAF(2, context=3, support=_ORDINAL, **_SMALL),
    "realnvp-context": lambda: cf.flows.RealNVP(2, context=3, **_SMALL),
}


@functools.cache
def flow_of(name: str) -> cf.Flow:
    """Return a flow away from its start, where many transforms are the identity."""
    torch.manual_seed(0)
    flow = FLOWS[name]()
    for parameter in flow.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return flow.eval()


# --- input --------------------------------------------------------------------------------

_BATCHES = ((), (0,), (1,), (3,), (2, 3), (2, 0), (3, 1))
_VALUES = (
    0.0, -0.0, 0.5, 1.0, 2.0, -1.0, 4.0, 7.0, 1e-40, 1e10, 1e20, -1e20, 3e38, -3e38, math.inf,
    -math.inf, math.nan,
)  # fmt: skip
_DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
    torch.complex64,
)  # fmt: skip
_FOREIGN = (None, "text", 3, 0.5, [0.0, 1.0], np.zeros(2, np.float32), (), {"x": 1})
_SHAPES = (
    0, 1, 3, (), (2,), (2, 3), torch.Size([2]), [2, 0], -1, (2, -1), 1.5, (1.5,), "three", "12",
    None, True, 2**62, 2**70, (2**40, 2**40), ("a",), ((1, 2),), {}, np.int64(2), math.nan,
)  # fmt: skip


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


_LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    lambda x: x,
    _strided,
    lambda x: x.expand(300, *x.shape),
    lambda x: x.requires_grad_() if x.is_floating_point() else x,
    _inference,
    lambda x: x.to_sparse(),
)


@st.composite
def tensors(draw: st.DrawFn, event: tuple[int, ...]) -> Any:
    """Draw what might come as x or as a context of this event shape, rightly or wrongly."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(_FOREIGN))
    shape = draw(st.sampled_from(_BATCHES)) + event
    if draw(st.integers(0, 9)) == 0:
        wrong = (shape[:-1], (*shape[:-1], 1 + math.prod(event)), (*shape, 1), (*shape[:-1], 0))
        shape = draw(st.sampled_from(wrong))
    plain = st.sampled_from((0.0, 0.25, 0.5, 0.75))  # inside of every support but the ordinal
    levels = st.sampled_from((0.0, 1.0, 2.0))
    hostile = st.sampled_from(_VALUES)
    values = draw(st.sampled_from((plain, levels, levels, hostile)))
    x = torch.tensor([draw(values) for _ in range(math.prod(shape))]).reshape(shape)
    if draw(st.integers(0, 3)) == 0:
        dtype = draw(st.sampled_from(_DTYPES))
        x = (x if dtype.is_floating_point else x.nan_to_num(0, 9, -9).clamp(-9, 9)).to(dtype)
    return draw(st.sampled_from(_LAYOUTS))(x)


@st.composite
def calls(draw: st.DrawFn) -> tuple[cf.Flow, Any, Any]:
    """Draw a flow, an x, and a context, which mostly is there when it must."""
    flow = flow_of(draw(st.sampled_from(list(FLOWS))))
    x = draw(tensors(tuple(flow.event_shape)))
    wanted = (flow.context > 0) == (draw(st.integers(0, 9)) > 0)
    return flow, x, draw(tensors((max(flow.context, 1),))) if wanted else None


# --- the rule -----------------------------------------------------------------------------


def batch_of(flow: cf.Flow, x: Tensor, context: Tensor | None) -> torch.Size:
    """Return the shape that ``log_prob`` promises."""
    batch = x.shape[: x.ndim - len(flow.event_shape)]
    return batch if context is None else torch.broadcast_shapes(batch, context.shape[:-1])


def holds(call: Callable[[], Tensor], shape: Callable[[], torch.Size]) -> str:
    """Assert that a call answers with log-densities of the shape, or with one of our errors."""
    try:
        value = call()
    except ContraflowError:
        return "refused"
    assert value.shape == shape()
    assert not bool((value.isnan() | value.isposinf()).any())
    return "answered"


def test_log_prob() -> None:
    met: Counter[str] = Counter()

    @DRAWS
    @given(calls(), st.booleans())
    def run(drawn: tuple[cf.Flow, Any, Any], gradient: bool) -> None:
        flow, x, context = drawn
        with torch.set_grad_enabled(gradient):
            met[holds(lambda: flow.log_prob(x, context), lambda: batch_of(flow, x, context))] += 1

    run()
    assert min(met["answered"], met["refused"]) > DRAWS.max_examples / 5  # neither is idle


@DRAWS
@given(calls(), st.booleans())
def test_log_prob_of_the_distribution(drawn: tuple[cf.Flow, Any, Any], validate: bool) -> None:
    flow, x, context = drawn

    def call() -> Tensor:
        return cf.FlowDistribution(flow, flow(context).context, validate).log_prob(x)

    holds(call, lambda: batch_of(flow, x, context))


@DRAWS
@given(calls(), st.sampled_from(_SHAPES))
def test_samples(drawn: tuple[cf.Flow, Any, Any], shape: Any) -> None:
    flow, _, context = drawn
    batch = () if context is None else tuple(getattr(context, "shape", ()))[:-1]

    def expected() -> torch.Size:
        wanted = tuple(shape) if isinstance(shape, list | tuple) else (int(shape),)
        return torch.Size((*wanted, *batch, *flow.event_shape))

    if math.prod(batch) > 100:
        return
    holds(lambda: flow.sample(shape, context), expected)
    holds(lambda: flow(context).sample(shape), expected)
    holds(lambda: flow.rsample_and_log_prob(shape, context)[0], expected)


@DRAWS
@given(calls(), st.sampled_from((1.0, 1e-9, 0, -1, math.nan, "0.1", None)))
def test_estimates(drawn: tuple[cf.Flow, Any, Any], stderr: Any) -> None:
    flow, x, context = drawn
    if isinstance(x, Tensor) and x.numel() > 500:
        return

    def estimate() -> Tensor:
        found = cf.estimate_log_prob(flow, x, context, stderr=stderr, max_draws=5)
        assert not found.stderr.isnan().any()
        return found.value

    def mean() -> Tensor:
        found = evaluate_likelihood(flow, x, context, stderr=stderr, max_draws=5)
        assert math.isfinite(found.stderr)
        assert math.isfinite(found.value)
        assert str(found)
        return torch.tensor(found.value)

    holds(estimate, lambda: batch_of(flow, x, context))
    holds(mean, torch.Size)


def test_the_rule_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at the values a NaN comes out; with a loose shape check, another shape."""
    flow = flow_of("maf")
    bad = torch.full((2, 2), math.nan)
    assert holds(lambda: flow.log_prob(bad), lambda: torch.Size([2])) == "refused"
    assert holds(lambda: flow.log_prob(bad.zero_()), lambda: torch.Size([2])) == "answered"
    with pytest.raises(AssertionError):
        holds(lambda: flow.log_prob(bad), lambda: torch.Size([3]))
    monkeypatch.setattr(flow_module, "explained", lambda values, *_: values)
    with pytest.raises(AssertionError):
        holds(lambda: flow.log_prob(bad.fill_(math.nan)), lambda: torch.Size([2]))
    with pytest.raises(RuntimeError):
        holds(lambda: torch.zeros(2) + torch.zeros(3), lambda: torch.Size([2]))


# --- decisions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "maf"])
@pytest.mark.parametrize("value", [1e20, 3e38, math.inf, -3e38])
def test_far_out_the_density_is_0(name: str, value: float) -> None:
    """-inf, as its square overflows; a neighbour is not touched. Mutant: inf - inf = NaN."""
    flow = flow_of(name)
    x = torch.tensor([[value, value], [0.5, 0.5], [0.5, -value]])
    found = flow.log_prob(x)
    assert found.isneginf().tolist() == [True, False, True]
    torch.testing.assert_close(found[1], flow.log_prob(x[1]))


def test_an_overflow_of_a_moderate_x_is_an_error() -> None:
    """-inf would be a wrong number there. Mutant: every NaN becomes -inf."""
    flow = cf.flows.MAF(2, **_SMALL)
    scale: Any = flow.transform[1]  # pyright: ignore[reportIndexIssue]
    scale.shift.data.fill_(-1.0)
    scale.log_scale.data.fill_(200.0)  # exp(200) is infinite in float32; (1 - 1) * inf is NaN
    with pytest.raises(SupportError, match=r"row 0 is not a number in torch.float32.*double"):
        flow.log_prob(torch.ones(2))
    assert flow.double().log_prob(torch.ones(2, dtype=torch.float64)).isfinite()


def test_weights_that_are_not_finite_are_named() -> None:
    flow = cf.flows.MAF(2, **_SMALL)
    next(flow.parameters()).data.fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"transform\._parts\.1\.shift"):
        flow.log_prob(torch.zeros(2))
    with pytest.raises(ConvergenceError):
        flow.sample(2)


def test_values_are_not_looked_at_where_they_cannot_be() -> None:
    """vmap, jacrev and compile see no branch on a value. Mutant: is_eager always true."""
    flow = flow_of("maf")
    x = torch.tensor([[0.1, 0.2], [math.nan, 0.0]])
    assert torch.func.vmap(flow.log_prob)(x).isfinite().tolist() == [True, False]
    assert torch.func.jacrev(flow.log_prob)(x[0]).shape == (2,)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x[0]), flow.log_prob(x[0]))
    assert flow.log_prob(torch.zeros(2, 2, device="cpu")).shape == (2,)


# --- fit ----------------------------------------------------------------------------------

ROWS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"max_epochs": 1, "batch_size": 16, "ema_decay": 0.0}


def small(context: int = 0) -> cf.Flow:
    torch.manual_seed(0)
    return cf.flows.MAF(2, context=context, transforms=1, hidden_features=(4,))


_HOSTILE = (None, "x", -1, 0, 1, 0.5, math.nan, math.inf, -math.inf, True, [1], 2**70)
_SETTINGS = (
    "validation", "max_epochs", "seed", "learning_rate", "weight_decay", "beta2", "warmup_steps",
    "decay_steps", "final_rate", "ema_decay", "patience", "batch_size", "initial_rows",
)  # fmt: skip


@settings(DRAWS, max_examples=80)
@given(st.sampled_from(_SETTINGS), st.sampled_from(_HOSTILE))
def test_settings_of_fit(name: str, value: Any) -> None:
    """A setting is refused by name, or the fit ends and gives a density."""
    if name == "max_epochs" and value == 2**70:
        return
    try:
        flow = cf.fit(small(), ROWS, **(QUICK | {name: value}))
    except ConfigurationError as error:
        found = str(error)
    except DivergenceError:
        found = "learning_rate"  # the only setting that may blow a fit up
    else:
        found = name
        assert flow.log_prob(ROWS).isfinite().all()
    assert name in found


@settings(DRAWS, max_examples=60)
@given(st.data())
def test_data_of_fit(data: st.DataObject) -> None:
    features = data.draw(st.sampled_from((0, 3)))
    x, context = data.draw(tensors((2,))), None
    if data.draw(st.booleans()):
        x = ROWS
    if data.draw(st.integers(0, 9)) == 0 or features:
        context = data.draw(st.one_of(tensors((3,)), st.just(torch.zeros(24, 3))))
    weights = data.draw(st.one_of(st.none(), tensors(()), st.just(torch.ones(24))))
    try:
        flow = cf.fit(small(features), x, context, weights=weights, **QUICK)
    except ContraflowError:
        pass
    else:
        assert flow.log_prob(x.detach(), context).shape == (len(x),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rates": 1.0}, "did you mean 'learning_rate'"),
        ({"max_time": "ten minutes"}, r"max_time='ten minutes'.*DD:HH:MM:SS"),
        ({"max_time": timedelta(seconds=-1)}, "above 0"),
        ({"max_time": 60}, "max_time=60"),
        ({"validation": 1.0}, r"a share in \(0, 1\)"),
        ({"validation": math.nan}, r"a share in \(0, 1\)"),
        ({"max_epochs": -3}, "a whole number from 1"),
    ],
)
def test_settings_that_fit_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        cf.fit(small(), ROWS, **options)


def test_rows_that_fit_refuses() -> None:
    for rows in (0, 1, 2):
        with pytest.raises(DataError, match=f"{rows}"):
            cf.fit(small(), ROWS[:rows])
    with pytest.raises(DataError, match="context"):
        cf.fit(small(3), ROWS, torch.zeros(5, 3))
    with pytest.raises(DtypeError, match="int64"):
        cf.fit(small(), torch.zeros(24, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"expected \[N, 2\]"):
        cf.fit(small(), torch.zeros(24, 2, 2))
    bounded = cf.flows.MAF(2, support=_BOUNDED, **_SMALL)
    with pytest.raises(DataError, match="row 7 of x lies outside"):
        cf.fit(bounded, torch.tensor([[1.0, 0.5]] * 7 + [[1.0, 1.5]]))
    for weights, words in (
        (torch.ones(3), r"expected \[24\]"),
        (-torch.ones(24), "0 or more"),
        (torch.zeros(24), "not all 0"),
        (torch.cat([torch.ones(2), torch.zeros(22)]), "2 rows of positive weight"),
    ):
        with pytest.raises(DataError, match=words):
            cf.fit(small(), ROWS, weights=weights)


def test_few_rows_and_constant_columns_are_fitted() -> None:
    constant = torch.cat([ROWS[:3, :1], torch.full((3, 1), 5.0)], 1)
    for x in (ROWS[:3], constant):
        assert cf.fit(small(), x, max_epochs=1).log_prob(x).isfinite().all()


def test_a_row_of_weight_0_is_no_row() -> None:
    """Mutant: weights that are checked and then forgotten."""
    weights = torch.cat([torch.ones(16), torch.zeros(8)])
    first = cf.fit(small(), ROWS, weights=weights, **QUICK)
    again = cf.fit(small(), ROWS[:16], **QUICK)
    other = cf.fit(small(), ROWS[:16], weights=torch.arange(1.0, 17.0), **QUICK)
    states = [flow.state_dict() for flow in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[1][name], states[2][name]) for name in states[0])
