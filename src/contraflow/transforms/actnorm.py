"""Activation normalisation: an affine map per feature or channel, set from one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow.errors import ShapeError
from contraflow.registry import register
from contraflow.transform import BlockCertificate, Transform


@register
class ActNorm(Transform):
    """``z = (x + shift) * exp(log_scale)``; the identity until ``initialise_from``.

    Args:
        features: D for vectors, C for images.
        event_dim: 1 for ``[*B, D]``; 3 for ``[*B, C, H, W]``, one pair a channel.

    Example:
        >>> norm = ActNorm(2)
        >>> norm.initialise_from(torch.tensor([[0.0, 1.0], [4.0, 3.0]]))
        >>> norm(torch.tensor([[4.0, 1.0]]))[0].round(decimals=4).tolist()
        [[1.0, -1.0]]

    Reference:
        Kingma & Dhariwal 2018, arXiv:1807.03039, section 3.1.
    """

    initialised: Tensor

    def __init__(self, features: int, event_dim: int = 1) -> None:
        super().__init__()
        if event_dim not in (1, 3):
            raise ShapeError(f"ActNorm: event_dim={event_dim}; expected 1 (vectors) or 3 (images).")
        self.features = features
        self.event_dim = event_dim
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialised", torch.tensor(False))

    def _shaped(self, parameter: Tensor) -> Tensor:
        return parameter if self.event_dim == 1 else parameter[:, None, None]

    def _ladj(self, x: Tensor) -> Tensor:
        pixels = 1 if self.event_dim == 1 else x.shape[-2] * x.shape[-1]
        return (self.log_scale.sum() * pixels).expand(x.shape[: x.ndim - self.event_dim])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the normalised x."""
        z = (x + self._shaped(self.shift)) * self._shaped(self.log_scale).exp()
        return z, self._ladj(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the original scale."""
        x = z * self._shaped(-self.log_scale).exp() - self._shaped(self.shift)
        return x, -self._ladj(z)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the same shape, checked against ``features``."""
        if len(shape) != self.event_dim or shape[0] != self.features:
            raise ShapeError(
                f"ActNorm: got events {tuple(shape)}; expected "
                f"{(self.features,) if self.event_dim == 1 else (self.features, 'H', 'W')}."
            )
        return torch.Size(shape)

    @torch.no_grad()
    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set shift and scale so that this batch comes out with mean 0 and variance 1.

        A feature that is constant in the batch keeps its scale.
        """
        if bool(self.initialised):
            return
        channels_last = x if self.event_dim == 1 else x.movedim(-3, -1)
        rows = channels_last.reshape(-1, self.features)
        self.shift.copy_(-rows.mean(0))
        std = rows.std(0, correction=0)
        self.log_scale.copy_(-torch.log(torch.where(std > 0, std, 1.0)))
        self.initialised.fill_(True)

    @torch.no_grad()
    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the largest and the reciprocal of the smallest scale."""
        scale = self.log_scale.double().exp()
        return [
            BlockCertificate(
                name, forward=scale.max().item(), inverse=1 / scale.min().clamp_min(1e-300).item()
            )
        ]
