"""MADE: a fully connected network whose output i sees only the inputs before i."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a fixed 0/1 mask.

    Args:
        mask: ``[out, in]``, kept with the weights.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[*B, in]`` to ``[*B, out]``."""
        return nn.functional.linear(input, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Return K parameters a feature, those of feature i from the features before it.

    Args:
        features: D.
        parameters: K per feature.
        hidden_features: widths of the hidden layers.
        context: M, features of a context that every output may see.
        order: position of each feature in the order, a permutation of 0 ... D-1; None for
            the natural order.

    Returns:
        ``[*B, D, K]``; all zero at the start.

    Reference:
        Germain et al. 2015, arXiv:1502.03509.
    """

    def __init__(
        self,
        features: int,
        parameters: int,
        hidden_features: Sequence[int] = (64, 64),
        context: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.parameters_per_feature = parameters
        position = torch.arange(features) if order is None else torch.tensor(list(order))
        # Degree of a unit: how many features, in order, it may see.
        degrees = position + 1
        layers: list[nn.Module] = []
        previous = degrees
        for width in hidden_features:
            # Spread the degrees 1 ... D-1 evenly; with D = 1 nothing may be seen.
            current = torch.arange(width) * (features - 1) // width + (1 if features > 1 else 0)
            layers.append(MaskedLinear((current[:, None] >= previous).float()))
            previous = current
        out = degrees.repeat_interleave(parameters)
        last = MaskedLinear((out[:, None] > previous).float())
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.ModuleList([*layers, last])
        first = layers[0] if layers else last
        assert isinstance(first, MaskedLinear)
        self.context_layer = nn.Linear(context, first.out_features, bias=False) if context else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``[*B, D]`` and a context ``[*B, M]`` to ``[*B, D, K]``."""
        h = self.layers[0](x)
        if self.context_layer is not None and context is not None:
            h = h + self.context_layer(context)
        for layer in self.layers[1:]:
            h = layer(nn.functional.silu(h))
        return h.reshape(*h.shape[:-1], self.features, self.parameters_per_feature)
