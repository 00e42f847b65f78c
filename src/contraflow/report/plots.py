"""Figures of a report: training, samples, reconstructions, bounds.

Every function returns a new ``Figure`` and writes nothing, ``save_samples`` alone
writes a file; none touches pyplot or matplotlib's global settings.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from contraflow.report import _canvas
from contraflow.report._calibration import calibration_plot
from contraflow.report._canvas import WIDTH
from contraflow.report._images import image_grid, image_value_range, reconstruction_strip
from contraflow.report._points import plane
from contraflow.report._stages import lattice_plot, stages_plot
from contraflow.report._tables import most_different, table_plot
from contraflow.report._text import bound, number
from contraflow.report._theme import DARK, LIGHT, Theme
from contraflow.report.contents import Density

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "calibration_plot",
    "image_grid",
    "image_value_range",
    "lattice_plot",
    "lipschitz_bars",
    "loss_curve",
    "most_different",
    "plane",
    "reconstruction_errors",
    "reconstruction_strip",
    "samples_figure",
    "save_samples",
    "stages_plot",
    "table_plot",
    "training_curves",
    "validation_curves",
]

_MOST_BARS = 24  # more blocks are drawn upright, without their names

Range = tuple[float, float]


def training_curves(
    metrics: Sequence[Mapping[str, float]],
    *,
    unit: str = "",
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw training and validation loss against the optimiser's step.

    The y-axis covers the losses after the first tenth of training, so that the
    fall from the first steps does not flatten the rest.

    Args:
        metrics: rows of the log, as ``read_metrics`` returns them.
        unit: unit of the loss, for the axis.
        width: width in inches.
        theme: colours.

    Raises:
        ValueError: no row holds a loss.

    Example:
        >>> rows = [{"step": 0, "train/loss": 2.0}, {"step": 1, "train/loss": 1.0}]
        >>> training_curves(rows).axes[0].get_xlabel()
        'step'
    """
    train, validation = loss_curve(metrics, "train"), loss_curve(metrics, "val")
    if not len(train) and not len(validation):
        raise ValueError(
            "training_curves: no row holds train/loss or val/loss together with step; "
            f"got columns {sorted({name for row in metrics for name in row})}."
        )
    figure = _canvas.blank(width, 3.2)
    axes = figure.add_subplot()
    _canvas.dress(axes, theme, x="step", y=f"loss ({unit})" if unit else "loss")
    axes.grid(axis="y", color=theme.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(train):
        window = max(1, len(train) // 50)
        smooth = _running_mean(train, window)
        if window > 1:
            axes.plot(*train.T, color=theme.samples, linewidth=0.7, alpha=0.35)
        label = "training" if window == 1 else f"training (mean of {window})"
        axes.plot(*smooth.T, color=theme.samples, linewidth=1.6, label=label)
    if len(validation):
        marker = "o" if len(validation) <= 60 else ""
        axes.plot(
            *validation.T,
            color=theme.second,
            linewidth=1.6,
            marker=marker,
            markersize=3.5,
            label="validation",
        )
    lost = [curve[~np.isfinite(curve[:, 1]), 0] for curve in (train, validation)]
    for step in np.unique(np.concatenate(lost))[:20]:
        axes.axvline(step, color=theme.failure, linewidth=0.8, linestyle=(0, (2, 2)))
    limits = _robust_losses(train, validation)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(7 if width > 6 else 4, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: number(int(step)))
    _canvas.legend(axes, theme)
    remarks = _training_remarks(train, validation, limits)
    if remarks:  # beside the legend where there is room, else above it
        place, height = ("right", 6) if width > 6 else ("left", 22)
        axes.set_title(remarks, color=theme.muted, fontsize=8.5, loc=place, pad=height)
    return figure


def validation_curves(
    runs: Sequence[tuple[str, Sequence[Mapping[str, float]]]],
    *,
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the validation losses of several runs against the step.

    Args:
        runs: name and log of each run; a log without validation losses draws nothing.
        width: width in inches.
        theme: colours; from the fifth run on, colours repeat with another dash.

    Raises:
        ValueError: no log holds a validation loss.
    """
    curves = [(name, loss_curve(metrics, "val")) for name, metrics in runs]
    if not any(len(curve) for _, curve in curves):
        raise ValueError("validation_curves: no log holds val/loss; nothing to draw.")
    figure = _canvas.blank(width, 3.4)
    axes = figure.add_subplot()
    _canvas.dress(axes, theme, x="step", y="validation loss")
    axes.grid(axis="y", color=theme.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    colours = (theme.samples, theme.second, theme.third, theme.fourth)
    for place, (name, curve) in enumerate(curves):
        if len(curve):
            dash = ("-", (0, (5, 2)), (0, (1, 1.5)))[place // len(colours) % 3]
            axes.plot(
                *curve.T,
                color=colours[place % len(colours)],
                linestyle=dash,
                linewidth=1.6,
                marker="o" if len(curve) <= 60 else "",
                markersize=3,
                label=_canvas.short(name, 28),
            )
    limits = _robust_losses(*(curve for _, curve in curves))
    if limits is not None:
        axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(7 if width > 6 else 4, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: number(int(step)))
    _canvas.legend(axes, theme, columns=3 if width > 6 else 1)
    return figure


def loss_curve(metrics: Sequence[Mapping[str, float]], split: str) -> np.ndarray:
    """Return the logged losses of ``split`` as rows ``(step, loss)``, ``[N, 2]``."""
    for name in (f"{split}/loss", f"{split}/loss_step", f"{split}/loss_epoch"):
        points = [(row["step"], row[name]) for row in metrics if name in row and "step" in row]
        if points:
            return np.asarray(points, dtype=float)
    return np.empty((0, 2))


def _running_mean(curve: np.ndarray, window: int) -> np.ndarray:
    """Return the trailing mean of up to ``window`` finite losses, ``[N, 2]``."""
    finite = curve[np.isfinite(curve[:, 1])]
    sums = np.concatenate([[0.0], np.cumsum(finite[:, 1])])
    last = np.arange(1, len(finite) + 1)
    first = np.maximum(last - window, 0)
    return np.column_stack([finite[:, 0], (sums[last] - sums[first]) / (last - first)])


def _robust_losses(*curves: np.ndarray) -> Range | None:
    """Return y-limits that the first steps and single outliers do not stretch."""
    kept: list[np.ndarray] = []
    for curve in curves:
        if len(curve):
            start, end = curve[0, 0], curve[-1, 0]
            late = curve[curve[:, 0] >= start + 0.1 * (end - start), 1]
            kept.append(late[np.isfinite(late)])
    values = np.concatenate(kept) if kept else np.empty(0)
    if not len(values):
        return None
    low, high = np.quantile(values, [0.002, 0.99])
    margin = 0.06 * (high - low) or 0.05 * abs(float(high)) or 1.0
    return float(low - margin), float(high + margin)


def _training_remarks(train: np.ndarray, validation: np.ndarray, limits: Range | None) -> str:
    losses = np.concatenate([train[:, 1], validation[:, 1]])
    lost = int((~np.isfinite(losses)).sum())
    remarks: list[str] = []
    if limits is not None:
        finite = losses[np.isfinite(losses)]
        outside = int(((finite < limits[0]) | (finite > limits[1])).sum())
        if outside:
            remarks.append(f"{outside} of {len(losses)} losses beyond the axis")
    if lost:
        remarks.append(f"{lost} not finite (dashed)")
    return "; ".join(remarks)


def lipschitz_bars(
    blocks: Sequence[tuple[str, float]], *, width: float = WIDTH, theme: Theme = LIGHT
) -> Figure:
    """Draw the Lipschitz bound of every block against 1.

    Args:
        blocks: name and bound (l2 norm, dimensionless) of each bounded block.
        width: width in inches.
        theme: colours; a bound of 1 or more is hatched in the colour of failure.

    Raises:
        ValueError: there is no block.
    """
    if not blocks:
        raise ValueError("lipschitz_bars: got no block with a bound; nothing to draw.")
    names = [name for name, _ in blocks]
    bounds = np.array([limit for _, limit in blocks], dtype=float)
    finite = bounds[np.isfinite(bounds)]
    end = max(1.12, 1.12 * min(float(finite.max()) if finite.size else 1.0, 10.0))
    lengths = np.where(np.isfinite(bounds), np.minimum(bounds, end), end)
    many = len(blocks) > _MOST_BARS
    figure = _canvas.blank(width, 2.6 if many else 0.75 + 0.27 * len(blocks))
    axes = figure.add_subplot()
    positions = np.arange(len(blocks))
    for failing, colour, hatch in ((False, theme.samples, ""), (True, "none", "////")):
        kept = ~(bounds < 1.0) if failing else bounds < 1.0  # NaN fails
        style = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": theme.failure if failing else colour,
            "linewidth": 1.0 if failing else 0.0,
        }
        if many:
            axes.bar(positions[kept], lengths[kept], width=0.72, **style)
        else:
            axes.barh(positions[kept], lengths[kept], height=0.54, **style)
    label = "upper bound of Lip(g)"
    line = {"color": theme.ink, "linewidth": 1.0, "linestyle": (0, (4, 2))}
    if many:
        _canvas.dress(axes, theme, x="block, data side first", y=label)
        axes.axhline(1.0, **line)
        axes.set_ylim(0, end)
        axes.set_xlim(-0.8, len(blocks) - 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    else:
        _canvas.dress(axes, theme, x=label)
        axes.axvline(1.0, **line)
        axes.set_xlim(0, end * 1.06)
        axes.set_ylim(len(blocks) - 0.4, -0.6)
        axes.set_yticks(positions, [_canvas.short(name, round(16 + 2 * width)) for name in names])
        axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
        axes.spines["left"].set_visible(False)
        for position, limit, length in zip(positions, bounds.tolist(), lengths, strict=True):
            inside = length > 0.25 * end and limit < 1.0
            axes.annotate(
                bound(limit),
                (length, position),
                xytext=(-5 if inside else 5, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=8,
                color=theme.on_samples if inside else theme.ink,
            )
    return figure


def reconstruction_errors(
    data: np.ndarray,
    reconstructions: np.ndarray,
    *,
    width: float = WIDTH,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw how the largest absolute error in a row is distributed, on a log axis.

    Args:
        data: ``[N, *event]``; its first rows were reconstructed.
        reconstructions: ``[M, *event]``, ``M <= N``.
        width: width in inches.
        theme: colours.
    """
    count = len(reconstructions)
    error = np.abs(reconstructions.astype(float) - data[:count]).reshape(count, -1).max(axis=1)
    drawn = error[np.isfinite(error) & (error > 0)]
    zeros, lost = int((error == 0).sum()), int((~np.isfinite(error)).sum())
    figure = _canvas.blank(width, 2.4)
    axes = figure.add_subplot()
    remarks = [f"{zeros} rows exact"] * bool(zeros) + [f"{lost} rows not finite"] * bool(lost)
    _canvas.dress(axes, theme, x="largest absolute error in a row (data units)", y="rows")
    if len(drawn):
        low, high = math.log10(drawn.min()), math.log10(drawn.max())
        middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
        edges = np.logspace(middle - half, middle + half, 31)
        edges[0], edges[-1] = min(edges[0], drawn.min()), max(edges[-1], drawn.max())
        axes.stairs(np.histogram(drawn, edges)[0], edges, fill=True, color=theme.samples)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(
            lambda size, _: number(float(size), 1).removeprefix("1\u00d7")
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if remarks:
        axes.set_title("; ".join(remarks), color=theme.muted, fontsize=8.5, loc="left")
    return figure


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


def save_samples(
    path: str | Path,
    samples: np.ndarray,
    *,
    data: np.ndarray | None = None,
    columns: Sequence[str] | None = None,
    value_range: Range | None = None,
) -> None:
    """Draw samples as their shape asks and write a PNG on white paper.

    Args:
        path: file to write.
        samples: ``[N, C, H, W]`` images, ``[N, 2]`` points or ``[N, D]`` rows of a table.
        data: data of the same layout, drawn beside points and tables.
        columns: names of the columns of a table.
        value_range: values drawn as black and white; judged from ``data``, else ``samples``.

    Raises:
        ValueError: no drawing suits the shape.
    """
    if samples.ndim in (3, 4):
        if value_range is None:
            value_range = image_value_range(samples if data is None else data)
        figure = image_grid(samples, value_range=value_range)
    else:
        figure = samples_figure(data, samples, columns=columns)
    _canvas.write_png(figure, path)
