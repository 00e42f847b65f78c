"""Autoregressive maps: each feature is transformed given the features before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contraflow._context import expected_context
from contraflow.errors import ConfigurationError
from contraflow.nn import MADE
from contraflow.registry import register
from contraflow.transform import Transform
from contraflow.transforms.scalar import Affine, ScalarTransformer


@register
class Autoregressive(Transform):
    """``z_i = t(x_i; parameters(x_{<i}))``: one pass forward, D passes back.

    That is MAF's direction; ``Inverse(Autoregressive(...))`` is IAF's.

    Args:
        features: D.
        transformer: monotone scalar map.
        hidden_features: widths of the masked conditioner.
        context: M, features of the context; 0 for none.
        order: position of each feature in the order, a permutation of 0 ... D-1; None for
            the natural order.

    Raises:
        ConfigurationError: ``order`` is no permutation.

    Example:
        >>> x = torch.randn(4, 3)
        >>> torch.equal(Autoregressive(3)(x)[0], x)  # starts at the identity
        True

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057.
    """

    closed_form = True

    def __init__(
        self,
        features: int,
        transformer: ScalarTransformer | None = None,
        hidden_features: Sequence[int] = (64, 64),
        context: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        # Lengths first: a hostile file may name a number of features that no list can hold.
        if order is not None and (len(order) != features or sorted(order) != [*range(features)]):
            raise ConfigurationError(
                f"Autoregressive: order {tuple(order)}; expected a permutation of 0 ... "
                f"{features - 1}."
            )
        self.features = features
        self.transformer = transformer or Affine()
        self.hidden_features = tuple(hidden_features)
        self.context = context
        self.order = None if order is None else tuple(order)
        self.net = MADE(
            features, self.transformer.parameters, self.hidden_features, context, self.order
        )

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, self.features)

    def check_state(self) -> None:
        """Refuse masks that would let a feature see itself or a later one."""
        self.net.check_masks()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and ladj in one pass."""
        context = expected_context(self, context, self.context)
        z, slopes = self.transformer.forward(x, self.net(x, context))
        return z, slopes.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x and ladj feature by feature, in D passes."""
        context = expected_context(self, context, self.context)
        positions = range(self.features) if self.order is None else self.order
        place_of = sorted(range(self.features), key=lambda i: positions[i])
        columns = [torch.zeros_like(z[..., 0])] * self.features
        ladj = z.new_zeros(z.shape[:-1])
        for i in place_of:
            parameters = self.net(torch.stack(columns, -1), context)[..., i, :]
            columns[i], slope = self.transformer.inverse(z[..., i], parameters)
            ladj = ladj + slope
        return torch.stack(columns, -1), ladj
