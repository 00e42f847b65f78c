"""The 2-D sets: densities against quadrature, samples against densities.

Sampling tests run with fixed seeds; the odds below are paid only when a seed or the draw order
changes. FALSE_ALARM is the chance that one check fails although the code is right.
"""

import functools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.datasets import make_moons, make_swiss_roll

from contraflow.distributions.planar import PLANAR_SETS, PlanarSet, planar_set
from contraflow.errors import ConfigurationError, DtypeError, ShapeError, SupportError

FALSE_ALARM = 6e-7  # two-sided, five standard errors
DENSITIES = ("8gaussians", "checkerboard", "rings", "circles", "line", "cos")
DENSITY_FREE = tuple(name for name in PLANAR_SETS if name not in DENSITIES)
CELL = 0.25  # cells of the chi-square test tile [-5, 5]^2; every support edge is a multiple
HALF_WIDTH = 5.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def midpoints(step: float) -> torch.Tensor:
    num = round(2 * HALF_WIDTH / step)
    axis = -HALF_WIDTH + step * (torch.arange(num, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis)


@functools.cache
def log_prob_grid(name: str) -> tuple[torch.Tensor, float]:
    """Log-density on 800 x 800 midpoints; edges of supports fall between the points."""
    step = CELL / 20
    return planar_set(name).log_prob(midpoints(step)), step**2


def cell_probabilities(name: str) -> torch.Tensor:
    """Probability of each cell, ``[40 * 40]``, by 400 midpoints a cell."""
    log_prob, area = log_prob_grid(name)
    num = round(2 * HALF_WIDTH / CELL)
    return (log_prob.exp() * area).reshape(num, 20, num, 20).sum((1, 3)).flatten()


def cell_counts(x: torch.Tensor) -> torch.Tensor:
    num = round(2 * HALF_WIDTH / CELL)
    index = ((x + HALF_WIDTH) / CELL).floor().long()
    inside = ((index >= 0) & (index < num)).all(-1)
    return torch.bincount(index[inside, 0] * num + index[inside, 1], minlength=num * num)


def chi_square_tail(counts: torch.Tensor, probabilities: torch.Tensor, total: int) -> float:
    """Chance of a larger chi-square; cells that expect under 10 rows are one cell."""
    expected = total * probabilities
    large = expected >= 10
    observed = torch.cat((counts[large], (total - counts[large].sum()).reshape(1)))
    expected = torch.cat((expected[large], (total - expected[large].sum()).reshape(1)))
    if expected[-1] < 10:  # nothing but the far tails is left
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected).square() / expected).sum().item()
    return float(chi2.sf(statistic, len(expected) - 1))


def test_names_are_the_ten_of_the_papers():
    assert sorted(PLANAR_SETS) == sorted(
        "8gaussians 2spirals checkerboard rings moons pinwheel swissroll circles line cos".split()
    )
    assert all(planar_set(name).name == name for name in PLANAR_SETS)


@pytest.mark.parametrize("name", DENSITIES)
def test_density_integrates_to_one(name):
    log_prob, area = log_prob_grid(name)
    # Midpoints are exact for the uniform sets and spectrally accurate for the blurred ones.
    assert log_prob.exp().sum().item() * area == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", DENSITIES)
def test_entropy_is_that_of_the_density(name):
    log_prob, area = log_prob_grid(name)
    entropy = torch.special.entr(log_prob.exp()).sum().item() * area
    # 3e-8: what the grid leaves outside [-5, 5]^2 and cuts off at the ends of line and cos.
    assert planar_set(name).entropy_nats == pytest.approx(entropy, abs=3e-8)


@pytest.mark.parametrize("name", DENSITIES)
def test_entropy_is_the_mean_surprise_of_samples(name):
    item = planar_set(name)
    assert item.entropy_nats is not None
    surprise = -item.log_prob(item.sample(100_000, generator(1), dtype=torch.float64))
    if name == "checkerboard":
        assert (surprise == math.log(32)).all()
    else:
        z = (surprise.mean() - item.entropy_nats) / (surprise.std() / math.sqrt(len(surprise)))
        assert abs(z.item()) < 5  # FALSE_ALARM


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_follow_the_density(name):
    x = planar_set(name).sample(200_000, generator(2), dtype=torch.float64)
    tail = chi_square_tail(cell_counts(x), cell_probabilities(name), len(x))
    assert tail > FALSE_ALARM


