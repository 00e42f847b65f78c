"""Tables of numbers: marginals and pairs of columns, data against samples.

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
from contraflow.report._points import NARROW_PAGE, Range, bulk, cloud_of, column_names, dot
from contraflow.report._theme import LIGHT, Theme

MOST_PAIRS = 6  # columns that still leave a readable pair plot
MOST_MARGINALS = 24


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
    names = column_names(columns, reference.shape[1])
    if 1 < len(names) <= MOST_PAIRS:
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
    limits = [bulk(reference[:, column]) for column in range(size)]
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
    cramped = width / size < 0.9
    size_of_label = 6.5 if cramped else 9
    prune = "both" if cramped else None
    lower = None if data is None else cloud_of(data)[0]
    upper = None if samples is None else cloud_of(samples)[0]
    for row in range(size):
        for column in range(size):
            axes = panes[row, column]
            _canvas.dress(axes, theme)
            axes.tick_params(labelsize=5.5 if cramped else 7)
            axes.set_xlim(*limits[column])
            axes.xaxis.set_major_locator(MaxNLocator(2, prune=prune))
            if row == column:
                _histogram(axes, data, samples, column, limits[column], theme)
                axes.spines["left"].set_visible(False)
                axes.set_yticks([])
            else:
                axes.set_ylim(*limits[row])
                axes.yaxis.set_major_locator(MaxNLocator(2, prune=prune))
                cloud, colour = (lower, theme.data) if row > column else (upper, theme.samples)
                if cloud is not None:
                    axes.scatter(
                        cloud[:, column],
                        cloud[:, row],
                        s=dot(len(cloud), 4.0) * width / WIDTH,
                        color=colour,
                        alpha=0.6,
                        linewidths=0,
                    )
            axes.tick_params(labelleft=column == 0 and row > 0, labelbottom=row == size - 1)
    for position, name in enumerate(names):
        label = _canvas.short(name, max(7, round(11 * width / size) - 2))
        panes[position, 0].set_ylabel(label, color=theme.ink, fontsize=size_of_label)
        panes[size - 1, position].set_xlabel(label, color=theme.ink, fontsize=size_of_label)
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
    count = min(reference.shape[1], MOST_MARGINALS)
    across = min(4 if width > NARROW_PAGE else 2, count)
    down = math.ceil(count / across)
    figure = _canvas.blank(width if count > 1 else min(width, 4.5), 1.45 * down + 0.4)
    panes = figure.subplots(down, across, squeeze=False).flat
    for column, axes in enumerate(panes):
        if column >= count:
            axes.set_axis_off()
            continue
        limits = bulk(reference[:, column])
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
            entries.append((label + cloud_of(table)[1], colour))
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


def most_different(data: np.ndarray, samples: np.ndarray, count: int) -> list[int]:
    """Return the ``count`` columns in which data and samples differ most, in table order.

    A column scores the Kolmogorov-Smirnov distance of its marginals, or half the largest
    difference of its rank correlations, whichever is larger: both lie in [0, 1].

    Example:
        >>> data = np.random.default_rng(0).normal(size=(500, 4))
        >>> samples = data * [1.0, 1.0, 3.0, 1.0]
        >>> most_different(data, samples, 1)
        [2]
    """
    data, samples = (rows[np.isfinite(rows).all(axis=1)] for rows in (data, samples))
    width = data.shape[1]
    if width <= count or min(len(data), len(samples)) < 2:
        return list(range(min(width, count)))
    marginal = [_distance(data[:, i], samples[:, i]) for i in range(width)]
    change = np.abs(_rank_correlation(data) - _rank_correlation(samples))
    score = np.maximum(marginal, change.max(axis=0) / 2)
    return sorted(np.argsort(-score, kind="stable")[:count].tolist())


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(a), np.sort(b)
    places = np.concatenate([a, b])
    gap = np.searchsorted(a, places, "right") / len(a) - np.searchsorted(b, places, "right") / len(
        b
    )
    return float(np.abs(gap).max())


def _rank_correlation(table: np.ndarray) -> np.ndarray:
    """Return Spearman's coefficients ``[D, D]``; a constant column correlates with nothing."""
    ranks = table.argsort(axis=0, kind="stable").argsort(axis=0).astype(float)
    ranks[:, table.std(axis=0) == 0] = 0.0
    ranks -= ranks.mean(axis=0)
    size = np.sqrt((ranks**2).sum(axis=0))
    return (ranks.T @ ranks) / np.where(size == 0, 1.0, np.outer(size, size))
