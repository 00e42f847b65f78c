"""The report of one run as a single HTML file that needs nothing but itself."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from contraflow.report import plots
from contraflow.report._canvas import NARROW, WIDTH, data_uri
from contraflow.report._stylesheet import STYLESHEET
from contraflow.report._text import bound, finite, number, rounded_to, text
from contraflow.report._theme import DARK, LIGHT, Theme
from contraflow.report._verdict import (
    Verdict,
    blocks_of,
    bounded_blocks,
    fails,
    judge,
    rests_on_bound,
)
from contraflow.report.contents import ReportContents

_DARK = "screen and (prefers-color-scheme: dark)"
_SMALL = "(max-width: 34rem)"

# No address but data: may load, so a hostile name cannot fetch anything either.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_UNITS = {"bits_per_dim": "bits/dim", "nats": "nats"}

_KINDS = {
    "exact": "The log-determinant is computed without approximation; only rounding remains.",
    "unbiased": (
        "A Monte-Carlo estimate whose expectation is the true value; "
        "the estimator's standard error says how far this draw may lie from it."
    ),
    "truncated": (
        "A series cut off after finitely many terms; the true value lies within the bias bound."
    ),
    "numerical": (
        "An ODE was integrated to a tolerance; the solver controls its error, no bound is proved."
    ),
    "lower_bound": (
        "A lower bound: the true log-likelihood is at least as high, so the true bits per "
        "dimension are at most as many."
    ),
}


def render_report(contents: ReportContents) -> str:
    """Return the report as one HTML document without scripts or outside addresses.

    A part that was not computed keeps its heading and names the command that
    computes it; text from the contents is escaped.

    Args:
        contents: what there is to show.

    Returns:
        The document, to be written as UTF-8.

    Example:
        >>> page = render_report(ReportContents(title="moons <2>"))
        >>> "<h1>moons &lt;2&gt;</h1>" in page, "contraflow certify RUN" in page
        (True, True)
    """
    verdict = judge(contents.certificate)
    sections = [
        ("Likelihood", _likelihood(contents.evaluation)),
        ("Samples", _samples(contents)),
        ("Reconstruction", _reconstruction(contents)),
        ("Training", _training(contents.metrics)),
        ("Certificate", _certificate(contents.certificate, verdict)),
        ("Configuration", _configuration(contents.configuration)),
        ("Environment and command", _environment(contents)),
    ]
    body = "\n".join(
        f'<section id="{heading.split()[0].lower()}">\n<h2>{heading}</h2>\n{part}\n</section>'
        for heading, part in sections
    )
    title = html.escape(contents.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title} · contraflow report</title>
<style>{STYLESHEET}</style>
</head>
<body>
<main>
<p class="eyebrow">contraflow report</p>
<h1>{title}</h1>
{_headline(contents, verdict)}
{body}
<footer>Figures and numbers are part of this file; it loads nothing else.</footer>
</main>
</body>
</html>
"""


# The headline


def _headline(contents: ReportContents, verdict: Verdict) -> str:
    evaluation, certificate = contents.evaluation, contents.certificate
    tiles = [
        *_likelihood_tile(evaluation),
        _tile("Certificate", verdict.headline, verdict.summary, verdict.mood),
    ]
    measured = evaluation or {}
    dtype = text(certificate or {}, "dtype", "as saved")
    for key, label in (
        ("round_trip_error", f"Round trip, {dtype}"),
        ("round_trip_error_float64", "Round trip, float64"),
    ):
        error = measured.get(key)
        figure = "not measured" if error is None else html.escape(number(error, 2))
        mood = "absent" if error is None else "" if finite(error) is not None else "bad"
        tiles.append(_tile(label, figure, "largest |error|, data units", mood))
    return f'<dl class="headline">\n{"".join(tiles)}</dl>'


