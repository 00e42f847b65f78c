"""MADE: a fully connected network whose output i sees only the inputs before i."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from contraflow._sizes import check_widths
from contraflow.errors import SupportError


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
        self.hidden_features = check_widths("hidden_features", hidden_features)
        self.order = None if order is None else tuple(order)
        layers: list[nn.Module] = [MaskedLinear(mask) for mask in self._masks()]
        last = layers[-1]
        assert isinstance(last, MaskedLinear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.ModuleList(layers)
        first = layers[0]
        assert isinstance(first, MaskedLinear)
        self.context_layer = nn.Linear(context, first.out_features, bias=False) if context else None

    def _masks(self) -> Iterator[Tensor]:
        """Return the mask of every layer, a function of the sizes and the order."""
        position = torch.arange(self.features) if self.order is None else torch.tensor(self.order)
        # Degree of a unit: how many features, in order, it may see.
        degrees = previous = position + 1
        least = 1 if self.features > 1 else 0  # with D = 1 nothing may be seen
        for width in self.hidden_features:
            # Spread the degrees 1 ... D-1 evenly.
            current = torch.arange(width) * (self.features - 1) // width + least
            yield (current[:, None] >= previous).float()
            previous = current
        out = degrees.repeat_interleave(self.parameters_per_feature)
        yield (out[:, None] > previous).float()

    def check_masks(self) -> None:
        """Refuse masks, read from a file, that are not those of the sizes and the order.

        Raises:
            SupportError: an output would see an input that it must not see.
        """
        for layer, mask in zip(self.layers, self._masks(), strict=True):
            assert isinstance(layer, MaskedLinear)
            if not torch.equal(layer.mask.cpu().float(), mask):
                raise SupportError("MADE: expected the masks that its order of features gives.")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``[*B, D]`` and a context ``[*B, M]`` to ``[*B, D, K]``."""
        h = self.layers[0](x)
        if self.context_layer is not None and context is not None:
            h = h + self.context_layer(context)
        for layer in self.layers[1:]:
            h = layer(nn.functional.silu(h))
        return h.reshape(*h.shape[:-1], self.features, self.parameters_per_feature)
