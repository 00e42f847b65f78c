"""Rows of numbers as points and histograms: data against samples.

Rows that are not finite cannot be drawn: they are left out and counted in the figure.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from contraflow.report import _canvas
from contraflow.report._canvas import WIDTH
from contraflow.report._theme import LIGHT, Theme
from contraflow.report.contents import Density

Range = tuple[float, float]

_MOST_POINTS = 2000  # points of one cloud; more only blacken the paper
_MOST_PAIRS = 6  # columns of a table that still leave a readable pair plot
_MOST_MARGINALS = 24
_NARROW = 6.0  # inches; below it, panels stack
_FLOOR = 10.0  # nats below the highest log-density that a heat map resolves


def samples_figure(
    data: np.ndarray | None,
    samples: np.ndarray | None,
    density: Density | None = None,
    *,
    columns: Sequence[str] | None = None,
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Compare rows ``[N, D]`` with samples: the plane for two columns, else a table.

    Raises:
        ValueError: no drawing suits the shape.
    """
    reference = samples if data is None else data
    if density is not None or (reference is not None and reference.shape[1:] == (2,)):
        return plane(data, samples, density, columns=columns, width=width, theme=theme)
    if reference is None or reference.ndim != 2 or not reference.shape[1]:
        shape = None if reference is None else reference.shape
        raise ValueError(
            f"samples_figure: got shape {shape}; expected [N, D]. Draw images with image_grid."
        )
    return table_plot(data, samples, columns=columns, width=width, theme=theme)


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
    names = _names(columns, 2)
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
    across = panels if width > _NARROW else 1  # a telephone stacks the panels
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
        cloud, remark = _cloud(points)
        axes.scatter(*cloud.T, s=_dot(len(cloud)), color=colour, alpha=0.7, linewidths=0)
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
    return _bulk(clouds[0][:, 0]), _bulk(clouds[0][:, 1])


def _cloud(points: np.ndarray) -> tuple[np.ndarray, str]:
    """Return at most ``_MOST_POINTS`` finite points and a remark on the others."""
    finite = points[np.isfinite(points).all(axis=1)]
    remark = f" ({len(points) - len(finite)} not finite)" if len(finite) < len(points) else ""
    if len(finite) > _MOST_POINTS:
        # Evenly spaced rows: tables are often sorted, so the first rows are no sample.
        finite = finite[np.linspace(0, len(finite) - 1, _MOST_POINTS).astype(int)]
    return finite, remark


def _dot(count: int, largest: float = 10.0) -> float:
    """Return a marker area that keeps the ink of a cloud about constant."""
    return float(np.clip(3000.0 / max(count, 1), 1.5, largest))


def _bulk(values: np.ndarray) -> Range:
    """Return limits around the central 99.6 % of the finite values, with a margin."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(limit) for limit in np.quantile(finite, [0.002, 0.998]))
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def table_plot(
    data: np.ndarray | None,
    samples: np.ndarray | None,
    *,
    columns: Sequence[str] | None = None,
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Compare a table with samples: pairs up to 6 columns, marginals beyond.

    Args:
        data: ``[N, D]``, or ``None``.
        samples: ``[N, D]``, or ``None``; axes follow ``data`` where both are given.
        columns: ``D`` names.
        width: width in inches.
        theme: colours.
    """
    reference = samples if data is None else data
    if reference is None:
        raise ValueError("table_plot: got neither data nor samples; nothing to draw.")
    names = _names(columns, reference.shape[1])
    if 1 < len(names) <= _MOST_PAIRS:
        return _pairs(data, samples, names, reference, width, theme)
    return _marginals(data, samples, names, reference, width, theme)