def _likelihood_tile(evaluation: Mapping[str, object] | None) -> list[str]:
    if evaluation is None:
        return [_tile("Likelihood", "not evaluated", "run contraflow evaluate RUN", "absent")]
    value, stderr, spread = (evaluation.get(key) for key in ("value", "stderr", "stderr_data"))
    bias = finite(evaluation.get("bias_bound"))
    shown = rounded_to(value, stderr, spread, bias)
    figure = f"{html.escape(shown)} <small>{html.escape(_unit(evaluation))}</small>"
    errors = [
        f"±\u00a0{number(error, 2)} {source}"
        for error, source in ((stderr, "estimator"), (spread, "data"))
        if error is not None and error != 0
    ]
    if bias:
        errors.append(f"bias ≤\u00a0{bound(bias, 2)}")
    note = "\n".join([text(evaluation, "kind", "kind not given").replace("_", " "), *errors])
    split = text(evaluation, "split", "test").capitalize()
    return [_tile(f"{split} value", figure, note, "" if finite(value) is not None else "bad")]


def _tile(label: str, figure: str, note: str, mood: str = "") -> str:
    """Return one tile; ``figure`` is markup, the other texts are escaped here."""
    note = html.escape(note).replace("\n", "<br>")
    return (
        f'<div class="{mood}"><dt>{html.escape(label)}</dt>'
        f'<dd class="figure">{figure}</dd><dd class="note">{note}</dd></div>\n'
    )


# The sections


def _likelihood(evaluation: Mapping[str, object] | None) -> str:
    if evaluation is None:
        return _missing("The likelihood was not evaluated.", "contraflow evaluate RUN")
    unit = _unit(evaluation)
    kind = text(evaluation, "kind", "not given")
    explanation = _KINDS.get(kind, "The kind is unknown, and so is what this value promises.")
    direction = "; lower is better" if unit == "bits/dim" else ""
    rows = [
        ("Value", number(evaluation.get("value"), 6), f"{unit}{direction}"),
        ("Kind", kind.replace("_", " "), explanation),
        (
            "Estimator's standard error",
            number(evaluation.get("stderr"), 2),
            f"{unit}; Monte-Carlo error of the mean over this fixed set",
        ),
        (
            "Data standard error",
            number(evaluation.get("stderr_data"), 2),
            f"{unit}; what another set of this size would change",
        ),
        ("Bias bound", bound(evaluation.get("bias_bound"), 2), f"{unit}; largest bias possible"),
        ("Examples", number(evaluation.get("n")), f"{text(evaluation, 'split', 'unnamed')} split"),
    ]
    protocol = evaluation.get("value_protocol")
    if protocol is not None:
        rows.insert(1, ("Value in the paper's units", number(protocol, 6), "its own protocol"))
    draws = evaluation.get("draws")
    if draws is not None:
        rows.append(("Draws", number(draws), "evaluations of each example, noise of their own"))
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f'<td class="number">{html.escape(value)}</td>'
        f'<td class="remark">{html.escape(remark)}</td></tr>\n'
        for name, value, remark in rows
    )
    return f'<div class="scroll"><table class="explained"><tbody>\n{body}</tbody></table></div>'


def _samples(contents: ReportContents) -> str:
    data, samples = contents.data, contents.samples
    if samples is None or not len(samples):
        return _missing("No samples were drawn.", "contraflow sample RUN")
    if samples.ndim in (3, 4):
        value_range = plots.image_value_range(samples if data is None else data)
        figures = [_tiles(samples, "Samples of the flow.", value_range)]
        if data is not None and len(data):
            figures.append(_tiles(data, "Held-out data, for comparison.", value_range))
        return f'<div class="pair">{"".join(figures)}</div>'
    try:
        kind = "points" if samples.ndim == 2 and samples.shape[1] == 2 else "table"
        return _figure(
            lambda theme, width: plots.samples_figure(
                data, samples, contents.density, columns=contents.columns, width=width, theme=theme
            ),
            f"{kind.capitalize()} of the data and samples of the flow",
            _samples_caption(contents),
        )
    except ValueError as error:
        return f'<p class="missing">These samples have no drawing: {html.escape(str(error))}</p>'


