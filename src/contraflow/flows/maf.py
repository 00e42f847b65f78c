"""Masked autoregressive flow (Papamakarios et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from contraflow.domain import Domain
from contraflow.flow import Flow
from contraflow.flows._parts import event_shape_of, preprocessing
from contraflow.registry import register
from contraflow.transform import Sequential
from contraflow.transforms import ActNorm, Affine, Autoregressive


@register
class MAF(Flow):
    """Affine autoregressive layers, the order of the features reversed between layers.

    Args:
        features: D.
        context: M, features of the context; 0 for an unconditional density.
        transforms: layers, each after an ActNorm.
        hidden_features: widths of the masked conditioners.
        support: domain of each column of a vector, ``Domain(low, high, integer)``; None for
            the real line. Bounded columns get a bijection of their own, integers are
            dequantised.

    Example:
        >>> MAF(features=3, transforms=2).log_prob(torch.zeros(4, 3)).shape
        torch.Size([4])

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057.
    """

    def __init__(
        self,
        features: int | None = None,
        context: int = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (128, 128),
        support: Sequence[Domain] | None = None,
    ) -> None:
        event = event_shape_of(features, None)
        features = event[0]
        parts = preprocessing(event, None, 0.05, (0.0, 1.0), support=support)
        natural = list(range(features))
        for k in range(transforms):
            order = natural[::-1] if k % 2 else natural
            parts += [
                ActNorm(features),
                Autoregressive(features, Affine(), hidden_features, context, order),
            ]
        super().__init__(Sequential(*parts), event_shape=event, context=context)
