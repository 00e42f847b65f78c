"""What a run's folder, its flow and its data give a report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from contraflow.cli._run import Run, inputs, spread
from contraflow.cli.evaluate import evaluate
from contraflow.data import Part
from contraflow.errors import ConfigurationError, ContraflowError, DataError
from contraflow.evaluation import calibrate, reconstruct
from contraflow.flow import Flow
from contraflow.report import (
    Draw,
    Picked,
    ReportContents,
    draw_samples,
    evaluate_density,
    pick_least_likely,
    pick_slowest,
    read_metrics,
    trace_stages,
)

_POINTS, _IMAGES = 2000, 64  # rows that are drawn
_LARGE = 256  # entries of an event from which fewer rows are examined
_EXAMINED, _EXAMINED_LARGE = 10_000, 1000

T = TypeVar("T")


class Reasons:
    """Why parts are absent; a part that fails does not take the others with it.

    Attributes:
        missing: heading of a section to what went wrong there.
        failed: whether something went wrong beyond data that are not there.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.missing: dict[str, str] = {}
        self.failed = False

    def attempt(self, section: str, make: Callable[[], T]) -> T | None:
        """Return what ``make`` returns, or None and keep the reason."""
        try:
            return make()
        except ContraflowError as error:
            self.explain(section, str(error))
            self.failed |= not isinstance(error, (DataError, ConfigurationError))
            print(f"contraflow: {self.run.folder}: {section}: {error}", file=sys.stderr)
            return None

    def explain(self, section: str, reason: str) -> None:
        """Keep the first reason of a section."""
        self.missing.setdefault(section, reason)


def gather(
    run: Run, data_root: str | None = None, *, brief: bool = False
) -> tuple[ReportContents, bool]:
    """Gather what a report shows; evaluates the test set if that was not done yet.

    Args:
        run: a finished run.
        data_root: folder of data sets.
        brief: only what a comparison needs.

    Returns:
        The contents, and whether a part of them failed. Missing data are no failure: the
        sections that need them say how to get them.
    """
    (flow, certificate), reasons = run.flow(), Reasons(run)
    plane = flow.event_shape == (2,)
    part = reasons.attempt("Data", lambda: run.splits(data_root).test)
    if part is None:
        sections = ["Calibration", "Reconstruction", "Slowest and least likely"]
        sections += ["Flow of points"] if plane else []
        sections += ["Samples"] if flow.context else []  # drawn at held-out contexts
        for section in sections:
            reasons.explain(section, reasons.missing["Data"])
    generator = torch.Generator().manual_seed(0)
    images = len(flow.event_shape) == 3
    shown = None if part is None else spread(part, _IMAGES if images else _POINTS)
    x, context = (None, None) if shown is None else inputs(shown, flow)
    draw = None
    if context is not None or not flow.context:
        draw = reasons.attempt("Samples", lambda: _draw(flow, x, context, generator))
    start, back = x, None
    if x is not None and not brief:
        pair = reasons.attempt("Reconstruction", lambda: reconstruct(flow, x, context))
        start, back = (x, None) if pair is None else pair
    metadata = run.metadata()
    settings = _settings(run)
    around = x if x is not None else None if draw is None else draw.x
    contents = ReportContents(
        title=run.folder.resolve().name,
        command=str(metadata.get("command", "")),
        configuration=_text(run.config),
        environment={key: str(value) for key, value in metadata.get("environment", {}).items()},
        metrics=reasons.attempt("Training", lambda: _metrics(run)) or (),
        evaluation=_evaluation(run, part, data_root, reasons),
        certificate=certificate.to_json(),
        data=None if start is None else start.numpy(),
        samples=None if draw is None else draw.x.numpy(),
        reconstructions=None if back is None else back.numpy(),
        columns=metadata.get("columns"),
        context_columns=metadata.get("context_columns"),
        conditional=flow.context > 0,
        density=evaluate_density(flow, around)
        if plane and not flow.context and around is not None
        else None,
        stages=reasons.attempt("Flow of points", lambda: trace_stages(flow, x, context))
        if plane and x is not None and not brief
        else None,
        calibration=None
        if part is None or brief
        else reasons.attempt("Calibration", lambda: _calibration(flow, part, generator)),
        picked=() if brief else _picked(flow, part, draw, reasons, certificate.certified),
        flow=type(flow).__name__,
        data_set=_data_set(settings.get("data")),
        data_options=json.dumps(_data_options(settings.get("data")), sort_keys=True),
        parameters=sum(p.numel() for p in flow.parameters()),
        steps=metadata.get("steps"),
        train_seconds=metadata.get("train_seconds"),
        missing=reasons.missing,
    )
    return contents, reasons.failed


