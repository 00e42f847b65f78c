"""Fixed elementwise maps at the data's edge: standardising and the logit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow.domain import Domain
from contraflow.errors import ConfigurationError, ShapeError, SupportError
from contraflow.registry import register
from contraflow.transform import BlockCertificate, Transform


@register
class Standardise(Transform):
    """``z = (x - mean) / std`` with statistics of the data, not learned.

    Args:
        features: D; ``initialise_from`` sets the statistics, before which it is the identity.

    Example:
        >>> standardise = Standardise(1)
        >>> standardise.initialise_from(torch.tensor([[1.0], [3.0]]))
        >>> standardise(torch.tensor([[3.0]]))[0].item()
        1.0
    """

    mean: Tensor
    std: Tensor
    initialised: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("initialised", torch.tensor(False))

    def _ladj(self, x: Tensor) -> Tensor:
        return -self.std.log().sum().expand(x.shape[:-1])

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, self.features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the standardised x."""
        return (x - self.mean) / self.std, self._ladj(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x in the data's units."""
        return z * self.std + self.mean, -self._ladj(z)

    @torch.no_grad()
    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Take mean and standard deviation from this batch; a constant column keeps scale 1."""
        if bool(self.initialised):
            return
        rows = x.reshape(-1, self.features).double()
        std = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        self.std.copy_(torch.where(std > 0, std, 1.0))
        self.initialised.fill_(True)

    def check_state(self) -> None:
        """Refuse standard deviations that are none."""
        if not bool((self.std > 0).all() and self.std.isfinite().all()):
            raise SupportError("Standardise: expected standard deviations above 0.")

    @torch.no_grad()
    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the extreme scales."""
        std = self.std.double()
        return [BlockCertificate(name, forward=1 / std.min().item(), inverse=std.max().item())]


@register
class Logit(Transform):
    """``z = logit(alpha + (1 - 2 alpha) (x - low) / (high - low))`` on ``[low, high]``.

    Args:
        low, high: interval of the data, in its own units.
        alpha: keeps the edges finite.
        event_dim: dimensions of an event, 1 or 3.

    Raises:
        ConfigurationError: the interval is empty or alpha is not in (0, .5).

    Example:
        >>> Logit(0.0, 17.0)(torch.tensor([[8.5]]))[0].item()
        0.0

    Reference:
        Dinh et al. 2017, arXiv:1605.08803, section 4.1.
    """

    def __init__(
        self, low: float = 0.0, high: float = 1.0, alpha: float = 0.05, event_dim: int = 1
    ) -> None:
        super().__init__()
        if not low < high or not 0 < alpha < 0.5:
            raise ConfigurationError(
                f"Logit(low={low}, high={high}, alpha={alpha}); expected low < high and alpha "
                "in (0, 0.5)."
            )
        self.low = low
        self.high = high
        self.alpha = alpha
        self.event_dim = event_dim

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the same shape, checked against ``event_dim``."""
        return self._check_dims(shape)

    @property
    def _slope(self) -> float:
        return (1 - 2 * self.alpha) / (self.high - self.low)

    @property
    def domain(self) -> Domain:
        """Return where the logit is finite, alpha beyond the data's interval on each side.

        That is where the flow has its mass: the density integrates to 1 there, and every
        sample lies inside.
        """
        margin = self.alpha / self._slope
        return Domain(self.low - margin, self.high + margin)

    def _ladj(self, z: Tensor) -> Tensor:
        # d logit(p) / dp = 1 / (p (1 - p)), -ln p = softplus(-z), -ln(1 - p) = softplus(z)
        each = nn.functional.softplus(z) + nn.functional.softplus(-z) + math.log(self._slope)
        return each.sum(tuple(range(-self.event_dim, 0)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logit."""
        # p and 1 - p each from its own end: 1 - p would lose the digits near high.
        p = self.alpha + self._slope * (x - self.low)
        q = self.alpha + self._slope * (self.high - x)
        z = torch.log(p) - torch.log(q)
        return z, self._ladj(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x in the data's units."""
        tail = (torch.sigmoid(-z.abs()) - self.alpha) / self._slope
        x = torch.where(z > 0, self.high - tail, self.low + tail)
        # Far out x rounds to the end of the open domain; the last number inside stands for it.
        return self.domain.clamp(x), -self._ladj(z)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the inverse's largest slope; the logit itself is arbitrarily steep."""
        return [BlockCertificate(name, inverse=1 / (4 * self._slope))]

    def extra_repr(self) -> str:
        """Return the interval, for ``print``."""
        return f"low={self.low}, high={self.high}, alpha={self.alpha}"


@register
class Reshape(Transform):
    """Give each event another shape of the same size, such as an image as one vector.

    Args:
        shape: event shape of x.
        latent: event shape of z.
    """

    def __init__(self, shape: Sequence[int], latent: Sequence[int]) -> None:
        super().__init__()
        if math.prod(shape) != math.prod(latent):
            raise ShapeError(
                f"Reshape: {tuple(shape)} has {math.prod(shape)} entries, {tuple(latent)} has "
                f"{math.prod(latent)}; expected equal numbers."
            )
        self.shape = tuple(shape)
        self.latent = tuple(latent)

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the number of dimensions of ``shape``."""
        return len(self.shape)

    @property
    def latent_event_dim(self) -> int:
        """Return the number of dimensions of ``latent``."""
        return len(self.latent)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the reshaped x; ladj is 0."""
        batch = x.shape[: x.ndim - len(self.shape)]
        return x.reshape(*batch, *self.latent), x.new_zeros(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the original shape; ladj is 0."""
        batch = z.shape[: z.ndim - len(self.latent)]
        return z.reshape(*batch, *self.shape), z.new_zeros(batch)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``latent``, after a check of the shape."""
        if tuple(shape) != self.shape:
            raise ShapeError(f"Reshape: got events {tuple(shape)}; expected {self.shape}.")
        return torch.Size(self.latent)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return slopes of 1."""
        return [BlockCertificate(name, forward=1.0, inverse=1.0)]
