"""Coupling: one part of x is mapped with parameters that the other part supplies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contraflow._context import expected_context
from contraflow.errors import ConfigurationError
from contraflow.nn import MLP
from contraflow.registry import register
from contraflow.transform import Transform
from contraflow.transforms.scalar import Affine, ScalarTransformer


@register
class Coupling(Transform):
    """Leave the features in ``mask`` as they are and map the others, given those.

    Args:
        features: D.
        mask: D booleans, True for features that stay.
        transformer: monotone scalar map of the others.
        hidden_features: widths of the conditioner.
        context: M, features of the context; 0 for none.

    Raises:
        ConfigurationError: the mask has another length, or keeps everything.

    Example:
        >>> x = torch.randn(4, 3)
        >>> torch.equal(Coupling(3, (True, False, True))(x)[0], x)  # starts at the identity
        True

    Reference:
        Dinh et al. 2017, arXiv:1605.08803, section 3.2.
    """

    closed_form = True

    def __init__(
        self,
        features: int,
        mask: Sequence[bool],
        transformer: ScalarTransformer | None = None,
        hidden_features: Sequence[int] = (64, 64),
        context: int = 0,
    ) -> None:
        super().__init__()
        if len(mask) != features or all(mask):
            raise ConfigurationError(
                f"Coupling: mask {tuple(mask)} for {features} features; expected {features} "
                "booleans, at least one of them False."
            )
        self.features = features
        self.mask = tuple(bool(kept) for kept in mask)
        self.transformer = transformer or Affine()
        self.hidden_features = tuple(hidden_features)
        self.context = context
        self._kept = [i for i, kept in enumerate(self.mask) if kept]
        self._moved = [i for i, kept in enumerate(self.mask) if not kept]
        places = self._kept + self._moved
        self._places_back = sorted(range(features), key=places.__getitem__)
        self.net = MLP(
            len(self._kept) + context,
            len(self._moved) * self.transformer.parameters,
            self.hidden_features,
            zero_last=True,
        )

    def _parameters_for(self, kept: Tensor, context: Tensor | None) -> Tensor:
        context = expected_context(self, context, self.context)
        if context is not None:
            kept = torch.cat([kept, context.expand(*kept.shape[:-1], context.shape[-1])], -1)
        out = self.net(kept)
        return out.reshape(*out.shape[:-1], len(self._moved), self.transformer.parameters)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, self.features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and ladj in one pass."""
        kept, moved = x[..., self._kept], x[..., self._moved]
        moved, slopes = self.transformer.forward(moved, self._parameters_for(kept, context))
        return torch.cat([kept, moved], -1)[..., self._places_back], slopes.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x and ladj in one pass."""
        kept, moved = z[..., self._kept], z[..., self._moved]
        moved, slopes = self.transformer.inverse(moved, self._parameters_for(kept, context))
        return torch.cat([kept, moved], -1)[..., self._places_back], slopes.sum(-1)
