"""The report of one run as a single HTML file that needs nothing but itself."""

import html
from collections.abc import Mapping, Sequence

from contraflow.report import plots
from contraflow.report._page import frame, missing, picture, tile, unit_of
from contraflow.report._rows import (
    calibration_section,
    picked_section,
    reconstruction_section,
    samples_section,
    stages_section,
)
from contraflow.report._text import bound, finite, number, rounded_to, text
from contraflow.report._verdict import (
    Verdict,
    blocks_of,
    bounded_blocks,
    caution,
    fails,
    judge,
    rests_on_bound,
)
from contraflow.report.contents import ReportContents

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
    unproved = caution(verdict)
    warned = f'<p class="verdict bad">{html.escape(unproved)}</p>\n' if unproved else ""
    sections = [
        (
            "Likelihood",
            _likelihood(contents.evaluation, contents.missing.get("Likelihood"), warned),
        ),
        ("Samples", samples_section(contents)),
        ("Flow of points", stages_section(contents)),
        ("Calibration", calibration_section(contents)),
        ("Slowest and least likely", picked_section(contents)),
        ("Reconstruction", reconstruction_section(contents, warned)),
        ("Training", _training(contents.metrics)),
        ("Certificate", _certificate(contents.certificate, verdict)),
        ("Configuration", _configuration(contents.configuration)),
        ("Environment and command", _environment(contents)),
    ]
    return frame(contents.title, f"{about(contents)}{_headline(contents, verdict)}", sections)


# The headline


def about(contents: ReportContents) -> str:
    """Return one line on what was trained, on what, for how long."""
    steps, seconds = contents.steps, contents.train_seconds
    facts = [
        contents.flow,
        "" if contents.parameters is None else f"{number(contents.parameters)} parameters",
        contents.data_set,
        "" if steps is None else f"{number(steps)} steps",
        "" if seconds is None else f"{number(round(seconds))} s of training",
    ]
    told = " · ".join(html.escape(fact) for fact in facts if fact)
    return f'<p class="about">{told}</p>\n' if told else ""


def _headline(contents: ReportContents, verdict: Verdict) -> str:
    evaluation, certificate = contents.evaluation, contents.certificate
    tiles = [
        *_likelihood_tile(evaluation, verdict),
        tile("Certificate", verdict.headline, verdict.summary, verdict.mood),
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
        note = "largest |error|, data units"
        if verdict.mood == "bad":
            note, mood = f"{note}\nof these rows only: nothing is proved", mood or "bad"
        tiles.append(tile(label, figure, note, mood))
    return f'<dl class="headline">\n{"".join(tiles)}</dl>'


def _likelihood_tile(evaluation: Mapping[str, object] | None, verdict: Verdict) -> list[str]:
    if evaluation is None:
        return [tile("Likelihood", "not evaluated", "run contraflow evaluate RUN", "absent")]
    value, stderr, spread = (evaluation.get(key) for key in ("value", "stderr", "stderr_data"))
    bias = finite(evaluation.get("bias_bound"))
    shown = rounded_to(value, stderr, spread, bias)
    figure = f"{html.escape(shown)} <small>{html.escape(unit_of(evaluation))}</small>"
    errors = [
        f"±\u00a0{number(error, 2)} {source}"
        for error, source in ((stderr, "estimator"), (spread, "data"))
        if error is not None and error != 0
    ]
    if bias:
        errors.append(f"bias ≤\u00a0{bound(bias, 2)}")
    if unproved := verdict.mood == "bad":
        errors.append("not proved to be a density")
    note = "\n".join([text(evaluation, "kind", "kind not given").replace("_", " "), *errors])
    split = text(evaluation, "split", "test").capitalize()
    mood = "bad" if unproved or finite(value) is None else ""
    return [tile(f"{split} value", figure, note, mood)]


# The sections


def _likelihood(
    evaluation: Mapping[str, object] | None, reason: str | None, warned: str = ""
) -> str:
    if evaluation is None:
        return missing("The likelihood was not evaluated.", "contraflow evaluate RUN", reason)
    unit = unit_of(evaluation)
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
    explained = f'<table class="explained"><tbody>\n{body}</tbody></table>'
    return f'{warned}<div class="scroll">{explained}</div>'


def _training(metrics: Sequence[Mapping[str, float]]) -> str:
    if not any(len(plots.loss_curve(metrics, split)) for split in ("train", "val")):
        return missing("The log holds no losses.", "contraflow train PRESET")
    return picture(
        lambda theme, width: plots.training_curves(metrics, width=width, theme=theme),
        "Training and validation loss against the step",
        "The axis fits the losses after the first tenth of the steps.",
    )


def _certificate(certificate: Mapping[str, object] | None, verdict: Verdict) -> str:
    if certificate is None:
        return missing("The flow was not certified.", "contraflow certify RUN")
    parts = [f'<p class="verdict {verdict.mood}">{html.escape(verdict.sentence)}</p>']
    bounded = bounded_blocks(certificate)
    if bounded:
        parts.append(
            picture(
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
            (
                "Error of x",
                "residual_error",
                "worst l2 error of the inverse, data units, at the solvers' tolerances",
            ),
            (
                "Rounding of x",
                "rounding_gain",
                "worst l2 error for a unit in the last place in every block, values of norm 1",
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
            f'<td class="number">{html.escape(_bound(block.get("residual_gain")))}</td>'
            f"<td>{html.escape(text(block, 'method'))}</td></tr>\n"
        )
    table = (
        '<div class="scroll"><table><thead><tr><th scope="col">Block</th>'
        '<th scope="col" class="number">Bound</th>'
        '<th scope="col" class="number">Error of x per residual</th>'
        '<th scope="col">Method</th></tr></thead>'
        f"<tbody>\n{''.join(rows)}</tbody></table></div>"
    )
    if len(rows) <= 16:
        return table
    opened = " open" if any(map(fails, blocks)) else ""
    return f"<details{opened}><summary>All {len(rows)} blocks</summary>{table}</details>"


def _configuration(configuration: str) -> str:
    if not configuration.strip():
        return missing("The run has no configuration.", "contraflow train PRESET")
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
        parts.append(missing("The command was not recorded.", "contraflow train PRESET"))
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
        parts.append(missing("The environment was not recorded.", "contraflow train PRESET"))
    return "\n".join(parts)


def _bound(entry: object) -> str:
    return "no finite bound" if entry is None else bound(entry)
