"""Monotone rational-quadratic splines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from contraflow.errors import ConfigurationError
from contraflow.registry import register

_LEAST = 1e-3  # share of the interval that no bin's width or height falls below
_LEAST_SLOPE = 1e-3
_RAW_ONE = math.log(math.expm1(1 - _LEAST_SLOPE))  # raw slope of a slope of 1


class Knots(NamedTuple):
    """Knots of a spline: positions, values and slopes, ``[*B, D, K + 1]`` each."""

    x: Tensor
    y: Tensor
    slope: Tensor


@register
@dataclass(frozen=True)
class RationalQuadratic:
    """A monotone spline on ``[-bound, bound]`` with straight tails; a scalar transformer.

    Args:
        bins: K; each entry takes 3K + 1 parameters: K widths, K heights, K + 1 slopes.
            All-zero parameters give the identity.
        bound: half the interval, the same on both axes.

    Raises:
        ConfigurationError: too few or too many bins, or a bound that is not positive.

    Example:
        >>> y, slope = RationalQuadratic(4).forward(torch.tensor([1.5]), torch.zeros(1, 13))
        >>> f"{y.item():.4f}", abs(slope.item()) < 1e-6
        ('1.5000', True)

    Reference:
        Gregory & Delbourgo 1982; Durkan et al. 2019, arXiv:1906.04032, equations 4 to 8.
    """

    bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        if not 2 <= self.bins < 1 / _LEAST or not self.bound > 0:
            raise ConfigurationError(
                f"RationalQuadratic(bins={self.bins}, bound={self.bound}); expected 2 to "
                f"{int(1 / _LEAST) - 1} bins and a bound above 0."
            )

    @property
    def parameters(self) -> int:
        """Return 3K + 1."""
        return 3 * self.bins + 1

    def knots(self, parameters: Tensor) -> Knots:
        """Return the knots that raw parameters ``[*B, D, 3K + 1]`` stand for."""
        widths, heights, slopes = parameters.split([self.bins, self.bins, self.bins + 1], -1)
        slope = _LEAST_SLOPE + nn.functional.softplus(slopes + _RAW_ONE)
        return Knots(self._positions(widths), self._positions(heights), slope)

    def _positions(self, raw: Tensor) -> Tensor:
        share = _LEAST + (1 - self.bins * _LEAST) * torch.softmax(raw, -1)
        inner = 2 * self.bound * share.cumsum(-1)[..., :-1] - self.bound
        edge = torch.full_like(raw[..., :1], self.bound)
        return torch.cat([-edge, inner, edge], -1)

    def parameters_for(self, knots: Knots) -> Tensor:
        """Return raw parameters of given knots, whose ends are at the bounds."""
        raw = [self._raw_share(knots.x), self._raw_share(knots.y)]
        slopes = (knots.slope - _LEAST_SLOPE).clamp_min(1e-4)
        raw.append(slopes + torch.log(-torch.expm1(-slopes)) - _RAW_ONE)  # softplus inverted
        return torch.cat(raw, -1)

    def _raw_share(self, positions: Tensor) -> Tensor:
        share = positions.diff(dim=-1) / (2 * self.bound)
        return torch.log(((share - _LEAST) / (1 - self.bins * _LEAST)).clamp_min(1e-5))

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and log-slope, ``[*B, D]`` each."""
        knots = self.knots(parameters)
        bin_ = _locate(knots.x, x)
        x0, width, y0, height, d0, d1 = _bin_values(knots, bin_)
        inside = x.abs() < self.bound
        xi = ((x - x0) / width).clamp(0, 1)
        s = height / width
        mixed = xi * (1 - xi)
        base = s + (d1 + d0 - 2 * s) * mixed
        y = y0 + height * (s * xi.square() + d0 * mixed) / base
        log_slope = _log_slope(s, d0, d1, xi, mixed, base)
        return _with_tails(inside, x, y, log_slope, knots, self.bound, inverse=False)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``; the log-slope is that of the inverse."""
        knots = self.knots(parameters)
        bin_ = _locate(knots.y, y)
        x0, width, y0, height, d0, d1 = _bin_values(knots, bin_)
        inside = y.abs() < self.bound
        rise = torch.minimum((y - y0).clamp_min(0), height)
        s = height / width
        bend = rise * (d1 + d0 - 2 * s)
        a = height * (s - d0) + bend
        b = height * d0 - bend
        c = -s * rise
        xi = (2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())).clamp(0, 1)
        mixed = xi * (1 - xi)
        base = s + (d1 + d0 - 2 * s) * mixed
        log_slope = _log_slope(s, d0, d1, xi, mixed, base)
        return _with_tails(inside, y, x0 + width * xi, -log_slope, knots, self.bound, inverse=True)

    def slope_bounds(self, parameters: Tensor) -> tuple[float, float]:
        """Return proved bounds (least, greatest) of the slope anywhere.

        In a bin the slope is ``s^2 n / base^2`` with n a convex combination of d0, s, d1 and
        base between s and ``(2s + d0 + d1) / 4``.
        """
        knots = self.knots(parameters)
        d0, d1 = knots.slope[..., :-1], knots.slope[..., 1:]
        s = knots.y.diff(dim=-1) / knots.x.diff(dim=-1)
        low = torch.minimum(torch.minimum(d0, d1), s)
        high = torch.maximum(torch.maximum(d0, d1), s)
        middle = (2 * s + d0 + d1) / 4
        least = s.square() * low / torch.maximum(s, middle).square()
        greatest = s.square() * high / torch.minimum(s, middle).square()
        return (
            min(least.min().item(), knots.slope.min().item()),
            max(greatest.max().item(), knots.slope.max().item()),
        )


def _locate(positions: Tensor, x: Tensor) -> Tensor:
    """Return the bin of each entry, ``[*B, D, 1]``; values outside go to the end bins."""
    inner = positions[..., 1:-1]
    return (x[..., None] >= inner).sum(-1, keepdim=True)


def _bin_values(knots: Knots, bin_: Tensor) -> tuple[Tensor, ...]:
    def at(values: Tensor, index: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])
        values = values.expand(*shape, values.shape[-1])
        return values.gather(-1, index.expand(*shape, 1)).squeeze(-1)

    x0, y0 = at(knots.x, bin_), at(knots.y, bin_)
    width, height = at(knots.x, bin_ + 1) - x0, at(knots.y, bin_ + 1) - y0
    return x0, width, y0, height, at(knots.slope, bin_), at(knots.slope, bin_ + 1)


def _log_slope(
    s: Tensor, d0: Tensor, d1: Tensor, xi: Tensor, mixed: Tensor, base: Tensor
) -> Tensor:
    top = d1 * xi.square() + 2 * s * mixed + d0 * (1 - xi).square()
    return 2 * torch.log(s) + torch.log(top) - 2 * torch.log(base)


def _with_tails(
    inside: Tensor,
    x: Tensor,
    y: Tensor,
    log_slope: Tensor,
    knots: Knots,
    bound: float,
    *,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Continue beyond the bounds in a straight line with the end's slope."""
    end = torch.where(x > 0, knots.slope[..., -1], knots.slope[..., 0])
    slope = 1 / end if inverse else end
    tail = torch.sign(x) * bound + (x - torch.sign(x) * bound) * slope
    return torch.where(inside, y, tail), torch.where(inside, log_slope, torch.log(slope))
