"""Images as tiles: samples, and reconstructions with their error."""

import math

import numpy as np
from matplotlib.figure import Figure

from contraflow.report import _canvas
from contraflow.report._canvas import WIDTH
from contraflow.report._text import number
from contraflow.report._theme import LIGHT, Theme

Range = tuple[float, float]


def image_value_range(reference: np.ndarray) -> Range:
    """Return the values drawn as black and white, judged from the data.

    Unit and byte ranges are recognised; other data span their own extremes.

    Example:
        >>> image_value_range(np.array([0.0, 0.9])), image_value_range(np.array([0.0, 16.0]))
        ((0.0, 1.0), (0.0, 16.0))
    """
    finite = reference[np.isfinite(reference)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if low >= 0.0 and 0.5 < high <= 1.0:
        return 0.0, 1.0
    if low >= 0.0 and 128.0 <= high <= 256.0:
        return 0.0, 255.0
    if 0.0 <= low < 0.01 * high:  # dequantised levels, say
        low = 0.0
    return (low, high) if high > low else (low, low + 1.0)


def image_grid(
    images: np.ndarray,
    *,
    value_range: Range | None = None,
    limit: int = 64,
    width: float = 5.0,
    theme: Theme = LIGHT,
) -> Figure:
    """Tile images, pixel for pixel, on a transparent ground.

    Args:
        images: ``[N, C, H, W]`` or ``[N, H, W]``; one channel is grey, three are
            RGB, any other number is laid side by side in grey.
        value_range: values drawn as black and white; judged from ``images`` if absent.
        limit: the most images drawn.
        width: approximate width in inches.
        theme: colours; a pixel that is not finite takes the colour of failure.

    Raises:
        ValueError: the array does not hold images, or holds none.
    """
    value_range = image_value_range(images) if value_range is None else value_range
    rgb = _to_rgb(images[:limit], value_range, theme)
    columns = math.ceil(math.sqrt(len(rgb) * rgb.shape[1] / rgb.shape[2]))
    tiles = _tile(rgb, max(1, min(columns, len(rgb))), width)
    figure, axes = _canvas.pixels(*tiles.shape[:2])
    axes.imshow(tiles, interpolation="nearest", aspect="auto")
    return figure


def reconstruction_strip(
    data: np.ndarray,
    reconstructions: np.ndarray,
    *,
    value_range: Range | None = None,
    limit: int = 12,
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw images, their reconstructions and the absolute error, one row each.

    The error has a scale of its own, named in its title, because it is far too
    small to see on the scale of the data.
    """
    count = min(limit, len(reconstructions))
    data, reconstructions = data[:count], reconstructions[:count]
    value_range = image_value_range(data) if value_range is None else value_range
    error = np.abs(reconstructions.astype(float) - data)
    finite = error[np.isfinite(error)]
    largest = float(finite.max()) if finite.size else 0.0
    scale = (
        f"white = {number(largest, 2)} in data units"
        if largest > 0
        else "0 everywhere"
        if finite.size
        else "not finite"
    )
    strips = {
        "data": _to_rgb(data, value_range, theme),
        "reconstruction": _to_rgb(reconstructions, value_range, theme),
        f"absolute error: black = 0, {scale}": _to_rgb(error, (0.0, largest or 1.0), theme),
    }
    rows = {title: _tile(rgb, len(rgb), width) for title, rgb in strips.items()}
    aspect = max(image.shape[0] / image.shape[1] for image in rows.values())
    figure = _canvas.blank(width, 3 * (min(width * aspect, 1.6) + 0.3))
    for axes, (title, image) in zip(figure.subplots(3, 1), rows.items(), strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_anchor("W")
        axes.set_title(title, color=theme.ink, fontsize=9.5, loc="left", pad=4)
    return figure


def _to_rgb(images: np.ndarray, value_range: Range, theme: Theme) -> np.ndarray:
    """Return bytes ``[N, H, W, 3]``."""
    if images.ndim == 3:
        images = images[:, None]  # [N, 1, H, W]
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images: got shape {images.shape}; expected [N, C, H, W] or [N, H, W], not empty."
        )
    if images.shape[1] not in (1, 3):
        images = np.concatenate(list(np.moveaxis(images, 1, 0)), axis=-1)[:, None]  # [N, 1, H, C*W]
    low, high = value_range
    if not low < high:
        raise ValueError(f"images: got value_range {value_range}; expected low < high.")
    unit = np.clip((images.astype(float) - low) / (high - low), 0.0, 1.0)
    rgb = np.moveaxis(np.broadcast_to(unit, (len(unit), 3, *unit.shape[2:])), 1, -1)
    failure = [int(theme.failure[i : i + 2], 16) for i in (1, 3, 5)]
    levels = np.rint(255 * np.nan_to_num(rgb))
    finite = np.isfinite(np.moveaxis(images, 1, -1))  # before the clip, which hides infinities
    return np.where(finite, levels, failure).astype(np.uint8)


def _tile(rgb: np.ndarray, columns: int, width: float) -> np.ndarray:
    """Return tiles ``[rows*(H+gap), columns*(W+gap), 4]``, enlarged by a whole factor."""
    factor = max(1, round(width * _canvas.DPI / (columns * rgb.shape[2] * 1.08)))
    rgb = rgb.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, wide, _ = rgb.shape
    gap = max(2, round(0.06 * wide))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (wide + gap) - gap, 4), dtype=np.uint8)
    for index, image in enumerate(rgb):
        top, left = (index // columns) * (height + gap), (index % columns) * (wide + gap)
        sheet[top : top + height, left : left + wide, :3] = image
        sheet[top : top + height, left : left + wide, 3] = 255
    return sheet
