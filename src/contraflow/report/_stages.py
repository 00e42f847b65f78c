"""Points of the plane on their way through a flow: data to latent, and a lattice back."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contraflow.report import _canvas
from contraflow.report._canvas import WIDTH
from contraflow.report._points import NARROW_PAGE, bulk, dot
from contraflow.report._theme import LIGHT, Theme
from contraflow.report.contents import Stages

_MOST_POINTS = 3000
_CIRCLE = np.linspace(0, 2 * np.pi, 181)


def stages_plot(stages: Stages, *, width: float = WIDTH, theme: Theme = LIGHT) -> Figure:
    """Draw every stage of a cloud, data first, each point in the colour of its place there.

    The last panel has the circles of radius 1, 2 and 3 of the unit normal.

    Args:
        stages: ``S`` stages of the same rows.
        width: width in inches.
        theme: colours.
    """
    kept = np.isfinite(stages.points).all(axis=(0, 2))
    points = stages.points[:, kept][:, :_MOST_POINTS]  # [S, N, 2]
    figure, panes = _panels(len(stages.names), width)
    colours = wheel(points[0] - np.median(points[0], axis=0)) if points.size else None
    for place, (axes, name, cloud) in enumerate(zip(panes, stages.names, points, strict=True)):
        latent = place == len(stages.names) - 1
        _frame(axes, theme, name, None if latent else cloud)
        axes.scatter(*cloud.T, s=dot(len(cloud), 7.0), c=colours, linewidths=0)
        if latent:
            for radius in (1, 2, 3):
                x, y = radius * np.cos(_CIRCLE), radius * np.sin(_CIRCLE)
                axes.plot(x, y, color=theme.ink, linewidth=0.7, alpha=0.7)
    return figure


def lattice_plot(stages: Stages, *, width: float = WIDTH, theme: Theme = LIGHT) -> Figure:
    """Draw what the inverse makes of circles and rays, latent first, data behind the last.

    Raises:
        ValueError: the stages hold no lattice.
    """
    if stages.circles is None or stages.rays is None:
        raise ValueError("lattice_plot: got stages without circles and rays; nothing to draw.")
    figure, panes = _panels(len(stages.names), width)
    count = len(stages.names)
    for axes, place in zip(panes, reversed(range(count)), strict=True):
        circles, rays = stages.circles[place], stages.rays[place]  # [R, P, 2], [K, P, 2]
        cloud = stages.points[place]
        _frame(
            axes,
            theme,
            stages.names[place],
            circles[-1] if place == count - 1 else circles.reshape(-1, 2),
        )
        if place in (0, count - 1):
            cloud = cloud[:_MOST_POINTS]
            axes.scatter(
                *cloud.T, s=dot(len(cloud), 4.0), color=theme.data, alpha=0.35, linewidths=0
            )
        for lines, weight in ((rays, 0.7), (circles, 1.2)):
            # The colour is the latent angle, at every stage.
            pieces = np.stack([lines[:, :-1], lines[:, 1:]], axis=2)  # [L, P-1, 2, 2]
            latent = stages.rays[-1] if lines is rays else stages.circles[-1]
            colours = wheel(latent[:, 1:].reshape(-1, 2))
            axes.add_collection(
                LineCollection(list(pieces.reshape(-1, 2, 2)), colors=colours, linewidths=weight)
            )
    return figure


def wheel(offsets: np.ndarray) -> np.ndarray:
    """Return a colour for each offset from a centre ``[N, 2]``: hue its angle, light its radius.

    Hues are of equal lightness (Ottosson 2020, Oklab), so that none stands out; the lightness
    stays in a range that shows on white and on black paper.

    Returns:
        RGB in [0, 1], ``[N, 3]``.
    """
    angle = np.arctan2(offsets[:, 1], offsets[:, 0])
    radius = np.hypot(offsets[:, 0], offsets[:, 1])
    rank = radius.argsort(kind="stable").argsort(kind="stable") / max(len(radius) - 1, 1)
    lightness = 0.78 - 0.22 * rank
    chroma = 0.14
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cone**3 @ to_rgb.T, 0.0, 1.0)
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    across = min(count, 3 if width > NARROW_PAGE else 2)
    down = -(-count // across)
    figure = _canvas.blank(width, down * (width / across + 0.1))
    panes = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panes[count:]:
        axes.set_axis_off()
    return figure, panes[:count]


def _frame(axes: Axes, theme: Theme, title: str, cloud: np.ndarray | None) -> None:
    """Dress a square panel around a cloud; around the unit normal without one."""
    _canvas.dress(axes, theme)
    axes.set_title(title, color=theme.ink, fontsize=10, loc="left", pad=5)
    axes.tick_params(labelsize=7.5)
    if cloud is None:
        axes.set_xlim(-3.6, 3.6)
        axes.set_ylim(-3.6, 3.6)
    else:
        (left, right), (bottom, top) = bulk(cloud[:, 0]), bulk(cloud[:, 1])
        ratio = (right - left) / (top - bottom)
        if 0.2 < ratio < 5.0:  # equal units in a square window
            half = max(right - left, top - bottom) / 2
            left, right = (left + right) / 2 - half, (left + right) / 2 + half
            bottom, top = (bottom + top) / 2 - half, (bottom + top) / 2 + half
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
    axes.set_box_aspect(1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
