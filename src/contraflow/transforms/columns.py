"""Columns of a table, each with its own domain, taken to the real line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from contraflow.domain import Domain, ProductDomain
from contraflow.registry import register
from contraflow.transform import BlockCertificate, Transform
from contraflow.transforms.dequantise import Dequantise


@register
class DequantiseColumns(Dequantise):
    """``z = x + u`` in the columns of integers, u uniform on [0, 1); the others pass.

    Args:
        columns: D domains.

    Example:
        >>> dequantise = DequantiseColumns([Domain(), Domain(1, 5, integer=True)])
        >>> z, _ = dequantise(torch.tensor([[0.5, 4.0]]), noise=torch.tensor([[0.9, 0.25]]))
        >>> z.tolist()
        [[0.5, 4.25]]

    Reference:
        Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """

    def __init__(self, columns: Sequence[Domain]) -> None:
        super().__init__()
        self.columns = tuple(columns)

    @property
    def domain(self) -> ProductDomain:
        """Return the columns' own domains."""
        return ProductDomain(self.columns)

    def _is_integer(self, x: Tensor) -> Tensor:
        return torch.tensor([bool(c.integer) for c in self.columns], device=x.device)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, len(self.columns))

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, noise: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + u`` in the columns of integers; ladj is 0."""
        u = self.draw(x.shape, x) if noise is None else noise.reshape(x.shape)
        # x + u must stay below x + 1 after rounding too, or neighbouring levels overlap.
        largest = [max(abs(c.low or 0), abs(c.high or 0)) + 1 for c in self.columns]
        u = u.minimum(1 - x.new_tensor(largest) * torch.finfo(x.dtype).eps)
        return torch.where(self._is_integer(x), x + u, x), x.new_zeros(x.shape[:-1])

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, noise: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Round the columns of integers down, inside their range; ladj is 0."""
        levels = self.domain.clamp(torch.where(self._is_integer(z), z.floor(), z))
        return levels, z.new_zeros(z.shape[:-1])


@register
class UnboundColumns(Transform):
    """Map each column to the real line by the bijection that its domain asks for.

    A column on ``(low, high)`` by the logit of its place in the interval, on ``(low, inf)`` by
    ``ln(x - low)``, on ``(-inf, high)`` by ``-ln(high - x)``; integers from low to high, which
    come dequantised, as the interval ``(low - margin, high + 1 + margin)`` with a margin of a
    hundredth of a level, so that no draw of u can fall on an end. Free columns pass.

    Args:
        columns: D domains.

    Example:
        >>> unbound = UnboundColumns([Domain(), Domain(low=0), Domain(0, 1)])
        >>> unbound(torch.tensor([[7.0, 1.0, 0.5]]))[0].tolist()
        [[7.0, 0.0, 0.0]]

    Reference:
        Carpenter et al. 2017, "Stan", section on constrained variables.
    """

    def __init__(self, columns: Sequence[Domain]) -> None:
        super().__init__()
        self.columns = tuple(columns)

    @property
    def domain(self) -> ProductDomain:
        """Return the open intervals."""
        return ProductDomain(tuple(_interval(column) for column in self.columns))

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, len(self.columns))

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return which columns have ends, and the ends, 0 where there is none; each ``[D]``."""
        domains = self.domain.columns
        lows, highs = [d.low for d in domains], [d.high for d in domains]
        return (
            torch.tensor([low is not None for low in lows], device=x.device),
            torch.tensor([high is not None for high in highs], device=x.device),
            x.new_tensor([low or 0.0 for low in lows]),
            x.new_tensor([high or 0.0 for high in highs]),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the free coordinates."""
        has_low, has_high, low, high = self._ends(x)
        # ln of the distance to each end; 1 stands in where there is no end: ln 1 = 0.
        below = torch.where(has_low, x - low, 1.0).log()
        above = torch.where(has_high, high - x, 1.0).log()
        z = torch.where(has_low | has_high, below - above, x)
        # dz/dx = 1/(x - low) + 1/(high - x), of which one term may be missing.
        both = torch.where(has_low & has_high, (high - low).log(), 0.0)
        return z, (both - below - above).sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x inside its ends."""
        has_low, has_high, low, high = self._ends(z)
        width = high - low
        # From the nearer end: 1 - sigmoid(z) would lose the digits near high.
        tail = width * torch.sigmoid(-z.abs())
        between = torch.where(z > 0, high - tail, low + tail)
        one_sided = torch.where(has_low, low + z.exp(), high - (-z).exp())
        x = torch.where(has_low & has_high, between, torch.where(has_low | has_high, one_sided, z))
        slope = torch.where(
            has_low & has_high,
            torch.where(has_low & has_high, width, 1.0).log() - softplus(z) - softplus(-z),
            torch.where(has_low, z, torch.where(has_high, -z, 0.0)),
        )
        return self.domain.clamp(x), slope.sum(-1)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the slopes' bounds: a logit is arbitrarily steep, an exponential too."""
        forward, inverse = 1.0, 1.0
        for column in self.domain.columns:
            if column.unbounded:
                continue
            forward = math.inf
            if column.low is None or column.high is None:
                inverse = math.inf
            else:
                inverse = max(inverse, (column.high - column.low) / 4)
        bounds = [None if math.isinf(bound) else bound for bound in (forward, inverse)]
        return [BlockCertificate(name, forward=bounds[0], inverse=bounds[1])]


def _interval(column: Domain) -> Domain:
    low, high = column.ends
    return Domain(low - 0.01, high + 1.01) if column.integer else column