def _samples_caption(contents: ReportContents) -> str:
    samples = contents.samples
    assert samples is not None  # the caller has checked
    count = number(len(samples))
    if contents.density is not None:
        return (
            f"Data, {count} samples and the log-density of the flow on the same axes; "
            "the colours end 10 nats below the highest value."
        )
    if samples.ndim == 2 and 2 < samples.shape[1] <= 6:
        return (
            f"Pairs of columns: data below the diagonal, {count} samples above it, marginals on "
            "it. A faithful flow mirrors one half in the other. Axes hold 99.6% of the data."
        )
    return f"Data against {count} samples. Axes hold 99.6% of the data."


def _tiles(images: np.ndarray, caption: str, value_range: tuple[float, float]) -> str:
    low, high = value_range
    lost = int((~np.isfinite(images)).sum())
    warning = f" {number(lost)} values are not finite (orange)." if lost else ""
    return _figure(
        lambda theme, width: plots.image_grid(
            images, value_range=value_range, width=width, theme=theme
        ),
        caption,
        f"{caption} Black is {number(low, 3)}, white is {number(high, 3)}.{warning}",
        themed=lost > 0,
        width=3.5,
    )


def _reconstruction(contents: ReportContents) -> str:
    data, reconstructions = contents.data, contents.reconstructions
    if data is None or reconstructions is None or not len(reconstructions):
        return _missing("No reconstruction was computed.", "contraflow report RUN")
    error = np.abs(reconstructions.astype(float) - data[: len(reconstructions)])
    largest = float(error.max()) if np.isfinite(error).all() else math.nan
    caption = (
        f"Data through the flow and back: largest absolute error {number(largest, 2)} "
        f"in the data's units, over {number(len(reconstructions))} examples."
    )
    if largest == 0:
        return f"<p>{html.escape(caption)}</p>"
    if data.ndim in (3, 4):
        return _figure(
            lambda theme, width: plots.reconstruction_strip(
                data, reconstructions, limit=round(1.7 * width), width=width, theme=theme
            ),
            "Data, reconstructions and absolute errors",
            caption,
        )
    return _figure(
        lambda theme, width: plots.reconstruction_errors(
            data, reconstructions, width=width, theme=theme
        ),
        "Histogram of reconstruction errors",
        caption,
    )


def _training(metrics: Sequence[Mapping[str, float]]) -> str:
    if not any(len(plots.loss_curve(metrics, split)) for split in ("train", "val")):
        return _missing("The log holds no losses.", "contraflow train PRESET")
    return _figure(
        lambda theme, width: plots.training_curves(metrics, width=width, theme=theme),
        "Training and validation loss against the step",
        "The axis fits the losses after the first tenth of the steps.",
    )


def _certificate(certificate: Mapping[str, object] | None, verdict: Verdict) -> str:
    if certificate is None:
        return _missing("The flow was not certified.", "contraflow certify RUN")
    parts = [f'<p class="verdict {verdict.mood}">{html.escape(verdict.sentence)}</p>']
    bounded = bounded_blocks(certificate)
    if bounded:
        parts.append(
            _figure(
                lambda theme, width: plots.lipschitz_bars(bounded, width=width, theme=theme),
                "Lipschitz bound of every contractive block against 1",
                "Upper bound of the Lipschitz constant of each residual branch g (l2 norm); "
                "the dashed line is 1.",
            )
        )
    lipschitz = "".join(
        f'<tr><th scope="row">{name}</th>'
        f'<td class="number">{html.escape(_bound(certificate.get(key)))}</td>'
        f'<td class="remark">{remark}</td></tr>\n'
        for name, key, remark in (
            ("Lip(f)", "lipschitz_forward", "largest growth of a change, data to latent"),
            (
                "Lip(f⁻¹)",
                "lipschitz_inverse",
                "largest growth of an error, latent to data",
            ),
        )
    )
    parts.append(
        f'<div class="scroll"><table class="explained"><tbody>\n{lipschitz}</tbody></table></div>'
    )
    parts.append(_block_table(certificate))
    return "\n".join(parts)


