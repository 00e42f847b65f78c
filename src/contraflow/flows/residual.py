"""Residual Flow (Chen et al. 2019): unbiased log-determinants, LipSwish, no factor-out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contraflow.contraction import bounds_of_blocks
from contraflow.domain import Domain
from contraflow.flow import Flow
from contraflow.flows._branches import image_branch, vector_branch
from contraflow.flows._parts import event_shape_of, preprocessing, pyramid
from contraflow.logdet import LogDet
from contraflow.registry import register
from contraflow.solvers import Solver
from contraflow.transform import Sequential, Transform
from contraflow.transforms import ActNorm, LULinear, ResidualBlock


@register
class ResidualFlow(Flow):
    """A flow of residual blocks ``z = x + g(x)``, for vectors or images.

    Vectors: standardise, then ``transforms`` times ActNorm, a learned linear map (with
    ``mixing``) and a fully connected block. Images: logit, ``scales`` pyramids of
    ``transforms`` convolutional blocks with squeezes between, then ``tail`` fully connected
    blocks over all pixels.

    Args:
        features: D, for vectors.
        context: M, features of the context; 0 for an unconditional density.
        transforms: blocks (vectors), or blocks a scale (images).
        hidden_features: widths of fully connected blocks.
        activation: a name in ``lipschitz.ACTIVATIONS``.
        lipschitz: bound L in (0, 1) of every branch: one number, or one for each block in
            forward order.
        mixing: put a learned linear map before each fully connected block, the first one
            started at the whitening of the data.
        marginals: knots of a learned spline a feature, between preprocessing and blocks, that
            starts at the map which makes the feature's marginal Gaussian; 0 for none. Helps
            wherever marginals look like histograms.
        support: domain of each column of a vector, ``Domain(low, high, integer)``; None for
            the real line. Bounded columns get a bijection of their own, integers are
            dequantised.
        shape: C, H, W, for images.
        num_bins: levels of integer data 0 ... n-1; None for real values.
        value_range: interval of real-valued images.
        alpha: edge of the logit.
        scales: image scales; 0 treats the image as one vector.
        hidden_channels: widths of the 3x3-1x1-3x3 branches.
        tail: fully connected blocks at the end of an image flow.
        log_det: training strategy; None for the default of each block's size.
        solver: root solver; None likewise.
        branch: kind of the branches: "plain", "aol", "dense", "sandwich" (vectors, with an
            activation of slopes in [0, 1]) or "mixed" (experimental, never certified).

    Example:
        >>> flow = ResidualFlow(features=2, transforms=2)
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])

    Reference:
        Chen et al. 2019, arXiv:1906.02735.
    """

    def __init__(
        self,
        features: int | None = None,
        context: int = 0,
        transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        activation: str = "lipswish",
        lipschitz: float | Sequence[float] = 0.98,
        mixing: bool = True,
        marginals: int = 0,
        *,
        support: Sequence[Domain] | None = None,
        shape: Sequence[int] | None = None,
        num_bins: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        alpha: float = 0.05,
        scales: int = 3,
        hidden_channels: Sequence[int] = (64, 64),
        tail: int = 4,
        log_det: LogDet | None = None,
        solver: Solver | None = None,
        branch: str = "plain",
    ) -> None:
        event = event_shape_of(features, shape)
        size = math.prod(event)
        image = len(event) == 3
        vector_blocks = tail if image else transforms
        blocks = vector_blocks + (scales * transforms if image else 0)
        bounds = iter(bounds_of_blocks(lipschitz, blocks))

        def image_block(inner: Sequence[int]) -> Transform:
            build = image_branch(branch)
            g = build(inner, hidden_channels, activation, next(bounds), context)
            return ResidualBlock(g, log_det, None, solver)

        def vector_block(index: int) -> list[Transform]:
            build = vector_branch(branch)
            g = build(size, hidden_features, activation, next(bounds), context)
            mix = [LULinear(size, whiten=index == 0)] if mixing else []
            return [ActNorm(size), *mix, ResidualBlock(g, log_det, None, solver)]

        parts = preprocessing(event, num_bins, alpha, value_range, marginals, support)
        if image:
            parts += pyramid(event, scales, transforms, image_block, factor_out=False)
        for index in range(vector_blocks):
            parts += vector_block(index)
        parts.append(ActNorm(size))
        super().__init__(Sequential(*parts), event_shape=event, context=context)
