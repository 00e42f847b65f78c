"""Several runs on one page: their values, curves and samples, in the order given."""

import html
from collections.abc import Sequence

from contraflow.report import plots
from contraflow.report._canvas import NARROW
from contraflow.report._page import frame, missing, picture, table, unit_of
from contraflow.report._text import bound, number, rounded_to, text
from contraflow.report._verdict import judge
from contraflow.report.contents import ReportContents

_COLUMNS = (
    "run", "flow", "data", "parameters", "steps", "seconds", "value ± estimator ± data",
    "unit", "kind", "rows", "round trip", "certificate",
)  # fmt: skip
_TEXTS = ("run", "flow", "data", "unit", "kind", "certificate")


def render_comparison(runs: Sequence[ReportContents]) -> str:
    """Return one HTML document about several runs, without scripts or outside addresses.

    Runs keep their order and none is called the best: a choice by test values would make
    them validation values.

    Args:
        runs: contents of each run; two runs of one title are numbered.

    Raises:
        ValueError: there is no run.

    Example:
        >>> page = render_comparison([ReportContents(title="a"), ReportContents(title="<b>")])
        >>> "<h1>a, &lt;b&gt;</h1>" in page
        True
    """
    if not runs:
        raise ValueError("render_comparison: got no run; expected one or more.")
    names = _distinct([run.title for run in runs])
    sections = [
        ("Values", _values(names, runs)),
        ("Validation", _validation(names, runs)),
        ("Samples", _samples(names, runs)),
        ("Commands", _commands(names, runs)),
    ]
    title = ", ".join(names) if len(names) <= 4 else f"{len(names)} runs"
    return frame(title, "", sections, wide=True)


def remarks(runs: Sequence[ReportContents]) -> list[str]:
    """Return the reasons why values of these runs cannot be compared as they stand.

    Example:
        >>> a, b = ({"unit": unit, "kind": "exact"} for unit in ("nats", "bits_per_dim"))
        >>> remarks([ReportContents("a", evaluation=a), ReportContents("b", evaluation=b)])
        ['The values are in different units and cannot be compared.']
    """
    found: list[str] = []
    measured = [run.evaluation for run in runs if run.evaluation is not None]
    if len({run.data_options or run.data_set for run in runs}) > 1:
        found.append("The runs were made on different data: their values cannot be compared.")
    if len({text(each, "unit") for each in measured}) > 1:
        found.append("The values are in different units and cannot be compared.")
    if len({(text(each, "split"), text(each, "n")) for each in measured}) > 1:
        found.append(
            "The values come from different rows (split or number): a difference between them is "
            "also one between the rows."
        )
    if len({text(each, "kind") for each in measured}) > 1:
        found.append(
            "The values are of different kinds: a bound and an exact value answer different "
            "questions."
        )
    return found


def _unproved(names: Sequence[str], runs: Sequence[ReportContents]) -> list[str]:
    """Return what is to be said of the runs that are not certified."""
    pairs = zip(names, runs, strict=True)
    failing = [name for name, run in pairs if judge(run.certificate).mood == "bad"]
    if not failing:
        return []
    return [
        f"NOT certified: {', '.join(failing)}. Nothing proves that these flows have inverses, nor "
        "that their likelihoods are those of densities."
    ]


def _values(names: Sequence[str], runs: Sequence[ReportContents]) -> str:
    notes = "".join(
        f'<p class="verdict bad">{html.escape(remark)}</p>\n'
        for remark in [*remarks(runs), *_unproved(names, runs)]
    )
    rows = [_row(name, run) for name, run in zip(names, runs, strict=True)]
    absent = [
        missing(f"{name} was not evaluated.", "contraflow evaluate RUN", run.missing["Likelihood"])
        for name, run in zip(names, runs, strict=True)
        if run.evaluation is None and "Likelihood" in run.missing
    ]
    order = (
        "<p>In the order given. Bits/dim: lower is better; nats (mean log p): higher is better. "
        "Two values differ when they lie apart by more than their errors together; a choice "
        "between runs belongs to the validation data.</p>"
    )
    return notes + table(_COLUMNS, rows, texts=_TEXTS) + order + "".join(absent)


