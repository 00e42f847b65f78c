"""Activations of slope at most 1, each with its slope in closed form.

``value_and_slope`` gives both in one pass, so that a product with a Jacobian needs no
activation and no autograd graph. A concatenating activation (``expansion = 2``) maps ``N``
channels to ``2N``; its gain at a point is the l2 norm of the two slopes, at most 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from contraflow.errors import ConfigurationError, nearest


class Activation(nn.Module):
    """An elementwise map whose gain ``sqrt(sum_e slope_e**2)`` never exceeds 1.

    Attributes:
        expansion: output channels per input channel.
        slopes: an interval that holds every slope; bounds of compositions ask for [0, 1].
    """

    expansion: int = 1
    slopes: tuple[float, float] = (-1.0, 1.0)

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and derivative, both ``[*B, e*N, ...]`` along ``dim``."""
        raise NotImplementedError

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return the value, ``[*B, e*N, ...]`` along ``dim``; the slope costs nothing here."""
        return self.value_and_slope(x, dim)[0]


class ELU(Activation):
    """``x`` for x > 0, else ``exp(x) - 1``; slopes in (0, 1]."""

    slopes = (0.0, 1.0)

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return the value, the shape of ``x``."""
        return nn.functional.elu(x)

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope, the shape of ``x``."""
        tail = x.clamp(max=0.0)
        return torch.where(x > 0, x, torch.expm1(tail)), torch.exp(tail)


class Tanh(Activation):
    """``tanh(x)``; slopes in (0, 1]."""

    slopes = (0.0, 1.0)

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return the value, the shape of ``x``."""
        return torch.tanh(x)

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope, the shape of ``x``."""
        value = torch.tanh(x)
        return value, 1 - value.square()


class Softplus(Activation):
    """``log(1 + exp(x))``; slopes in (0, 1)."""

    slopes = (0.0, 1.0)

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return the value, the shape of ``x``."""
        return nn.functional.softplus(x, threshold=40)

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope, the shape of ``x``."""
        # torch's threshold of 20 would leave value and slope 2e-9 apart in float64.
        return nn.functional.softplus(x, threshold=40), torch.sigmoid(x)


class Sine(Activation):
    """``sin(2 pi x) / (2 pi)``; slopes in [-1, 1] (Lu et al. 2021, arXiv:2102.13042)."""

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return the value, the shape of ``x``."""
        return torch.sin(2 * math.pi * x) / (2 * math.pi)

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope, the shape of ``x``."""
        angle = 2 * math.pi * x
        return torch.sin(angle) / (2 * math.pi), torch.cos(angle)


# Slopes of x*sigmoid(a*x) lie in [-0.09984, 1.09984] for every a > 0.
_SWISH_SLOPE = 1.1
_RAW_ONE = math.log(math.expm1(1.0))  # softplus(_RAW_ONE) = 1


class LipSwish(Activation):
    """``x * sigmoid(softplus(beta) * x) / 1.1``; |slope| <= 1 for every learnable ``beta``.

    Reference:
        Chen et al. 2019, arXiv:1906.02735, section 3.3.
    """

    slopes = (-0.091, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(_RAW_ONE))

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return the value, the shape of ``x``."""
        rate = nn.functional.softplus(self.beta.to(x.dtype))
        return x * torch.sigmoid(rate * x) / _SWISH_SLOPE

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope, the shape of ``x``."""
        angle = nn.functional.softplus(self.beta.to(x.dtype)) * x
        gate = torch.sigmoid(angle)
        value = x * gate
        return value / _SWISH_SLOPE, gate * (1 + angle * (1 - gate)) / _SWISH_SLOPE


class CLipSwish(Activation):
    """``[s(x), s(-x)] / 1.004`` with ``s`` = LipSwish; gains in [.640, 1].

    Reference:
        Perugachi-Diaz et al. 2021, arXiv:2102.02694.
    """

    expansion = 2

    def __init__(self) -> None:
        super().__init__()
        self.swish = LipSwish()

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope with twice the channels along ``dim``."""
        left, left_slope = self.swish.value_and_slope(x)
        right, right_slope = self.swish.value_and_slope(-x)
        value = torch.cat([left, right], dim) / 1.004
        return value, torch.cat([left_slope, -right_slope], dim) / 1.004


class CPila(Activation):
    """``[p(x - .2), p(-x - .2)] / 1.06``, p piecewise; gains in [.943, .999].

    ``p(x) = x`` for x > 0, else ``(12.5 x^3 - 5 x^2 + x) exp(5x)``, twice differentiable.

    Reference:
        Ahn et al. 2022, arXiv:2209.15238.
    """

    expansion = 2

    def value_and_slope(self, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        """Return value and slope with twice the channels along ``dim``."""
        left, left_slope = _pila(x - 0.2)
        right, right_slope = _pila(-x - 0.2)
        value = torch.cat([left, right], dim) / 1.06
        return value, torch.cat([left_slope, -right_slope], dim) / 1.06


def _pila(x: Tensor) -> tuple[Tensor, Tensor]:
    # Beyond either end the exponential or the cube would overflow; exp(-1000) is 0 anyway.
    tail = x.clamp(-200.0, 0.0)
    decay = torch.exp(5 * tail)
    value = ((12.5 * tail - 5) * tail + 1) * tail * decay
    slope = (((62.5 * tail + 12.5) * tail - 5) * tail + 1) * decay
    return torch.where(x > 0, x, value), torch.where(x > 0, torch.ones_like(x), slope)


ACTIVATIONS: dict[str, type[Activation]] = {
    "elu": ELU,
    "tanh": Tanh,
    "softplus": Softplus,
    "sine": Sine,
    "lipswish": LipSwish,
    "clipswish": CLipSwish,
    "cpila": CPila,
}


def activation(name: str) -> Activation:
    """Build an activation by name.

    Raises:
        ConfigurationError: the name is unknown.

    Example:
        >>> value, slope = activation("tanh").value_and_slope(torch.zeros(1))
        >>> value.item(), slope.item()
        (0.0, 1.0)
    """
    try:
        return ACTIVATIONS[name.lower()]()
    except KeyError:
        raise ConfigurationError(
            f"no activation named {name!r}{nearest(name, ACTIVATIONS) or '.'} Known: "
            f"{', '.join(ACTIVATIONS)}."
        ) from None
