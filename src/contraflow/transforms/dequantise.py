"""Uniform dequantisation: the bridge from counts to densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contraflow.domain import Domain
from contraflow.errors import ConfigurationError
from contraflow.kinds import Kind, Likelihood
from contraflow.registry import register
from contraflow.transform import BlockCertificate, Transform


class Dequantise(Transform):
    """Noise that turns integers into real numbers: no bijection, its inverse rounds down."""

    stochastic = True

    def draw(
        self, shape: torch.Size, like: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw u, ``[B, *E]``, uniform on [0, 1)."""
        device = like.device if generator is None else generator.device
        return torch.rand(shape, generator=generator, device=device, dtype=like.dtype).to(
            like.device
        )

    def likelihood(self, shape: Sequence[int]) -> Likelihood:
        """Tell that the value is a lower bound."""
        return Likelihood(Kind.LOWER_BOUND, stochastic=True)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the slope of ``x + u``; ``inverse`` rounds down, which no slope bounds."""
        return [BlockCertificate(name, method="closed form (rounds down)", forward=1.0)]


@register
class UniformDequantise(Dequantise):
    """``z = x + u``, u uniform on [0, 1): levels 0 ... n-1 become the interval [0, n).

    The only transform that is no bijection: a log-density of z, averaged over u, is a lower
    bound of log P(x), so the kind of likelihood is ``lower_bound``. ``inverse`` rounds down.

    Args:
        num_bins: n, levels.
        event_dim: dimensions of an event, 1 or 3.

    Example:
        >>> dequantise = UniformDequantise(17)
        >>> x = torch.tensor([[3.0, 16.0]])
        >>> torch.equal(dequantise.inverse(dequantise(x)[0])[0], x)
        True

    Reference:
        Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """

    def __init__(self, num_bins: int, event_dim: int = 1) -> None:
        super().__init__()
        if not 2 <= num_bins <= 2**24:  # beyond, float32 skips levels
            raise ConfigurationError(f"num_bins={num_bins}; expected 2 to 2**24 levels.")
        self.num_bins = num_bins
        self.event_dim = event_dim

    @property
    def domain(self) -> Domain:
        """Return the integers 0 ... n-1."""
        return Domain(0, self.num_bins - 1, integer=True)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the same shape, checked against ``event_dim``."""
        return self._check_dims(shape)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, noise: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + u``; ladj is 0."""
        batch = x.shape[: x.ndim - self.event_dim]
        u = self.draw(x.shape, x) if noise is None else noise.reshape(x.shape)
        # x + u must stay below x + 1 after rounding too, or neighbouring levels overlap.
        u = u.clamp(max=max(0.0, 1 - self.num_bins * torch.finfo(u.dtype).eps))
        return x + u, x.new_zeros(batch)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, noise: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Return the level below z, kept inside 0 ... n-1; ladj is 0."""
        batch = z.shape[: z.ndim - self.event_dim]
        return z.floor().clamp(0, self.num_bins - 1), z.new_zeros(batch)

    def extra_repr(self) -> str:
        """Return the number of levels, for ``print``."""
        return f"num_bins={self.num_bins}"