def _metrics(run: Run) -> Sequence[Mapping[str, float]]:
    try:
        return read_metrics(run.metrics) if run.metrics.is_file() else ()
    except ValueError as error:
        raise DataError(f"{run.metrics}: damaged: {error}") from error


def _settings(run: Run) -> Mapping[str, Any]:
    try:
        return run.settings()
    except ConfigurationError:  # which the data's section has told
        return {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _draw(
    flow: Flow, x: torch.Tensor | None, context: torch.Tensor | None, generator: torch.Generator
) -> Draw:
    count = len(x) if x is not None else _IMAGES if len(flow.event_shape) == 3 else _POINTS
    return draw_samples(flow, count, context, generator=generator)


def _evaluation(
    run: Run, part: Part | None, data_root: str | None, reasons: Reasons
) -> dict[str, Any] | None:
    """Return the saved evaluation of this very model, else a new one."""
    try:
        saved = json.loads(run.evaluation.read_text())
    except (OSError, ValueError):  # absent, or damaged
        saved = None
    if isinstance(saved, dict) and saved.get("model") == run.digest():
        return saved
    if part is None:
        reasons.explain("Likelihood", reasons.missing["Data"])
        return None
    return reasons.attempt("Likelihood", lambda: evaluate(run, data_root=data_root))


def _examined(flow: Flow, part: Part) -> Part:
    return spread(part, _EXAMINED if flow.size < _LARGE else _EXAMINED_LARGE)


def _calibration(flow: Flow, part: Part, generator: torch.Generator) -> Any:
    x, context = inputs(_examined(flow, part), flow)
    return calibrate(flow, x, context, generator=generator)


def _picked(
    flow: Flow, part: Part | None, draw: Draw | None, reasons: Reasons, certified: bool
) -> tuple[Picked, ...]:
    section, generator = "Slowest and least likely", torch.Generator().manual_seed(1)
    found: list[Picked | None] = []
    if draw is not None:
        found.append(pick_slowest(draw, proved=certified))
        found.append(
            reasons.attempt(
                section,
                lambda: pick_least_likely(
                    flow, draw.x, draw.context, title="Least likely samples", what="samples",
                    facts=draw.facts(proved=certified), generator=generator,
                ),
            )
        )  # fmt: skip
    if part is not None:
        few = min(len(part), 2000 if flow.size < _LARGE else 256)
        x, context = inputs(spread(part, few), flow)
        rows = torch.linspace(0, len(part) - 1, few).round().long()
        found.append(
            reasons.attempt(
                section,
                lambda: pick_least_likely(
                    flow, x, context, title="Least likely test data", what="test rows",
                    facts={"row": rows}, generator=generator,
                ),
            )
        )  # fmt: skip
    return tuple(picked for picked in found if picked is not None)


def _data_options(data: Any) -> dict[str, Any]:
    """Return what decides the rows: where they lie does not."""
    if not isinstance(data, Mapping):
        return {"data": data}
    arguments = {k: v for k, v in (data.get("init_args") or {}).items() if k != "root"}
    return {"class_path": data.get("class_path"), **arguments}


def _data_set(data: Any) -> str:
    """Return a short name of the data."""
    options = _data_options(data)
    kind = str(options.get("class_path") or "").rpartition(".")[2]
    which = options.get("name") or Path(str(options.get("path") or "")).name
    return f"{kind} {which}".strip()
