"""RealNVP for vectors (Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from contraflow.domain import Domain
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.flows._parts import event_shape_of, preprocessing
from contraflow.registry import register
from contraflow.transform import Sequential
from contraflow.transforms import ActNorm, Affine, Coupling


@register
class RealNVP(Flow):
    """Affine couplings whose masks alternate between even and odd features.

    Args:
        features: D, 2 or more.
        context: M, features of the context; 0 for an unconditional density.
        transforms: couplings, each after an ActNorm.
        hidden_features: widths of the conditioners.
        support: domain of each column of a vector, ``Domain(low, high, integer)``; None for
            the real line. Bounded columns get a bijection of their own, integers are
            dequantised.

    Raises:
        ConfigurationError: fewer than two features.

    Example:
        >>> RealNVP(features=3, transforms=4).sample(5).shape
        torch.Size([5, 3])

    Reference:
        Dinh et al. 2017, arXiv:1605.08803.
    """

    def __init__(
        self,
        features: int | None = None,
        context: int = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        support: Sequence[Domain] | None = None,
    ) -> None:
        event = event_shape_of(features, None)
        features = event[0]
        if features < 2:
            raise ConfigurationError(
                f"RealNVP: features={features}; expected 2 or more, so that one part can "
                "condition the other. Use MAF for one feature."
            )
        parts = preprocessing(event, None, 0.05, (0.0, 1.0), support=support)
        for k in range(transforms):
            mask = [(i + k) % 2 == 0 for i in range(features)]
            parts += [
                ActNorm(features),
                Coupling(features, mask, Affine(), hidden_features, context),
            ]
        super().__init__(Sequential(*parts), event_shape=event, context=context)
