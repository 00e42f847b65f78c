"""i-ResNet (Behrmann et al. 2019): ELU blocks, power series, factor-out between scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contraflow.contraction import bounds_of_blocks
from contraflow.domain import Domain
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.flows._branches import image_branch, vector_branch
from contraflow.flows._parts import event_shape_of, preprocessing, pyramid
from contraflow.logdet import Exact, LogDet, PowerSeries
from contraflow.registry import register
from contraflow.solvers import Solver
from contraflow.transform import Sequential, Transform
from contraflow.transforms import ActNorm, ResidualBlock


@register
class InvertibleResNet(Flow):
    """Residual blocks as in i-ResNet, for vectors or images.

    Vectors: ``transforms`` fully connected blocks with ActNorm, exact log-determinants while
    D is small. Images: ``scales`` of ``transforms`` convolutional blocks, squeeze and
    factor-out between, a truncated power series in training.

    Args:
        features: D, for vectors.
        context: M, features of the context; 0 for an unconditional density.
        transforms: blocks (vectors; published: 100), or blocks a scale (images; 32).
        hidden_features: widths of fully connected blocks.
        activation: a name in ``lipschitz.ACTIVATIONS``.
        lipschitz: bound L in (0, 1) of every branch: one number, or one for each block in
            forward order.
        support: domain of each column of a vector, ``Domain(low, high, integer)``; None for
            the real line. Bounded columns get a bijection of their own, integers are
            dequantised.
        shape: C, H, W, for images.
        num_bins: levels of integer data 0 ... n-1; None for real values.
        value_range: interval of real-valued images.
        alpha: edge of the logit.
        scales: image scales.
        hidden_channels: widths of the 3x3-1x1-3x3 branches (published: 32 or 512).
        terms: terms of the series in training (published: 10 for MNIST, 5 for CIFAR-10).
        log_det: training strategy in place of the series.
        solver: root solver; None for the default of each block's size.
        branch: kind of the branches: "plain", "aol", "dense", "sandwich" (vectors, with an
            activation of slopes in [0, 1]) or "mixed" (experimental, never certified).

    Example:
        >>> flow = InvertibleResNet(shape=(1, 8, 8), num_bins=17, scales=2, transforms=1)
        >>> flow.kind.value
        'lower_bound'

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, section 5 and appendix.
    """

    def __init__(
        self,
        features: int | None = None,
        context: int = 0,
        transforms: int = 16,
        hidden_features: Sequence[int] = (64, 64, 64),
        activation: str = "elu",
        lipschitz: float | Sequence[float] = 0.9,
        *,
        support: Sequence[Domain] | None = None,
        shape: Sequence[int] | None = None,
        num_bins: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        alpha: float = 0.05,
        scales: int = 3,
        hidden_channels: Sequence[int] = (32, 32),
        terms: int = 10,
        log_det: LogDet | None = None,
        solver: Solver | None = None,
        branch: str = "plain",
    ) -> None:
        event = event_shape_of(features, shape)
        if scales < 1:
            raise ConfigurationError(
                f"InvertibleResNet: scales={scales}; expected 1 or more: its blocks stand there."
            )
        size = math.prod(event)
        series: LogDet = PowerSeries(terms=terms)
        blocks = scales * transforms if len(event) == 3 else transforms
        bounds = iter(bounds_of_blocks(lipschitz, blocks))

        def image_block(inner: Sequence[int]) -> Transform:
            build = image_branch(branch)
            g = build(inner, hidden_channels, activation, next(bounds), context)
            return ResidualBlock(g, log_det or series, None, solver)

        parts = preprocessing(event, num_bins, alpha, value_range, support=support)
        if len(event) == 3:
            parts += pyramid(event, scales, transforms, image_block, factor_out=True)
        else:
            chosen = log_det or (Exact() if size <= 16 else series)
            for _ in range(transforms):
                build = vector_branch(branch)
                g = build(size, hidden_features, activation, next(bounds), context)
                parts += [ResidualBlock(g, chosen, None, solver), ActNorm(size)]
        super().__init__(Sequential(*parts), event_shape=event, context=context)
