"""Learned monotone maps of each feature on its own: marginals made Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow.registry import register
from contraflow.transform import BlockCertificate, Transform
from contraflow.transforms.spline import Knots, RationalQuadratic


@register
class MarginalSpline(Transform):
    """Map every feature by its own spline, ``z_i = t_i(x_i)``.

    ``initialise_from`` starts each spline at the map that makes the batch's marginal a
    standard normal: knots at equal shares of probability. Histogram-like marginals (counts,
    bounded columns) then cost the layers behind it nothing.

    Args:
        features: D.
        bins: K knots of probability a feature.
        bound: interval of both axes; beyond it the tails are straight.
        smoothing: share of a uniform density on the interval that is mixed into the
            empirical marginal, so that values never seen keep a finite slope.

    Example:
        >>> spline = MarginalSpline(1, bins=16)
        >>> spline.initialise_from(torch.linspace(-1, 1, 1001)[:, None])
        >>> z, _ = spline(torch.tensor([[-0.9], [0.0], [0.9]]))
        >>> bool(z.diff(dim=0).min() > 0), bool(z[1].abs() < 0.05)
        (True, True)

    Reference:
        Chen & Gopinath 2000; Meng et al. 2020, arXiv:2003.01941 (Gaussianisation flows).
    """

    initialised: Tensor

    def __init__(
        self, features: int, bins: int = 16, bound: float = 5.0, smoothing: float = 0.02
    ) -> None:
        super().__init__()
        self.features = features
        self.bins = bins
        self.bound = bound
        self.smoothing = smoothing
        self.spline = RationalQuadratic(bins, bound)
        self.raw = nn.Parameter(torch.zeros(features, self.spline.parameters))
        self.register_buffer("initialised", torch.tensor(False))

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, self.features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and the sum of the log-slopes."""
        z, slopes = self.spline.forward(x, self.raw)
        return z, slopes.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x in closed form."""
        x, slopes = self.spline.inverse(z, self.raw)
        return x, slopes.sum(-1)

    @torch.no_grad()
    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Make the marginals of this batch ``[N, D]`` standard normal."""
        if bool(self.initialised):
            return
        values = x.reshape(-1, self.features).double().sort(0).values.mT.contiguous()  # [D, N]
        grid = self._smooth_grid(values)  # [D, G]
        share = self._smooth_share(values, grid)  # [D, G], increasing from 0 to 1
        levels = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64, device=x.device)[1:-1]
        at = _interpolate(share, grid, levels.expand(self.features, -1).contiguous())
        ends = torch.full((self.features, 1), self.bound, dtype=torch.float64, device=x.device)
        knots_x = torch.cat([-ends, at, ends], 1)
        normal = torch.special.ndtri(levels).clamp(-self.bound, self.bound)
        knots_y = torch.cat([-ends, normal.expand(self.features, -1), ends], 1)
        self.raw.copy_(self.spline.parameters_for(_with_slopes(knots_x, knots_y)))
        self.initialised.fill_(True)

    def _smooth_grid(self, values: Tensor) -> Tensor:
        even = torch.linspace(-self.bound, self.bound, 513, dtype=torch.float64)
        even = even.to(values.device).expand(self.features, -1)
        return torch.cat([even, values.clamp(-self.bound, self.bound)], 1).sort(1).values

    def _smooth_share(self, values: Tensor, grid: Tensor) -> Tensor:
        count = values.shape[1]
        empirical = torch.searchsorted(values, grid, right=True) / count
        uniform = (grid + self.bound) / (2 * self.bound)
        share = (1 - self.smoothing) * empirical + self.smoothing * uniform
        return share.cummax(1).values

    @torch.no_grad()
    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return proved bounds of the slopes."""
        least, greatest = self.spline.slope_bounds(self.raw.double())
        return [BlockCertificate(name, forward=greatest, inverse=1 / least)]


def _interpolate(share: Tensor, grid: Tensor, levels: Tensor) -> Tensor:
    """Return the grid position at which the share reaches each level, ``[D, L]``."""
    index = torch.searchsorted(share, levels).clamp(1, share.shape[1] - 1)
    high, low = share.gather(1, index), share.gather(1, index - 1)
    right, left = grid.gather(1, index), grid.gather(1, index - 1)
    part = ((levels - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return left + part * (right - left)


def _with_slopes(x: Tensor, y: Tensor) -> Knots:
    """Choose slopes at the knots: harmonic means inside, the end bin's secant at the ends."""
    secant = y.diff(dim=1) / x.diff(dim=1).clamp_min(1e-6)
    inner = 2 / (1 / secant[:, :-1] + 1 / secant[:, 1:])
    slope = torch.cat([secant[:, :1], inner, secant[:, -1:]], 1)
    return Knots(x, y, slope.clamp(1e-2, 1e2))