def _pairs(
    data: np.ndarray | None,
    samples: np.ndarray | None,
    names: Sequence[str],
    reference: np.ndarray,
    width: float,
    theme: Theme,
) -> Figure:
    """Draw data below the diagonal and samples above it, so that the halves mirror."""
    size = len(names)
    limits = [_bulk(reference[:, column]) for column in range(size)]
    height = width * 0.94
    # Fixed margins: for 36 axes, fitting them takes longer than drawing.
    figure = _canvas.blank(width, height, fitted=False)
    figure.subplots_adjust(
        left=0.72 / width,
        right=1 - 0.06 / width,
        bottom=0.52 / height,
        top=1 - 0.34 / height,
        wspace=0.1,
        hspace=0.1,
    )
    panes = figure.subplots(size, size, squeeze=False)
    lower = None if data is None else _cloud(data)[0]
    upper = None if samples is None else _cloud(samples)[0]
    for row in range(size):
        for column in range(size):
            axes = panes[row, column]
            _canvas.dress(axes, theme)
            axes.tick_params(labelsize=7)
            axes.set_xlim(*limits[column])
            axes.xaxis.set_major_locator(MaxNLocator(2))
            if row == column:
                _histogram(axes, data, samples, column, limits[column], theme)
                axes.spines["left"].set_visible(False)
                axes.set_yticks([])
            else:
                axes.set_ylim(*limits[row])
                axes.yaxis.set_major_locator(MaxNLocator(2))
                cloud, colour = (lower, theme.data) if row > column else (upper, theme.samples)
                if cloud is not None:
                    axes.scatter(
                        cloud[:, column],
                        cloud[:, row],
                        s=_dot(len(cloud), 4.0) * width / WIDTH,
                        color=colour,
                        alpha=0.6,
                        linewidths=0,
                    )
            axes.tick_params(labelleft=column == 0 and row > 0, labelbottom=row == size - 1)
    for position, name in enumerate(names):
        label = _canvas.short(name, max(7, round(11 * width / size) - 2))
        panes[position, 0].set_ylabel(label, color=theme.ink, fontsize=9)
        panes[size - 1, position].set_xlabel(label, color=theme.ink, fontsize=9)
    figure.align_ylabels(list(panes[:, 0]))
    _key(figure, data, samples, theme, ("data, below the diagonal", "samples, above it"))
    return figure


def _marginals(
    data: np.ndarray | None,
    samples: np.ndarray | None,
    names: Sequence[str],
    reference: np.ndarray,
    width: float,
    theme: Theme,
) -> Figure:
    count = min(reference.shape[1], _MOST_MARGINALS)
    across = min(4 if width > _NARROW else 2, count)
    down = math.ceil(count / across)
    figure = _canvas.blank(width if count > 1 else min(width, 4.5), 1.45 * down + 0.4)
    panes = figure.subplots(down, across, squeeze=False).flat
    for column, axes in enumerate(panes):
        if column >= count:
            axes.set_axis_off()
            continue
        limits = _bulk(reference[:, column])
        _canvas.dress(axes, theme, x=_canvas.short(names[column], 22))
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.label.set_fontsize(8.5)
        axes.tick_params(labelsize=7.5)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        _histogram(axes, data, samples, column, limits, theme)
    _key(figure, data, samples, theme, ("data", "samples"))
    return figure


def _histogram(
    axes: Axes,
    data: np.ndarray | None,
    samples: np.ndarray | None,
    column: int,
    limits: Range,
    theme: Theme,
) -> None:
    """Overlay both densities on the same bins; mass outside the axis still counts."""
    edges = np.linspace(*limits, 41)
    for table, filled in ((data, True), (samples, False)):
        if table is None or not len(table):
            continue
        finite = table[np.isfinite(table[:, column]), column]
        heights = np.histogram(finite, edges)[0] / max(len(finite), 1)
        if filled:
            axes.stairs(heights, edges, fill=True, color=theme.data, alpha=0.55)
        else:
            axes.stairs(heights, edges, color=theme.samples, linewidth=1.4)
    axes.set_ylim(bottom=0)


def _key(
    figure: Figure,
    data: np.ndarray | None,
    samples: np.ndarray | None,
    theme: Theme,
    labels: tuple[str, str],
) -> None:
    """Name the two colours and count the rows that could not be drawn."""
    entries = []
    for table, label, colour in (
        (data, labels[0], theme.data),
        (samples, labels[1], theme.samples),
    ):
        if table is not None:
            entries.append((label + _cloud(table)[1], colour))
    handles = [Patch(color=colour) for _, colour in entries]
    figure.legend(
        handles,
        [label for label, _ in entries],
        loc="upper left" if figure.get_layout_engine() is None else "outside upper left",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        handlelength=1.0,
        handleheight=0.8,
    )


def _names(columns: Sequence[str] | None, width: int) -> list[str]:
    """Return the names of the columns, ``x₁, x₂, …`` where there are none."""
    if columns is not None:
        return list(columns)
    subscripts = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return [f"x{i}".translate(subscripts) for i in range(1, width + 1)]