def _block_table(certificate: Mapping[str, object]) -> str:
    blocks = blocks_of(certificate)
    if not blocks:
        return "<p>The certificate lists no blocks.</p>"
    rows: list[str] = []
    for block in blocks:
        limit = block.get("lipschitz")
        shown = _bound(limit) if rests_on_bound(block) or limit is not None else "not needed"
        rows.append(
            f'<tr class="{"bad" if fails(block) else ""}">'
            f'<th scope="row" class="name">{html.escape(text(block, "name", "unnamed"))}</th>'
            f'<td class="number">{html.escape(shown)}</td>'
            f"<td>{html.escape(text(block, 'method'))}</td></tr>\n"
        )
    table = (
        '<div class="scroll"><table><thead><tr><th scope="col">Block</th>'
        '<th scope="col" class="number">Bound</th><th scope="col">Method</th></tr></thead>'
        f"<tbody>\n{''.join(rows)}</tbody></table></div>"
    )
    if len(rows) <= 16:
        return table
    opened = " open" if any(map(fails, blocks)) else ""
    return f"<details{opened}><summary>All {len(rows)} blocks</summary>{table}</details>"


def _configuration(configuration: str) -> str:
    if not configuration.strip():
        return _missing("The run has no configuration.", "contraflow train PRESET")
    lines = configuration.strip("\n")
    count = lines.count("\n") + 1
    return (
        f"<details><summary>config.yaml, {count} lines</summary>"
        f"<pre>{html.escape(lines)}</pre></details>"
    )


def _environment(contents: ReportContents) -> str:
    parts: list[str] = []
    if contents.command:
        parts.append(f"<pre>{html.escape(contents.command)}</pre>")
    else:
        parts.append(_missing("The command was not recorded.", "contraflow train PRESET"))
    if contents.environment:
        rows = "".join(
            f'<tr><th scope="row">{html.escape(str(name))}</th>'
            f'<td class="name">{html.escape(str(value))}</td></tr>\n'
            for name, value in contents.environment.items()
        )
        parts.append(
            f'<div class="scroll"><table class="keys"><tbody>\n{rows}</tbody></table></div>'
        )
    else:
        parts.append(_missing("The environment was not recorded.", "contraflow train PRESET"))
    return "\n".join(parts)


# Small parts


def _missing(what: str, command: str) -> str:
    commands = dict.fromkeys((command, "contraflow report RUN"))
    steps = ", then ".join(f"<code>{html.escape(each)}</code>" for each in commands)
    return f'<p class="missing">{html.escape(what)} To add this part: {steps}.</p>'


def _unit(evaluation: Mapping[str, object]) -> str:
    unit = text(evaluation, "unit", "unit not given")
    return _UNITS.get(unit, unit)


def _bound(entry: object) -> str:
    return "no finite bound" if entry is None else bound(entry)


def _figure(
    draw: Callable[[Theme, float], Figure],
    description: str,
    caption: str,
    *,
    width: float = WIDTH,
    themed: bool = True,
) -> str:
    """Return a figure drawn anew for dark screens and for narrow ones.

    Args:
        draw: the drawing, in the colours of a theme and at a width in inches.
        description: text for readers who do not see the image.
        caption: text below the figure.
        width: width in inches; a figure as wide as a telephone is not drawn anew for it.
        themed: the drawing depends on the theme.
    """
    light = draw(LIGHT, width)
    pixels = [round(inches * 96) for inches in light.get_size_inches()]
    drawings: list[tuple[str, Theme, float]] = []
    if width > NARROW:
        if themed:
            drawings.append((f"{_DARK} and {_SMALL}", DARK, NARROW))
        drawings.append((f"screen and {_SMALL}", LIGHT, NARROW))
    if themed:
        drawings.append((_DARK, DARK, width))
    sources = "".join(
        f'<source media="{media}" srcset="{data_uri(draw(theme, inches))}">'
        for media, theme, inches in drawings
    )
    return (
        f'<figure><picture>{sources}<img alt="{html.escape(description)}" width="{pixels[0]}" '
        f'height="{pixels[1]}" src="{data_uri(light)}"></picture>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )
