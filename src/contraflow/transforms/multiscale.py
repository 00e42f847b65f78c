"""Multi-scale image flows: squeeze pixels into channels, factor channels out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from contraflow.errors import ConfigurationError, ShapeError
from contraflow.kinds import Likelihood
from contraflow.lipschitz import BoundedLayer
from contraflow.registry import register
from contraflow.solvers import Solution
from contraflow.transform import (
    BlockCertificate,
    Transform,
    apply_forward,
    apply_inverse,
    norms_for,
)


@register
class Squeeze(Transform):
    """``[*B, C, H, W] -> [*B, 4C, H/2, W/2]``: each 2x2 patch becomes four channels.

    Example:
        >>> Squeeze()(torch.arange(4.0).reshape(1, 1, 2, 2))[0].flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]

    Reference:
        Dinh et al. 2017, arXiv:1605.08803, section 3.6.
    """

    event_dim = 3

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the squeezed image; ladj is 0."""
        channels, height, width = self.latent_shape(x.shape[-3:])
        # torch.nn.functional.pixel_unshuffle(x, 2), which refuses an empty batch.
        patches = x.reshape(*x.shape[:-3], channels // 4, height, 2, width, 2)
        z = patches.movedim((-3, -1), (-4, -3)).reshape(*x.shape[:-3], channels, height, width)
        return z, x.new_zeros(x.shape[:-3])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the full-size image; ladj is 0."""
        channels, height, width = z.shape[-3:]
        patches = z.reshape(*z.shape[:-3], channels // 4, 2, 2, height, width)
        x = patches.movedim((-4, -3), (-3, -1))
        x = x.reshape(*z.shape[:-3], channels // 4, 2 * height, 2 * width)
        return x, z.new_zeros(z.shape[:-3])

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(4C, H/2, W/2)``.

        Raises:
            ShapeError: height or width is odd.
        """
        channels, height, width = shape
        if height % 2 or width % 2:
            raise ShapeError(f"Squeeze: got an image {tuple(shape)}; expected even H and W.")
        return torch.Size((4 * channels, height // 2, width // 2))

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return slopes of 1: pixels only change places."""
        return [BlockCertificate(name, forward=1.0, inverse=1.0)]


@register
class SplitPrior(Transform):
    """Gaussianise the channels that leave, given those that stay: ``(b - mean(a)) / std(a)``.

    The context of this transform is the image a that stays, ``[*B, C_a, H, W]``.

    Args:
        kept: C_a.
        factored: C_b, channels of b.

    Reference:
        Kingma & Dhariwal 2018, arXiv:1807.03039 (published code, split2d).
    """

    event_dim = 3
    closed_form = True

    def __init__(self, kept: int, factored: int) -> None:
        super().__init__()
        self.kept = kept
        self.factored = factored
        self.net = nn.Conv2d(kept, 2 * factored, 3, padding=1)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)  # pyright: ignore[reportArgumentType]

    def _moments(self, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        if kept is None:
            raise ShapeError("SplitPrior: got no context; expected the channels that stay.")
        out = self.net(kept.reshape(-1, *kept.shape[-3:]))
        mean, log_std = out.reshape(*kept.shape[:-3], *out.shape[1:]).chunk(2, -3)
        return mean, 3 * torch.tanh(log_std / 3)  # bounded, so that no pixel can run away

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the standardised b."""
        mean, log_std = self._moments(context)
        return (x - mean) * torch.exp(-log_std), -log_std.sum((-3, -2, -1))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return b."""
        mean, log_std = self._moments(context)
        return z * torch.exp(log_std) + mean, log_std.sum((-3, -2, -1))


@register
class FactorOut(Transform):
    """Send the first half of the channels on through ``inner``, the rest straight to latent.

    Args:
        inner: transform of the half that stays; its latent event may have any shape.
        shape: C, H, W of x.
        prior: transform of the half that leaves, with the half that stays as its context;
            None leaves it as it is.

    Returns:
        z is one flat vector of C*H*W entries: the inner latent first, then the other half.

    Raises:
        ConfigurationError: C is odd.

    Reference:
        Dinh et al. 2017, arXiv:1605.08803, section 3.6.
    """

    event_dim = 3
    stochastic = True
    takes_norms = True

    def __init__(
        self, inner: Transform, shape: Sequence[int], prior: Transform | None = None
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if channels % 2:
            raise ConfigurationError(
                f"FactorOut: got {channels} channels; expected an even number (squeeze first)."
            )
        self.inner = inner
        self.shape = (channels, height, width)
        self.prior = prior
        self._half = (channels // 2, height, width)
        self._inner_shape = inner.latent_shape(self._half)

    @property
    def latent_event_dim(self) -> int:
        """Return 1: z is a vector."""
        return 1

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        noise: object = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the flat z; ``noise`` and ``norms`` are the inner transform's."""
        kept, factored = x.chunk(2, -3)
        inner, ladj = apply_forward(self.inner, kept, context, noise, norms)
        if self.prior is not None:
            factored, prior_ladj = self.prior(factored, kept)
            ladj = ladj + prior_ladj
        batch = x.shape[:-3]
        parts = [inner.flatten(len(batch)), factored.flatten(len(batch))]
        return torch.cat(parts, -1), ladj

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        noise: object = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the image from the flat z; ``noise`` and ``norms`` are the inner transform's."""
        inner, factored = self._split(z)
        kept, ladj = apply_inverse(self.inner, inner, context, noise, norms)
        if self.prior is not None:
            factored, prior_ladj = self.prior.inverse(factored, kept)
            ladj = ladj + prior_ladj
        return torch.cat([kept, factored], -3), ladj

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the inner transform's."""
        return self.inner.bounded_layers() if self.inner.takes_norms else []

    def solve_inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Solution:
        """Invert the inner transform and tell how exact the answer is."""
        inner, factored = self._split(z)
        solution = self.inner.solve_inverse(inner, context, **norms_for(self.inner, norms))
        stretch: float | None = 1.0
        if self.prior is not None:
            factored = self.prior.inverse(factored, solution.value)[0]
            stretch = None  # the prior's moments move with the half that stays
        return solution.then(torch.cat([solution.value, factored], -3), stretch)

    def invert(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Map latent to data, checked, without ladj."""
        return self.solve_inverse(z, context, norms=norms).check(type(self).__name__).value

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        batch = z.shape[:-1]
        inner, factored = z.split([math.prod(self._inner_shape), math.prod(self._half)], -1)
        return inner.reshape(*batch, *self._inner_shape), factored.reshape(*batch, *self._half)

    def draw(
        self, shape: torch.Size, like: Tensor, generator: torch.Generator | None = None
    ) -> object:
        """Draw the inner transform's noise."""
        return self.inner.draw(torch.Size((shape[0], *self._half)), like, generator)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the flat size."""
        if tuple(shape) != self.shape:
            raise ShapeError(f"FactorOut: got events {tuple(shape)}; expected {self.shape}.")
        return torch.Size((math.prod(self.shape),))

    def likelihood(self, shape: Sequence[int]) -> Likelihood:
        """Return the inner transform's likelihood."""
        return self.inner.likelihood(self._half)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the inner certificates; with a prior the whole has no Lipschitz bound.

        The prior comes first: ``forward`` is (a, b) -> (a, prior(b; a)), then the inner
        transform of a, so an error of the inner inverse passes through the prior's.
        """
        found = [] if self.prior is None else self.prior.certificates(f"{name}.prior")
        return found + [
            replace(c, forward=_at_least_1(c.forward), inverse=_at_least_1(c.inverse))
            for c in self.inner.certificates(f"{name}.inner")
        ]

    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise the inner transform from the half that stays."""
        kept, factored = x.chunk(2, -3)
        self.inner.initialise_from(kept, context)
        if self.prior is not None:
            self.prior.initialise_from(factored, kept)

    def enforce_bounds_(self) -> None:
        """Rescale the inner transform."""
        self.inner.enforce_bounds_()


def _at_least_1(bound: float | None) -> float | None:
    """Bound the block-diagonal map of a part and the identity."""
    return None if bound is None else max(1.0, bound)