def _row(name: str, run: ReportContents) -> list[object]:
    measured = run.evaluation or {}
    value, stderr, spread = (measured.get(key) for key in ("value", "stderr", "stderr_data"))
    bias = measured.get("bias_bound")
    error = measured.get("round_trip_error")
    return [
        name,
        run.flow or "—",
        run.data_set or "—",
        _or_dash(run.parameters),
        _or_dash(run.steps),
        _or_dash(None if run.train_seconds is None else round(run.train_seconds)),
        "not evaluated" if value is None else _with_errors(value, stderr, spread, bias),
        unit_of(measured) if measured else "—",
        text(measured, "kind", "—").replace("_", " "),
        _or_dash(measured.get("n")),
        "—" if error is None else number(error, 2),
        judge(run.certificate).headline,
    ]


def _with_errors(value: object, stderr: object, spread: object, bias: object) -> str:
    shown = rounded_to(value, stderr, spread, bias)
    for error in (stderr, spread):
        shown += f" ± {'—' if error is None else number(error, 2)}"
    return f"{shown}, bias ≤\u00a0{bound(bias, 2)}" if bias else shown


def _or_dash(entry: object) -> object:
    return "—" if entry is None else entry


def _validation(names: Sequence[str], runs: Sequence[ReportContents]) -> str:
    logs = [(name, run.metrics) for name, run in zip(names, runs, strict=True)]
    bare = [name for name, log in logs if not len(plots.loss_curve(log, "val"))]
    note = f" No validation loss was logged by {', '.join(bare)}." if bare else ""
    if len(bare) == len(logs):
        return missing("No run logged a validation loss.", "contraflow train PRESET")
    warning = " The losses are not of one kind: see the notes above." if remarks(runs) else ""
    return picture(
        lambda theme, width: plots.validation_curves(logs, width=width, theme=theme),
        "Validation loss of every run against the step",
        f"The axis fits the losses after the first tenth of each run.{warning}{note}",
    )


def _samples(names: Sequence[str], runs: Sequence[ReportContents]) -> str:
    parts = [_sample(name, run) for name, run in zip(names, runs, strict=True)]
    return f'<div class="gallery">{"".join(parts)}</div>'


def _sample(name: str, run: ReportContents) -> str:
    head = f'<div><h3 class="name">{html.escape(name)}</h3>\n'
    if run.samples is None or not len(run.samples):
        reason = run.missing.get("Samples")
        return head + missing("No samples were drawn.", "contraflow sample RUN", reason) + "</div>"
    data, samples = run.data, run.samples
    count = number(len(samples))
    if samples.ndim in (3, 4):
        value_range = plots.image_value_range(samples if data is None else data)
        figure = picture(
            lambda theme, width: plots.image_grid(
                samples, value_range=value_range, limit=36, width=width, theme=theme
            ),
            f"Samples of {name}",
            f"{min(len(samples), 36)} samples.",
            width=3.5,
            themed=False,
        )
        return f"{head}{figure}</div>"
    flat = samples.shape[1] == 2
    kept = list(range(samples.shape[1]))
    if data is not None and not flat:
        kept = plots.most_different(data, samples, 3)
    columns = None if run.columns is None else [run.columns[column] for column in kept]
    figure = picture(
        lambda theme, width: plots.samples_figure(
            None if flat or data is None else data[:, kept],
            samples[:, kept],
            columns=columns,
            width=width,
            theme=theme,
        ),
        f"Samples of {name}",
        f"{count} samples."
        if flat
        else f"Data below the diagonal, {count} samples above it; the columns that differ most.",
        width=NARROW,
    )
    return f"{head}{figure}</div>"


def _commands(names: Sequence[str], runs: Sequence[ReportContents]) -> str:
    return "\n".join(
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(run.command or 'The command was not recorded.')}</pre></details>"
        for name, run in zip(names, runs, strict=True)
    )


def _distinct(titles: Sequence[str]) -> list[str]:
    """Number the titles that occur more than once."""
    return [
        title if titles.count(title) == 1 else f"{title} ({titles[: place + 1].count(title)})"
        for place, title in enumerate(titles)
    ]
