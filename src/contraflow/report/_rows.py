"""The sections of a report that show rows: samples, stages, calibration, the odd ones."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from contraflow.report import plots
from contraflow.report._calibration import reading
from contraflow.report._page import missing, picture, table
from contraflow.report._points import column_names
from contraflow.report._tables import MOST_MARGINALS, MOST_PAIRS
from contraflow.report._text import bound, number
from contraflow.report._verdict import judge
from contraflow.report.contents import Picked, ReportContents

_MOST_CELLS = 16  # columns of a row that are listed


def samples_section(contents: ReportContents) -> str:
    """Return samples beside held-out data."""
    data, samples = contents.data, contents.samples
    if samples is None or not len(samples):
        reason = contents.missing.get("Samples")
        return missing("No samples were drawn.", "contraflow sample RUN", reason)
    if samples.ndim in (3, 4):
        value_range = plots.image_value_range(samples if data is None else data)
        figures = [_tiles(samples, "Samples of the flow.", value_range)]
        if data is not None and len(data):
            figures.append(_tiles(data, "Held-out data, for comparison.", value_range))
        return f'<div class="pair">{"".join(figures)}</div>'
    try:
        if samples.ndim == 2 and samples.shape[1] > 2:
            return _table(contents, samples)
        kind = "points" if samples.ndim == 2 and samples.shape[1] == 2 else "table"
        return picture(
            lambda theme, width: plots.samples_figure(
                data, samples, contents.density, columns=contents.columns, width=width, theme=theme
            ),
            f"{kind.capitalize()} of the data and samples of the flow",
            _plane_caption(contents, samples),
        )
    except ValueError as error:
        return f'<p class="missing">These samples have no drawing: {html.escape(str(error))}</p>'


def _plane_caption(contents: ReportContents, samples: np.ndarray) -> str:
    if contents.density is not None:
        return (
            f"Data, {number(len(samples))} samples and the log-density of the flow on the same "
            "axes; the colours end 10 nats below the highest value."
        )
    return f"Data against {_count(contents, samples)}. Axes hold 99.6% of the data."


def _count(contents: ReportContents, samples: np.ndarray) -> str:
    given = ", one at the context of each held-out row" if contents.conditional else ""
    return f"{number(len(samples))} samples{given}"


def _table(contents: ReportContents, samples: np.ndarray) -> str:
    """Return marginals where there are many columns, and pairs of at most six."""
    data, width = contents.data, samples.shape[1]
    names = column_names(contents.columns, width)

    def draw(columns: Sequence[int], description: str, caption: str) -> str:
        kept = list(columns)
        return picture(
            lambda theme, inches: plots.table_plot(
                None if data is None else data[:, kept],
                samples[:, kept],
                columns=[names[column] for column in kept],
                width=inches,
                theme=theme,
            ),
            description,
            caption,
        )

    def chosen(count: int) -> list[int]:
        return list(range(count)) if data is None else plots.most_different(data, samples, count)

    count = _count(contents, samples)
    figures: list[str] = []
    if width > MOST_PAIRS:
        which = f"All {width} columns"
        if width > MOST_MARGINALS:
            which = f"{MOST_MARGINALS} of {width} columns, {_chosen_by(data)}"
        figures.append(
            draw(
                chosen(min(width, MOST_MARGINALS)),
                "Marginals of the data and samples of the flow",
                f"{which}: marginals of the data (filled) and of {count} (line). Axes hold 99.6% "
                "of the data.",
            )
        )
    which = f"{MOST_PAIRS} of {width} columns, {_chosen_by(data)}: pairs"
    figures.append(
        draw(
            chosen(min(width, MOST_PAIRS)),
            "Pairs of columns of the data and samples of the flow",
            f"{which if width > MOST_PAIRS else 'Pairs of columns'}, data below the diagonal, "
            f"{count} above it, marginals on it. A faithful flow mirrors one half in the other.",
        )
    )
    return "".join(figures)


def _chosen_by(data: np.ndarray | None) -> str:
    if data is None:
        return "the first ones"
    return "those whose marginals or rank correlations differ most between data and samples"


def stages_section(contents: ReportContents) -> str:
    """Return a flow over the plane at work; nothing for other flows."""
    stages = contents.stages
    if stages is None:
        if "Flow of points" in contents.missing:
            reason = contents.missing["Flow of points"]
            return missing("No points were followed.", "contraflow report RUN", reason)
        return ""
    blocks = f"; between, behind {stages.blocks}" if stages.blocks else ""
    given = " Each row moves under its own context." if contents.conditional else ""
    forward = picture(
        lambda theme, width: plots.stages_plot(stages, width=width, theme=theme),
        "Data points at successive stages of the flow, from data to latent space",
        f"Forward: {number(stages.points.shape[1])} held-out rows from data to latent space"
        f"{blocks}. Each row keeps the colour of its place in the data: hue is the angle about the "
        f"median, dark is far out.{given} Circles: radius 1, 2 and 3 of the unit normal. Every "
        "panel has its own scale.",
    )
    if stages.circles is None:
        return forward
    proved = judge(contents.certificate).mood != "bad"
    shares = (
        "The flow puts 39.3%, 86.5% and 98.9% of its probability inside the three curves."
        if proved
        else "How much probability lies inside the curves is not known: the flow is NOT certified."
    )
    return forward + picture(
        lambda theme, width: plots.lattice_plot(stages, width=width, theme=theme),
        "Circles and rays of the latent space carried back to the data",
        "Backward: circles of radius 1, 2 and 3 and rays of the latent space, carried to the data "
        "by the inverse, in the same spaces as above; colour is the latent angle. "
        f"{shares} Grey: held-out rows.",
    )


def calibration_section(contents: ReportContents) -> str:
    """Return held-out rows in latent space against the base."""
    calibration = contents.calibration
    if calibration is None:
        reason = contents.missing.get("Calibration")
        return missing("The calibration was not measured.", "contraflow report RUN", reason)
    drawn = calibration.u.shape[1] - 1
    faint = "Grey: the other coordinates" + (f", {64} of {drawn}" if drawn > 64 else "")
    return (
        picture(
            lambda theme, width: plots.calibration_plot(calibration, width=width, theme=theme),
            "Distribution functions of the latent coordinates and radius against uniform",
            "u = Φ(z) for each latent coordinate z of held-out rows, and for the radius the χ² "
            "distribution function of |z|²: all are uniform if the flow is right, so that F̂(u) − u "
            f"stays near zero. Integer data are dequantised once. {faint}.",
        )
        + f"<p>{html.escape(reading(calibration))}</p>"
    )


# The rows that stand out


def picked_section(contents: ReportContents) -> str:
    """Return the slowest samples and the least likely samples and rows."""
    reason = contents.missing.get("Slowest and least likely")
    parts = [_picked(each, contents) for each in contents.picked]
    if reason or not parts:
        what = "Some rows are missing." if parts else "No rows were picked."
        parts.append(missing(what, "contraflow report RUN", reason))
    return "\n".join(parts)


def _picked(picked: Picked, contents: ReportContents) -> str:
    head = f"<h3>{html.escape(picked.title)}</h3>\n<p>{html.escape(picked.note)}</p>\n"
    if picked.values.ndim in (3, 4):
        return head + _picked_images(picked, contents)
    names = column_names(contents.columns, picked.values.shape[1])[:_MOST_CELLS]
    rows = [values[: len(names)].tolist() for values in picked.values]
    more = picked.values.shape[1] - len(names)
    if picked.context is not None:
        given = column_names(contents.context_columns, picked.context.shape[1], "c")
        names = names + [f"given {name}" for name in given[:_MOST_CELLS]]
        rows = [
            [*row, *context[:_MOST_CELLS].tolist()]
            for row, context in zip(rows, picked.context, strict=True)
        ]
    facts = [_told(name, numbers) for name, numbers in picked.facts.items()]
    rows = [[*told, *row] for told, row in zip(zip(*facts, strict=True), rows, strict=True)]
    note = f"<p>{more} further columns are left out.</p>" if more > 0 else ""
    return head + table([*picked.facts, *names], rows) + note


def _picked_images(picked: Picked, contents: ReportContents) -> str:
    reference = picked.values if contents.data is None else contents.data
    value_range = plots.image_value_range(reference)
    facts = {name: _told(name, numbers) for name, numbers in picked.facts.items()}
    tiles = [
        picture(
            lambda theme, width, image=image: plots.image_grid(
                image[None], value_range=value_range, width=width, theme=theme
            ),
            f"{picked.title}, number {place + 1}",
            _caption({name: told[place] for name, told in facts.items()}),
            width=1.2,
            themed=not np.isfinite(image).all(),
        )
        for place, image in enumerate(picked.values)
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _caption(facts: Mapping[str, object]) -> str:
    lines = [f"{name} {number(told)}" for name, told in facts.items()]
    return "\n".join(lines).replace("\n±", " ±")  # a value and its error share a line


def _told(name: str, numbers: Sequence[float]) -> Sequence[object]:
    """Return the facts as they are shown: errors to two digits, bounds rounded up."""
    if name in ("±", "residual"):
        return [number(each, 2) for each in numbers]
    if name == "error bound":
        return ["none known" if math.isinf(each) else bound(each, 2) for each in numbers]
    return numbers


# Pictures of images


def _tiles(images: np.ndarray, caption: str, value_range: tuple[float, float]) -> str:
    low, high = value_range
    lost = int((~np.isfinite(images)).sum())
    warning = f" {number(lost)} values are not finite (orange)." if lost else ""
    return picture(
        lambda theme, width: plots.image_grid(
            images, value_range=value_range, width=width, theme=theme
        ),
        caption,
        f"{caption} Black is {number(low, 3)}, white is {number(high, 3)}.{warning}",
        themed=lost > 0,
        width=3.5,
    )


def reconstruction_section(contents: ReportContents, warned: str = "") -> str:
    """Return what forward and inverse make of held-out rows, a warning before it."""
    data, reconstructions = contents.data, contents.reconstructions
    if data is None or reconstructions is None or not len(reconstructions):
        reason = contents.missing.get("Reconstruction")
        return missing("No reconstruction was computed.", "contraflow report RUN", reason)
    error = np.abs(reconstructions.astype(float) - data[: len(reconstructions)])
    largest = float(error.max()) if np.isfinite(error).all() else math.nan
    caption = (
        f"Data through the flow and back: largest absolute error {number(largest, 2)} "
        f"in the data's units, over {number(len(reconstructions))} examples."
    )
    if largest == 0:
        return f"{warned}<p>{html.escape(caption)}</p>"
    if data.ndim in (3, 4):
        return warned + picture(
            lambda theme, width: plots.reconstruction_strip(
                data, reconstructions, limit=round(1.7 * width), width=width, theme=theme
            ),
            "Data, reconstructions and absolute errors",
            caption,
        )
    return warned + picture(
        lambda theme, width: plots.reconstruction_errors(
            data, reconstructions, width=width, theme=theme
        ),
        "Histogram of reconstruction errors",
        caption,
    )