@pytest.mark.parametrize("name", DENSITIES)
def test_chi_square_rejects_a_shift(name):
    # The mutant: 0.03 off, a third of the narrowest noise. The test above must be able to fail.
    x = planar_set(name).sample(200_000, generator(2), dtype=torch.float64) + 0.03
    tail = chi_square_tail(cell_counts(x), cell_probabilities(name), len(x))
    assert tail < FALSE_ALARM


def published_spirals(n: int, rng: np.random.Generator) -> np.ndarray:
    t = np.sqrt(rng.random(n)) * 540 * (2 * np.pi) / 360
    arm = -t * np.exp(-1j * t) + (rng.random(n) + 1j * rng.random(n)) * 0.5
    arm[: n // 2] *= -1
    return np.stack((arm.real, arm.imag), -1) / 3 + rng.normal(size=(n, 2)) * 0.1


def published_moons(n: int, rng: np.random.Generator) -> np.ndarray:
    points = np.asarray(make_moons(n, noise=0.1, random_state=int(rng.integers(99)))[0])
    return points * 2 + [-1, -0.2]


def published_pinwheel(n: int, rng: np.random.Generator) -> np.ndarray:
    a, b = 1 + 0.3 * rng.normal(size=n), 0.1 * rng.normal(size=n)
    angle = np.repeat(np.arange(5), n // 5) * (2 * np.pi / 5) + 0.25 * np.exp(a)
    blade = 2 * (a + 1j * b) * np.exp(-1j * angle)
    return np.stack((blade.real, blade.imag), -1)


def published_swissroll(n: int, rng: np.random.Generator) -> np.ndarray:
    roll = make_swiss_roll(n, noise=1.0, random_state=int(rng.integers(99)))[0]
    return roll[:, [0, 2]] / 5


PUBLISHED = {
    "2spirals": published_spirals,
    "moons": published_moons,
    "pinwheel": published_pinwheel,
    "swissroll": published_swissroll,
}


def two_sample_tail(x: torch.Tensor, y: torch.Tensor) -> float:
    """Chance of a larger two-sample chi-square, for equally many rows."""
    a, b = cell_counts(x).double(), cell_counts(y).double()
    large = a + b >= 20
    rest = torch.stack((len(x) - a[large].sum(), len(y) - b[large].sum()))
    statistic = ((a - b)[large].square() / (a + b)[large]).sum().item()
    if rest.sum() >= 20:
        statistic += ((rest[0] - rest[1]).square() / rest.sum()).item()
    return float(chi2.sf(statistic, int(large.sum())))  # one more degree at most: looser


@pytest.mark.parametrize("name", DENSITY_FREE)
def test_samples_follow_the_published_scripts(name):
    # Their equal counts per component lower the statistic, if anything.
    published = torch.from_numpy(PUBLISHED[name](200_000, np.random.default_rng(0)))
    x = planar_set(name).sample(200_000, generator(3), dtype=torch.float64)
    assert two_sample_tail(x, published) > FALSE_ALARM
    assert two_sample_tail(x + 0.04, published) < FALSE_ALARM  # the mutant


@pytest.mark.parametrize("name", PLANAR_SETS)
def test_rows_are_independent(name):
    """Batch means vary as those of independent rows: equal counts per component would not.

    Over 1,000 batches the ratio has a standard error of 0.045, normal kurtosis granted: 0.25 is
    5.6 of them, 2e-8 a check. Equal counts give 0.44 for y of the moons, 0.09 for the radius of
    the circles, and likewise for every other mixture.
    """
    batches = 1_000
    rng = generator(6)
    item = planar_set(name)
    x = torch.stack([item.sample(8, rng, dtype=torch.float64) for _ in range(batches)])
    radius = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # Constant along an arm of the spirals, which r and the angle give away only together.
    arm = (torch.atan2(x[..., 1:], x[..., :1]) + 3 * radius).cos()
    values = torch.cat((x, radius, arm), -1)  # [batches, 8, 4]
    ratio = 8 * values.mean(1).var(0) / values.flatten(0, 1).var(0)
    assert (ratio - 1).abs().max() < 0.25, ratio


@pytest.mark.parametrize("name", PLANAR_SETS)
def test_equal_generators_give_equal_samples(name):
    item = planar_set(name)
    state = torch.random.get_rng_state()
    first = item.sample(50, generator(7))
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator rests
    assert torch.equal(first, item.sample(50, generator(7)))
    assert not torch.equal(first, item.sample(50, generator(8)))


@pytest.mark.parametrize("name", PLANAR_SETS)
def test_dtype_rounds_the_same_points(name):
    item = planar_set(name)
    double = item.sample(50, generator(), dtype=torch.float64)
    single = item.sample(50, generator())
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert torch.equal(single, double.float())
    assert item.sample(0).shape == (0, 2)


@pytest.mark.parametrize("name", DENSITIES)
def test_log_prob_of_float32_is_close_and_batched(name):
    item = planar_set(name)
    x = item.sample(60, generator())
    value = item.log_prob(x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), item.log_prob(x.double()), atol=2e-4, rtol=1e-5)
    assert torch.equal(item.log_prob(x.reshape(3, 20, 2)), value.reshape(3, 20))


@pytest.mark.parametrize("name", DENSITIES)
def test_log_prob_at_the_ends(name):
    far = torch.tensor([[math.inf, 0.0], [0.0, -math.inf], [math.inf, math.inf], [1e3, 1e3]])
    value = planar_set(name).log_prob(far.double())
    assert (value < -1e4).all()  # minus infinity, or a far tail
    assert (value[:3] == -math.inf).all()
    nan = torch.tensor([[math.nan, 0.0], [0.0, math.nan]])
    assert planar_set(name).log_prob(nan).isnan().all()


@pytest.mark.parametrize("name", ["8gaussians", "rings", "circles", "line", "cos"])
def test_log_prob_has_the_right_gradient(name):
    x = planar_set(name).sample(5, generator(), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(planar_set(name).log_prob, x)
    if name in ("rings", "circles"):  # the radius has no derivative at the centre, p does
        centre = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        planar_set(name).log_prob(centre).sum().backward()
        assert centre.grad is not None
        assert (centre.grad == 0).all()


def test_checkerboard_squares_are_closed():
    log_prob = planar_set("checkerboard").log_prob
    black = [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0], [-4.0, -4.0], [2.0, 3.0], [-1.0, 2.0], [1.0, -4.0]]
    white = [
        [1.0, 3.0],
        [-1.0, 1.0],
        [4.0, 1.0],
        [-4.0, -1.0],
        [4.1, 3.0],
        [3.0, 4.1],
        [-4.1, -3.0],
    ]
    assert (log_prob(torch.tensor(black)) == -torch.tensor(32.0).log()).all()
    assert (log_prob(torch.tensor(white)) == -math.inf).all()


@pytest.mark.parametrize("name", DENSITY_FREE)
def test_unknown_density_is_an_error(name):
    item = planar_set(name)
    assert item.entropy_nats is None
    with pytest.raises(SupportError, match=r"no closed form.*checkerboard"):
        item.log_prob(torch.zeros(3, 2))


def test_unknown_name_offers_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'checkerboard'"):
        planar_set("checker-board")
    with pytest.raises(ConfigurationError, match=r"'zzz'\. The sets are 8gaussians"):
        planar_set("zzz")


def test_wrong_calls_are_errors():
    item = planar_set("rings")
    with pytest.raises(ConfigurationError, match="n=-1"):
        item.sample(-1)
    with pytest.raises(DtypeError, match=r"torch\.int64"):
        item.sample(3, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        item.log_prob(torch.zeros(4, 3))
    with pytest.raises(DtypeError, match=r"x\.float\(\)"):
        item.log_prob(torch.zeros(4, 2, dtype=torch.int64))


def test_sets_are_values():
    item = planar_set("cos")
    assert pickle.loads(pickle.dumps(item)) == item
    assert repr(PlanarSet("mine", item.sample_fn)) == "PlanarSet(name='mine', entropy_nats=None)"
