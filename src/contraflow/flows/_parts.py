"""Pieces that several recipes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from contraflow.domain import Domain
from contraflow.errors import ConfigurationError
from contraflow.transform import Sequential, Transform
from contraflow.transforms import (
    ActNorm,
    DequantiseColumns,
    FactorOut,
    Logit,
    MarginalSpline,
    Reshape,
    SplitPrior,
    Squeeze,
    Standardise,
    UnboundColumns,
    UniformDequantise,
)

BlockOfShape = Callable[[Sequence[int]], Transform]


def event_shape_of(features: int | None, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return ``(D,)`` or ``(C, H, W)``.

    Raises:
        ConfigurationError: both or neither were given, or a size is not positive.
    """
    if (features is None) == (shape is None):
        raise ConfigurationError(
            f"got features={features}, shape={shape}; expected features=D for vectors or "
            "shape=(C, H, W) for images."
        )
    event = (features,) if features is not None else tuple(shape or ())
    if len(event) not in (1, 3) or min(event) < 1:
        raise ConfigurationError(f"got an event shape {event}; expected (D,) or (C, H, W).")
    return event


def preprocessing(
    event: Sequence[int],
    num_bins: int | None,
    alpha: float,
    value_range: tuple[float, float],
    marginals: int = 0,
    support: Sequence[Domain] | None = None,
) -> list[Transform]:
    """Return the first transforms: from data units to the whole real line.

    Args:
        event: event shape of x.
        num_bins: levels of integer data, for dequantisation and logit; None for real data.
        alpha: edge of the logit.
        value_range: interval of real-valued images.
        marginals: knots of a spline that makes every marginal Gaussian; 0 for none.
        support: domain of each column of a vector; None for the real line.

    Raises:
        ConfigurationError: the number of domains is not D, or the data are images or integers.
    """
    dims, size = len(event), math.prod(event)
    parts: list[Transform]
    bound = 5.0  # standard deviations
    if support is not None and (num_bins is not None or dims != 1 or len(support) != size):
        raise ConfigurationError(
            f"support: got {len(support)} domains for events {tuple(event)} with "
            f"num_bins={num_bins}; expected one for each column of a vector, without num_bins."
        )
    if num_bins is None and dims == 1:
        parts = [*_to_real_line(support or ()), Standardise(size)]
    else:
        low, high = (0.0, float(num_bins)) if num_bins is not None else value_range
        parts = [UniformDequantise(num_bins, dims)] if num_bins is not None else []
        parts.append(Logit(low, high, alpha, dims))
        bound = 1.01 * math.log((1 - alpha) / alpha)  # the logit's range
    if marginals:
        spline = MarginalSpline(size, marginals, bound)
        flat = (size,)
        parts += [spline] if dims == 1 else [Reshape(event, flat), spline, Reshape(flat, event)]
    return parts


def _to_real_line(support: Sequence[Domain]) -> list[Transform]:
    parts: list[Transform] = []
    if any(column.integer for column in support):
        parts.append(DequantiseColumns(support))
    if not all(column.unbounded for column in support):
        parts.append(UnboundColumns(support))
    return parts


def pyramid(
    shape: Sequence[int],
    scales: int,
    blocks: int,
    block_of: BlockOfShape,
    *,
    factor_out: bool,
) -> tuple[Transform, ...]:
    """Return ActNorm and blocks at each scale, ending in one flat vector.

    Args:
        shape: C, H, W at the top.
        scales: number of scales, squeezed between; 0 flattens at once.
        blocks: blocks a scale, each followed by ActNorm.
        block_of: builds a block for an event shape.
        factor_out: send half of the channels to the latent vector after each squeeze.

    Raises:
        ConfigurationError: the image cannot be halved that often.
    """
    if scales < 0 or blocks < 0:
        raise ConfigurationError(f"got scales={scales}, transforms={blocks}; expected 0 or more.")
    if scales > 1 and (shape[1] % 2 ** (scales - 1) or shape[2] % 2 ** (scales - 1)):
        raise ConfigurationError(
            f"{scales} scales need height and width divisible by {2 ** (scales - 1)}; got "
            f"{tuple(shape)}."
        )
    if scales == 0:
        return (Reshape(shape, (math.prod(shape),)),)
    channels, height, width = shape
    here: list[Transform] = [ActNorm(channels, 3)]
    for _ in range(blocks):
        here += [block_of(shape), ActNorm(channels, 3)]
    if scales == 1:
        return (*here, Reshape(shape, (math.prod(shape),)))
    squeezed = (4 * channels, height // 2, width // 2)
    if not factor_out:
        below = pyramid(squeezed, scales - 1, blocks, block_of, factor_out=False)
        return (*here, Squeeze(), *below)
    half = (squeezed[0] // 2, *squeezed[1:])
    inner = Sequential(*pyramid(half, scales - 1, blocks, block_of, factor_out=True))
    prior = SplitPrior(half[0], half[0])
    return (*here, Squeeze(), FactorOut(inner, squeezed, prior))
