"""Calibration: the truth stays in the band as often as stated, a wrong flow leaves it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import contraflow as cf
from contraflow.distributions import DiagonalNormal
from contraflow.errors import ConfigurationError, DataError, SupportError
from contraflow.evaluation import calibrate
from contraflow.evaluation.calibration import (
    kolmogorov_quantile,
    kolmogorov_tail,
    ks_distance,
)
from contraflow.transform import Sequential
from contraflow.transforms import Reshape, Standardise, UniformDequantise


def identity(features: int = 2) -> cf.Flow:
    return cf.Flow(Standardise(features), event_shape=(features,)).double()


def normal(rows: int, features: int = 2, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=rng, dtype=torch.float64)


def test_the_truth_is_rejected_at_the_stated_rate() -> None:
    # 1,500 sets of 60 rows at a level of 5 % over three columns. Bonferroni and dependence make
    # the rate at most 5 %: more than 117 rejections (5 standard errors) have odds of 3e-7. A band
    # that is 15 % too wide would reject 2 %: fewer than 45 then, with odds of 1 - 3e-3.
    flow = identity()
    rejected = sum(calibrate(flow, normal(60, seed=i), level=0.05).rejected for i in range(1500))
    assert 45 <= rejected <= 117


@pytest.mark.parametrize(("scale", "spread"), [(1.1, "narrow"), (0.9, "wide")])
def test_a_scale_off_by_a_tenth_is_rejected(scale: float, spread: str) -> None:
    truth, wrong = (calibrate(identity(), normal(20_000) * s) for s in (1.0, scale))
    assert not truth.rejected
    assert truth.outside == 0
    assert wrong.rejected
    assert wrong.outside == 1
    assert (truth.radial_spread, wrong.radial_spread) == ("", spread)
    assert wrong.p_value.max() < 1e-4


def test_tails_are_told_from_width() -> None:
    x = normal(20_000)
    tails = torch.where(torch.arange(20_000)[:, None] % 2 == 0, 0.6, 1.7) * x  # a mixture
    assert calibrate(identity(), tails).radial_spread == "light tails"
    radius = x.norm(dim=1, keepdim=True)
    even = x / radius * (1.2 + 0.3 * (radius - 1.2))  # radii drawn together
    assert calibrate(identity(), even).radial_spread == "heavy tails"


def test_the_worst_coordinate_is_named() -> None:
    x = normal(2000, 4)
    x[:, 2] += 0.3
    result = calibrate(identity(4), x)
    assert result.worst == 2
    assert result.distance[2] > result.band > result.distance[[0, 1, 3]].max()
    assert result.outside == pytest.approx(0.2)  # one column of five


def test_dependence_shows_in_the_radius_alone() -> None:
    x = normal(5000, 1).expand(-1, 2)  # two equal coordinates, each a standard normal
    result = calibrate(identity(), x)
    assert (result.distance[:2] < result.band).all()
    assert result.distance[2] > result.band


def test_distances_and_p_values_agree_with_scipy() -> None:
    result = calibrate(identity(3), normal(500, 3) * 1.03)
    for column in range(4):
        expected = stats.kstest(result.u[:, column].numpy(), "uniform", method="exact")
        assert result.distance[column].item() == pytest.approx(expected.statistic, abs=1e-12)
        # Stephens' formula is an approximation, good to one part in a hundred.
        assert result.p_value[column].item() == pytest.approx(expected.pvalue, abs=1e-2)
    radius = stats.chi2(3).cdf((normal(500, 3) * 1.03).square().sum(1).numpy())
    assert result.u[:, 3].numpy() == pytest.approx(radius, abs=1e-10)


def test_the_limit_law_and_its_quantile() -> None:
    t = torch.tensor([0.01, 0.3, 0.8, 1.6, 3.0], dtype=torch.float64)
    expected = torch.from_numpy(stats.kstwobign.sf(t.numpy()))
    torch.testing.assert_close(kolmogorov_tail(t), expected, atol=1e-12, rtol=1e-9)
    for level in (0.3, 0.01, 1e-6):
        assert kolmogorov_quantile(level) == pytest.approx(stats.kstwobign.isf(level), rel=1e-9)


def test_a_distance_counts_both_sides_of_every_step() -> None:
    u = torch.tensor([[0.5, 0.0, 1.0], [0.5, 0.1, 1.0]])
    torch.testing.assert_close(ks_distance(u), torch.tensor([0.5, 0.9, 1.0]))


def test_the_context_belongs_to_its_row() -> None:
    class Shift(cf.Transform):
        closed_form = True

        def forward(self, x, context=None):
            assert context is not None
            return x - context, x.new_zeros(x.shape[:-1])

    flow = cf.Flow(Shift(), event_shape=(1,), context=1)
    context = 5 * normal(1000, 1, seed=1)
    x = normal(1000, 1) + context
    assert not calibrate(flow, x, context).rejected
    assert calibrate(flow, x, context.roll(1, 0)).rejected  # neighbours' contexts


def test_integers_are_dequantised_with_the_given_noise() -> None:
    chain = Sequential(UniformDequantise(4), Standardise(2), Reshape((2,), (2,)))
    flow = cf.Flow(chain, event_shape=(2,)).double()
    x = torch.tensor([[0.0, 3.0], [1.0, 2.0]], dtype=torch.float64).repeat(20, 1)
    once, again, other = (
        calibrate(flow, x, generator=torch.Generator().manual_seed(seed)).u for seed in (0, 0, 1)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    z = torch.special.ndtri(once[:, :2])
    assert (z >= x - 1e-9).all()
    assert (z <= x + 1).all()


def test_a_residual_flow_answers_with_its_own_latent_vector() -> None:
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(2, context=1, transforms=2, hidden_features=(8,)).double().eval()
    x, context = normal(600), normal(600, 1, seed=2)
    z = flow.transform(x, context)[0]
    torch.testing.assert_close(
        calibrate(flow, x, context).u[:, :2], torch.special.ndtr(z).detach(), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    x = normal(50)
    x[7, 1] = bad
    with pytest.raises(SupportError, match=r"1 of 50 rows .*first: row 7"):
        calibrate(identity(), x)

    class Broken(cf.Transform):
        closed_form = True

        def forward(self, x, context=None):
            return torch.where(x > 1, bad, x), x.new_zeros(x.shape[:-1])

    with pytest.raises(SupportError, match="latent vector that is not finite"):
        calibrate(cf.Flow(Broken(), event_shape=(2,)), normal(50))


def test_wrong_calls_are_refused() -> None:
    flow = cf.Flow(Standardise(2), DiagonalNormal(2), event_shape=(2,))
    with pytest.raises(ConfigurationError, match="DiagonalNormal; expected StandardNormal"):
        calibrate(flow, torch.zeros(9, 2))
    with pytest.raises(ConfigurationError, match="level"):
        calibrate(identity(), normal(9), level=0.0)
    with pytest.raises(DataError, match="7 rows"):
        calibrate(identity(), normal(7))
