"""How a layer keeps its norm: the choice that branches offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from contraflow.errors import ConfigurationError
from contraflow.lipschitz.aol import AOLConv2d, AOLLinear
from contraflow.lipschitz.layers import BoundedLayer, LipschitzConv2d, LipschitzLinear
from contraflow.registry import register


@runtime_checkable
class Normalisation(Protocol):
    """A way to build layers whose norm cannot exceed ``max_norm``."""

    def linear(self, in_features: int, out_features: int, max_norm: float) -> BoundedLayer:
        """Return an affine layer."""
        ...

    def conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        size: tuple[int, int],
        max_norm: float,
    ) -> BoundedLayer:
        """Return a zero-padded, stride-1 convolution on images of ``size``."""
        ...


@register
@dataclass(frozen=True)
class SpectralNorm:
    """Divide by an upper bound of the spectral norm where it is exceeded; smaller weights stay.

    Tight (under 1 % for matrices as a rule), some matrix products at every pass. Where many
    singular values are nearly equal, six steps may leave 3 % unused, sixteen none.

    Args:
        steps: of the Gram iteration; None for 6, and 12 or 16 near a norm of 1.

    Raises:
        ConfigurationError: ``steps`` is below 1.

    Example:
        >>> SpectralNorm().linear(3, 2, 0.9)
        LipschitzLinear(3, 2, max_norm=0.9)
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the number of steps."""
        if self.steps is not None and self.steps < 1:
            raise ConfigurationError(f"SpectralNorm: steps={self.steps}; expected 1 or more.")

    def linear(self, in_features: int, out_features: int, max_norm: float) -> LipschitzLinear:
        """Return an affine layer."""
        return LipschitzLinear(in_features, out_features, max_norm, self.steps)

    def conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        size: tuple[int, int],
        max_norm: float,
    ) -> LipschitzConv2d:
        """Return a convolution whose bound depends on ``size``."""
        return LipschitzConv2d(in_channels, out_channels, kernel_size, size, max_norm, self.steps)


@register
@dataclass(frozen=True)
class AOL:
    """Rescale the inputs of every layer so that its norm is at most 1 by construction.

    One product instead of an iteration, and no dependence on the size of an image; loose until
    training has made the columns nearly orthogonal.

    Example:
        >>> from contraflow.lipschitz import MLPBranch
        >>> MLPBranch(2, (16,), normalisation=AOL()).prepare().certified_bound() < 0.98
        True

    Reference:
        Prach & Lampert 2022, arXiv:2208.03160.
    """

    def linear(self, in_features: int, out_features: int, max_norm: float) -> AOLLinear:
        """Return an affine layer."""
        return AOLLinear(in_features, out_features, max_norm)

    def conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        size: tuple[int, int],
        max_norm: float,
    ) -> AOLConv2d:
        """Return a convolution for images of any size."""
        return AOLConv2d(in_channels, out_channels, kernel_size, size, max_norm)
