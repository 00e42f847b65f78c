"""Likelihoods with errors: the reported standard error is the true one."""

from __future__ import annotations

import math

import pytest
import torch

import contraflow as cf
from contraflow.evaluation import evaluate_likelihood, round_trip_error


@pytest.fixture(scope="module")
def levels() -> torch.Tensor:
    return torch.randint(0, 4, (32, 1, 2, 2), generator=torch.Generator().manual_seed(0)).float()


@pytest.fixture(scope="module")
def image(levels: torch.Tensor) -> cf.Flow:
    """Dequantisation, logit and ActNorm: noisy, and cheap enough for thousands of draws."""
    flow = cf.flows.ResidualFlow(shape=(1, 2, 2), num_bins=4, scales=0, tail=0)
    flow.initialise_from(levels)
    return flow.eval()


def test_a_deterministic_flow_is_evaluated_once() -> None:
    flow = cf.flows.MAF(features=2, transforms=1)
    estimate = cf.estimate_log_prob(flow, torch.zeros(3, 2))
    assert estimate.draws == 1
    assert estimate.kind is cf.Kind.EXACT
    assert torch.equal(estimate.stderr, torch.zeros(3, dtype=torch.float64))


def test_the_standard_error_of_a_row_is_the_true_one(image: cf.Flow, levels: torch.Tensor) -> None:
    """z-scores of 40 x 32 estimates of 32 draws against a mean of 1,000.

    Their mean square is that of Student's t (31/29) plus 32/1000 for the truth's own error;
    its standard error is about .05, so +- .25 gives a false alarm of 6e-7.
    """
    generator = torch.Generator().manual_seed(1)
    long = cf.estimate_log_prob(image, levels, stderr=1e-9, max_draws=1000, generator=generator)
    scores = []
    short = long
    for _ in range(40):
        short = cf.estimate_log_prob(image, levels, stderr=1e-9, max_draws=32, generator=generator)
        scores.append((short.value - long.value) / short.stderr)
    assert abs(torch.stack(scores).square().mean().item() - 31 / 29 - 0.032) < 0.25
    assert short.kind is cf.Kind.LOWER_BOUND


def test_draws_are_added_until_the_wanted_error(image: cf.Flow, levels: torch.Tensor) -> None:
    loose = cf.estimate_log_prob(image, levels, stderr=1.0)
    tight = cf.estimate_log_prob(image, levels, stderr=0.1)
    assert bool((tight.stderr <= 0.1).all())
    assert loose.draws < tight.draws < 4096
    with pytest.raises(cf.ConfigurationError, match="stderr=0"):
        cf.estimate_log_prob(image, levels, stderr=0.0)


def test_the_error_of_the_mean_is_the_spread_of_repeated_evaluations(
    image: cf.Flow, levels: torch.Tensor
) -> None:
    """Ratio of variances over 100 repetitions in [.4, 2.0]: 5 standard errors, sqrt(2/100) each."""
    generator = torch.Generator().manual_seed(2)
    results = [
        evaluate_likelihood(image, levels, stderr=1e-9, max_draws=6, generator=generator)
        for _ in range(100)
    ]
    values = torch.tensor([r.value for r in results])
    claimed = torch.tensor([r.stderr for r in results]).square().mean()
    assert 0.4 < (values.var() / claimed).item() < 2.0
    assert results[0].draws == 6
    assert results[0].unit == "bits_per_dim"


def test_bits_per_dimension_of_a_flow_that_is_uniform() -> None:
    """Uniform on 4 levels: 2 bits a dimension, whatever the draw."""
    torch.manual_seed(0)

    class Uniform(cf.Flow):
        def _log_prob(self, x, context, noise, generator):
            return torch.full((len(x),), -self.size * math.log(4))

    inner = cf.flows.ResidualFlow(shape=(1, 2, 2), num_bins=4, scales=0, tail=0)
    flow = Uniform(inner.transform, event_shape=(1, 2, 2)).eval()
    result = evaluate_likelihood(flow, torch.zeros(5, 1, 2, 2))
    assert result.value == pytest.approx(2.0)
    assert result.stderr == 0
    assert result.kind == "lower_bound"


def test_bias_bounds_travel_with_the_value() -> None:
    flow = cf.flows.ResidualFlow(6, transforms=3, lipschitz=0.9)
    view = flow.using(log_det=cf.logdet.PowerSeries(terms=10)).eval()
    result = evaluate_likelihood(view, torch.randn(4, 6), max_draws=4)
    expected = 3 * cf.logdet.truncation_bound(6, 0.9, 10)
    assert result.kind == "truncated"
    assert result.bias_bound == pytest.approx(expected)
    assert result.unit == "nats"


def test_a_row_of_probability_zero_is_named(image: cf.Flow, levels: torch.Tensor) -> None:
    bad = levels.clone()
    bad[3, 0, 0, 0] = 9.0
    with pytest.raises(cf.SupportError, match="row 3"):
        evaluate_likelihood(image, bad)


def test_the_round_trip_is_measured_in_data_units_before_rounding(levels: torch.Tensor) -> None:
    torch.manual_seed(0)
    image = cf.flows.ResidualFlow(shape=(1, 2, 2), num_bins=4, scales=0, tail=2)
    image.initialise_from(levels)
    assert 0 < round_trip_error(image, levels) < 1e-4
    assert round_trip_error(image, levels, dtype=torch.float64) < 1e-10
    assert next(image.parameters()).dtype == torch.float32  # the copy was converted, not the flow
