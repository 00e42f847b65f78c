"""Points of the plane: data, samples and density on common axes.

Rows that are not finite cannot be drawn: they are left out and counted in the figure.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contraflow.report import _canvas
from contraflow.report._canvas import WIDTH
from contraflow.report._theme import LIGHT, Theme
from contraflow.report.contents import Density

Range = tuple[float, float]

_MOST_POINTS = 2000  # points of one cloud; more only blacken the paper
NARROW_PAGE = 6.0  # inches; below it, panels stack
_FLOOR = 10.0  # nats below the highest log-density that a heat map resolves


def plane(
    data: np.ndarray | None,
    samples: np.ndarray | None,
    density: Density | None = None,
    *,
    columns: Sequence[str] | None = None,
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw data, samples and log-density of a two-dimensional flow on common axes.

    Args:
        data: ``[N, 2]``.
        samples: ``[N, 2]``.
        density: grid and log-density in nats.
        columns: names of the two axes.
        width: width in inches; below 6, the panels stand in one column.
        theme: colours.
    """
    names = column_names(columns, 2)
    clouds = [
        (title, points, colour)
        for title, points, colour in (
            ("data", data, theme.data),
            ("samples", samples, theme.samples),
        )
        if points is not None
    ]
    panels = len(clouds) + (density is not None)
    if not panels:
        raise ValueError("plane: got neither data, samples nor density; nothing to draw.")
    limits = _plane_limits([points for _, points, _ in clouds], density)
    across = panels if width > NARROW_PAGE else 1  # a telephone stacks the panels
    down = panels // across
    (left, right), (bottom, top) = limits
    aspect = (top - bottom) / (right - left)
    side = min(width / across, WIDTH / 2)
    height = (side - 0.4) * float(np.clip(aspect, 0.3, 1.4)) + (0.75 if across > 1 else 0.45)
    figure = _canvas.blank(side * across, height * down + (0.0 if density is None else 0.6))
    panes = np.atleast_1d(figure.subplots(down, across, sharex=True, sharey=True)).ravel()
    for position, axes in enumerate(panes):
        first, last = position % across == 0, position >= panels - across
        _canvas.dress(axes, theme, x=names[0] if last else "", y=names[1] if first else "")
        axes.set_aspect("equal" if 0.2 < aspect < 5.0 else "auto")  # units may differ wildly
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes, (title, points, colour) in zip(panes, clouds, strict=False):
        cloud, remark = cloud_of(points)
        axes.scatter(*cloud.T, s=dot(len(cloud)), color=colour, alpha=0.7, linewidths=0)
        axes.set_title(title + remark, color=theme.ink, fontsize=10, loc="left", pad=6)
    if density is not None:
        axes = panes[-1]
        xs, ys, log_density = density
        finite = log_density[np.isfinite(log_density)]
        top = float(finite.max()) if finite.size else 0.0
        mesh = axes.pcolormesh(
            xs,
            ys,
            np.ma.masked_invalid(np.where(log_density == -np.inf, top - _FLOOR, log_density)),
            shading="nearest",
            cmap="viridis",
            vmin=top - _FLOOR,
            vmax=top,
            rasterized=True,
        )
        axes.set_title("log-density", color=theme.ink, fontsize=10, loc="left", pad=6)
        bar = figure.colorbar(
            mesh,
            ax=list(panes),
            location="bottom",
            shrink=0.5 if across > 1 else 0.9,
            aspect=36,
            extend="min",
            pad=0.03 if across > 1 else 0.02,
        )
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(colors=theme.rule, labelcolor=theme.muted, labelsize=8.5, length=3)
        bar.set_label("log-density (nats)", color=theme.ink, fontsize=9)
    return figure


def _plane_limits(clouds: Sequence[np.ndarray], density: Density | None) -> tuple[Range, Range]:
    """Return one window for all panels: the grid of the density, else the bulk of the data."""
    if density is not None:
        xs, ys, _ = density
        return (float(xs.min()), float(xs.max())), (float(ys.min()), float(ys.max()))
    return bulk(clouds[0][:, 0]), bulk(clouds[0][:, 1])


def cloud_of(points: np.ndarray) -> tuple[np.ndarray, str]:
    """Return at most ``_MOST_POINTS`` finite points and a remark on the others."""
    finite = points[np.isfinite(points).all(axis=1)]
    remark = f" ({len(points) - len(finite)} not finite)" if len(finite) < len(points) else ""
    if len(finite) > _MOST_POINTS:
        # Evenly spaced rows: tables are often sorted, so the first rows are no sample.
        finite = finite[np.linspace(0, len(finite) - 1, _MOST_POINTS).astype(int)]
    return finite, remark


def dot(count: int, largest: float = 10.0) -> float:
    """Return a marker area that keeps the ink of a cloud about constant."""
    return float(np.clip(3000.0 / max(count, 1), 1.5, largest))


def bulk(values: np.ndarray) -> Range:
    """Return limits around the central 99.6 % of the finite values, with a margin."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(limit) for limit in np.quantile(finite, [0.002, 0.998]))
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def column_names(columns: Sequence[str] | None, width: int, letter: str = "x") -> list[str]:
    """Return the names of the columns, ``x₁, x₂, …`` where there are none."""
    if columns is not None:
        return list(columns)
    subscripts = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return [f"{letter}{i}".translate(subscripts) for i in range(1, width + 1)]
