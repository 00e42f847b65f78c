"""Base densities of the latent space: flat vectors ``[*B, D]``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow.registry import register


class Base(nn.Module):
    """A density of flat latent vectors that can be evaluated and sampled.

    Attributes:
        features: D.
    """

    features: int

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of ``[*B, D]``, ``[*B]`` nats."""
        raise NotImplementedError(f"{type(self).__name__}.log_prob")

    def sample(
        self, shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``[*shape, D]`` of the dtype and device of ``like``."""
        raise NotImplementedError(f"{type(self).__name__}.sample")


def _normal(
    shape: Sequence[int], features: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    device = like.device if generator is None else generator.device
    noise = torch.randn(*shape, features, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)


@register
class StandardNormal(Base):
    """Independent standard normals.

    Args:
        features: D.

    Example:
        >>> f"{StandardNormal(2).log_prob(torch.zeros(2)).item():.4f}"  # -ln(2 pi)
        '-1.8379'
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def log_prob(self, z: Tensor) -> Tensor:
        """Return ``-|z|^2 / 2 - D ln(2 pi) / 2``."""
        return -0.5 * (z.square().sum(-1) + self.features * math.log(2 * math.pi))

    def sample(
        self, shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``[*shape, D]``."""
        return _normal(shape, self.features, like, generator)


@register
class DiagonalNormal(Base):
    """Independent normals with learnable mean and scale.

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density."""
        whitened = (z - self.mean) * torch.exp(-self.log_scale)
        norm = self.log_scale.sum() + 0.5 * self.features * math.log(2 * math.pi)
        return -0.5 * whitened.square().sum(-1) - norm

    def sample(
        self, shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``[*shape, D]``, differentiable in mean and scale."""
        noise = _normal(shape, self.features, like, generator)
        return self.mean + self.log_scale.exp() * noise
