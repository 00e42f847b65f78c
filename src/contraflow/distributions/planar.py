"""The ten 2-D sets of the papers, as exact samplers of stated densities.

Every sampler draws independent rows from one fixed density: which component a row comes from is
itself random, so counts are multinomial and no shuffle is needed. The published scripts instead
take equally many rows per component (``make_circles``, ``make_moons``, the pinwheel) and leave
``line`` and ``cos`` on a curve, where no density exists; ours add a little noise there.

Draws are made in float64 and then rounded, so one generator state gives the same points in every
dtype.

Reference:
    Grathwohl et al. 2019, arXiv:1810.01367, section 4.1 and its released toy data, whose
    scales and centres are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from contraflow.errors import ConfigurationError, DtypeError, ShapeError, SupportError, nearest

SampleFn = Callable[[int, Generator | None], Tensor]
LogProbFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PlanarSet:
    """One distribution over the plane.

    Args:
        name: the set's name in the papers.
        sample_fn: ``(n, generator) -> [n, 2]`` float64, independent rows.
        log_prob_fn: ``[*B, 2] -> [*B]`` nats, exact, minus infinity outside the support;
            None where no closed form is known.
        entropy_nats: differential entropy, which no model's mean negative log-likelihood can
            beat; in closed form, or by quadrature to all digits written; None where unknown.

    Example:
        >>> board = planar_set("checkerboard")
        >>> board.sample(3).shape, round(board.entropy_nats / math.log(2), 6)  # bits
        (torch.Size([3, 2]), 5.0)
        >>> inside, outside = [1.0, 1.0], [1.0, 3.0]
        >>> board.log_prob(torch.tensor([inside, outside])).exp().tolist()  # 1/32 and 0
        [0.03125, 0.0]
    """

    name: str
    sample_fn: SampleFn = field(repr=False)
    log_prob_fn: LogProbFn | None = field(default=None, repr=False)
    entropy_nats: float | None = None

    def sample(
        self, n: int, generator: Generator | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Draw ``n`` independent points.

        Args:
            n: number of points.
            generator: the only source of randomness, and the choice of device; None takes
                torch's global generator on the CPU.
            dtype: floating dtype of the result; None takes ``torch.get_default_dtype()``.

        Returns:
            Points ``[n, 2]``.

        Raises:
            ConfigurationError: ``n`` is negative.
            DtypeError: ``dtype`` is not a floating dtype.
        """
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if n < 0:
            raise ConfigurationError(f"{self.name}.sample: got n={n}, expected n >= 0.")
        if not dtype.is_floating_point:
            raise DtypeError(
                f"{self.name}.sample: got dtype={dtype}, expected a floating dtype such as "
                "torch.float32."
            )
        return self.sample_fn(n, generator).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the exact log-density of ``x`` ``[*B, 2]``, nats ``[*B]``.

        Minus infinity outside the support; NaN where ``x`` holds a NaN.

        Raises:
            SupportError: this set has no density in closed form.
            ShapeError: the last dimension of ``x`` is not 2.
            DtypeError: ``x`` is not of a floating dtype.
        """
        if self.log_prob_fn is None:
            known = ", ".join(name for name, item in _SETS.items() if item.log_prob_fn)
            raise SupportError(
                f"{self.name}: its density has no closed form, so log_prob does not exist. "
                f"Use sample, or a set whose density is known: {known}."
            )
        if x.ndim == 0 or x.shape[-1] != 2:
            raise ShapeError(f"{self.name}.log_prob: got shape {tuple(x.shape)}, expected [*B, 2].")
        if not x.is_floating_point():
            raise DtypeError(
                f"{self.name}.log_prob: got {x.dtype}, expected a floating dtype; call x.float()."
            )
        value = self.log_prob_fn(x)
        return torch.where(x.isnan().any(-1), math.nan, value)  # NaN compares false: not -inf


# Draws -----------------------------------------------------------------------------------------


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _uniform(n: int, generator: Generator | None) -> Tensor:
    """Uniform on [0, 1), ``[n]``."""
    return torch.rand(n, generator=generator, dtype=torch.float64, device=_device(generator))


def _normal(n: int, generator: Generator | None) -> Tensor:
    """Two standard normals a row, ``[n, 2]``."""
    return torch.randn(n, 2, generator=generator, dtype=torch.float64, device=_device(generator))


def _integer(n: int, high: int, generator: Generator | None) -> Tensor:
    """Uniform on {0, ..., high - 1}, ``[n]`` int64."""
    return torch.randint(high, (n,), generator=generator, device=_device(generator))


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    """Cartesian coordinates ``[n, 2]`` of polar ones."""
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


# 8gaussians ------------------------------------------------------------------------------------

_GAUSSIANS_RADIUS = 4 / math.sqrt(2)
_GAUSSIANS_STD = 0.5 / math.sqrt(2)


def _sample_8gaussians(n: int, generator: Generator | None) -> Tensor:
    """Mean of 8 normals N(c_k, I/8), ``c_k = 2 sqrt(2) (cos, sin)(2 pi k / 8)``."""
    angle = _integer(n, 8, generator) * (math.pi / 4)
    return _polar(_GAUSSIANS_RADIUS, angle) + _GAUSSIANS_STD * _normal(n, generator)


def _log_prob_8gaussians(x: Tensor) -> Tensor:
    angle = torch.arange(8, dtype=x.dtype, device=x.device) * (math.pi / 4)
    offset = x.unsqueeze(-2) - _polar(_GAUSSIANS_RADIUS, angle)  # [*B, 8, 2]
    variance = _GAUSSIANS_STD**2
    energy = offset.square().sum(-1) / (2 * variance)  # [*B, 8]
    return torch.logsumexp(-energy, -1) - math.log(8 * 2 * math.pi * variance)


# 2spirals --------------------------------------------------------------------------------------


def _sample_2spirals(n: int, generator: Generator | None) -> Tensor:
    """Two arms ``s ((-t cos t, t sin t) + w) / 3 + 0.1 e``.

    ``t = 3 pi sqrt(u)``, s is -1 or 1 with equal odds, w is uniform on [0, 1/2]^2 and e standard
    normal, all independent.
    """
    t = 3 * math.pi * _uniform(n, generator).sqrt()
    width = torch.stack((_uniform(n, generator), _uniform(n, generator)), -1) / 2
    sign = 2.0 * _integer(n, 2, generator) - 1
    arm = torch.stack((-t * t.cos(), t * t.sin()), -1) + width
    return sign.unsqueeze(-1) * arm / 3 + 0.1 * _normal(n, generator)


# checkerboard ----------------------------------------------------------------------------------


def _sample_checkerboard(n: int, generator: Generator | None) -> Tensor:
    """Uniform on the 8 squares ``[2i, 2i+2] x [2j, 2j+2]``, i + j even, i, j in -2..1."""
    column = _integer(n, 4, generator) - 2
    row = 2 * _integer(n, 2, generator) - 2 + column % 2
    offset = torch.stack((_uniform(n, generator), _uniform(n, generator)), -1)
    return 2 * (torch.stack((column, row), -1) + offset)


def _log_prob_checkerboard(x: Tensor) -> Tensor:
    # Squares are closed: a sample that rounds onto an edge keeps its density. A point on a line
    # of the grid touches the cells on both sides of it, in each coordinate.
    low = (x / 2).ceil().sub(1).clamp(-2, 1)  # [*B, 2]
    high = (x / 2).floor().clamp(-2, 1)
    on_line = (low != high).any(-1)  # one of the touching cells is then black
    black = (low.sum(-1) % 2 == 0) | on_line
    inside = (x.abs() <= 4).all(-1) & black
    uniform = torch.full_like(x[..., 0], -math.log(32))
    return torch.where(inside, uniform, -math.inf)


# rings and circles -----------------------------------------------------------------------------

_RINGS_RADII = (3.0, 2.25, 1.5, 0.75)
_RINGS_STD = 0.08
_CIRCLES_RADII = (3.0, 1.5)
_CIRCLES_STD = 0.24


def _sample_circle_mixture(
    n: int, generator: Generator | None, radii: tuple[float, ...], std: float
) -> Tensor:
    device = _device(generator)
    choice = _integer(n, len(radii), generator)
    radius = torch.tensor(radii, dtype=torch.float64, device=device)[choice]
    angle = 2 * math.pi * _uniform(n, generator)
    return _polar(radius, angle) + std * _normal(n, generator)


def _log_prob_circle_mixture(x: Tensor, radii: tuple[float, ...], std: float) -> Tensor:
    """Log-density of circles blurred by an isotropic normal.

    For one circle of radius R the angle integrates to a Bessel function,
    ``p(x) = exp(-(r^2 + R^2) / (2 s^2)) I_0(r R / s^2) / (2 pi s^2)`` with ``r = |x|``: the law of
    Rice (1945). ``i0e(a) = exp(-a) I_0(a)`` keeps it finite.
    """
    r = torch.linalg.vector_norm(x, dim=-1).unsqueeze(-1)  # [*B, 1]
    radius = torch.tensor(radii, dtype=x.dtype, device=x.device)  # [K]
    energy = ((r - radius) / std).square() / 2  # [*B, K]
    bessel = torch.special.i0e(r * radius / std**2)
    return torch.logsumexp(bessel.log() - energy, -1) - math.log(len(radii) * 2 * math.pi * std**2)


def _sample_rings(n: int, generator: Generator | None) -> Tensor:
    """Uniform point on one of 4 circles of radius 3, 2.25, 1.5, 0.75, plus N(0, 0.08^2 I)."""
    return _sample_circle_mixture(n, generator, _RINGS_RADII, _RINGS_STD)


def _log_prob_rings(x: Tensor) -> Tensor:
    return _log_prob_circle_mixture(x, _RINGS_RADII, _RINGS_STD)


def _sample_circles(n: int, generator: Generator | None) -> Tensor:
    """Uniform point on one of 2 circles of radius 3 and 1.5, plus N(0, 0.24^2 I)."""
    return _sample_circle_mixture(n, generator, _CIRCLES_RADII, _CIRCLES_STD)


def _log_prob_circles(x: Tensor) -> Tensor:
    return _log_prob_circle_mixture(x, _CIRCLES_RADII, _CIRCLES_STD)


# moons, pinwheel, swissroll --------------------------------------------------------------------


def _sample_moons(n: int, generator: Generator | None) -> Tensor:
    """Two half circles of radius 2, with equal odds, plus N(0, 0.2^2 I).

    With ``a`` uniform on [0, pi]: ``(2 cos a - 1, 2 sin a - 0.2)`` above and
    ``(1 - 2 cos a, 0.8 - 2 sin a)`` below.
    """
    sign = 1 - 2.0 * _integer(n, 2, generator)  # 1 above, -1 below
    angle = math.pi * _uniform(n, generator)
    centre = torch.stack((-sign, 0.3 - 0.5 * sign), -1)
    return sign.unsqueeze(-1) * _polar(2.0, angle) + centre + 0.2 * _normal(n, generator)


def _sample_pinwheel(n: int, generator: Generator | None) -> Tensor:
    """Five bent normals: ``2 R(2 pi k / 5 + exp(a) / 4) (a, b)``.

    k is uniform on 0..4, a ~ N(1, 0.3^2), b ~ N(0, 0.1^2), independent; R turns clockwise.
    """
    blade = _integer(n, 5, generator)
    noise = _normal(n, generator)
    along, across = 1 + 0.3 * noise[:, 0], 0.1 * noise[:, 1]
    angle = 2 * math.pi / 5 * blade + along.exp() / 4
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack((along * cos + across * sin, across * cos - along * sin), -1)


def _sample_swissroll(n: int, generator: Generator | None) -> Tensor:
    """A rolled strip seen from its end: ``(t cos t, t sin t) / 5 + 0.2 e``.

    t is uniform on [1.5 pi, 4.5 pi], e standard normal.
    """
    t = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return _polar(t, t) / 5 + 0.2 * _normal(n, generator)


# line and cos ----------------------------------------------------------------------------------

_CURVE_HALF_WIDTH = 2.5
_CURVE_STD = 0.1
_CURVE_ENTROPY = math.log(2 * _CURVE_HALF_WIDTH) + 0.5 * math.log(
    2 * math.pi * math.e * _CURVE_STD**2
)


def _sample_curve(n: int, generator: Generator | None, curve: Callable[[Tensor], Tensor]) -> Tensor:
    x = _CURVE_HALF_WIDTH * (2 * _uniform(n, generator) - 1)
    noise = _CURVE_STD * _normal(n, generator)[:, 0]
    return torch.stack((x, curve(x) + noise), -1)


def _log_prob_curve(point: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
    x, y = point.unbind(-1)
    inside = x.abs() <= _CURVE_HALF_WIDTH
    score = (y - curve(x)) / _CURVE_STD
    log_normal = -score.square() / 2 - 0.5 * math.log(2 * math.pi * _CURVE_STD**2)
    return torch.where(inside, log_normal - math.log(2 * _CURVE_HALF_WIDTH), -math.inf)


def _identity(x: Tensor) -> Tensor:
    return x


def _wave(x: Tensor) -> Tensor:
    return 2.5 * x.sin()


def _sample_line(n: int, generator: Generator | None) -> Tensor:
    """First x uniform on [-2.5, 2.5], then y ~ N(x, 0.1^2)."""
    return _sample_curve(n, generator, _identity)


def _log_prob_line(x: Tensor) -> Tensor:
    return _log_prob_curve(x, _identity)


def _sample_cos(n: int, generator: Generator | None) -> Tensor:
    """First x uniform on [-2.5, 2.5], then y ~ N(2.5 sin x, 0.1^2); "cos" is the published name."""
    return _sample_curve(n, generator, _wave)


def _log_prob_cos(x: Tensor) -> Tensor:
    return _log_prob_curve(x, _wave)


# The table -------------------------------------------------------------------------------------

_SETS: dict[str, PlanarSet] = {
    item.name: item
    for item in (
        PlanarSet("8gaussians", _sample_8gaussians, _log_prob_8gaussians, 2.83157836052648),
        PlanarSet("2spirals", _sample_2spirals),
        PlanarSet("checkerboard", _sample_checkerboard, _log_prob_checkerboard, math.log(32)),
        PlanarSet("rings", _sample_rings, _log_prob_rings, 2.62318277030031),
        PlanarSet("moons", _sample_moons),
        PlanarSet("pinwheel", _sample_pinwheel),
        PlanarSet("swissroll", _sample_swissroll),
        PlanarSet("circles", _sample_circles, _log_prob_circles, 3.26813571170576),
        PlanarSet("line", _sample_line, _log_prob_line, _CURVE_ENTROPY),
        PlanarSet("cos", _sample_cos, _log_prob_cos, _CURVE_ENTROPY),
    )
}

PLANAR_SETS: tuple[str, ...] = tuple(_SETS)


def planar_set(name: str) -> PlanarSet:
    """Return the 2-D set called ``name``, one of ``PLANAR_SETS``.

    Raises:
        ConfigurationError: no set has that name; the nearest one is offered.

    Example:
        >>> planar_set("rings").name
        'rings'
    """
    if name not in _SETS:
        raise ConfigurationError(
            f"no 2-D set is called {name!r}{nearest(name, PLANAR_SETS) or '.'} "
            f"The sets are {', '.join(PLANAR_SETS)}."
        )
    return _SETS[name]
