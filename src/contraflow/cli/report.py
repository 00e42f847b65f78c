"""``contraflow report``: one self-contained HTML page about a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import Run, as_input, open_run
from contraflow.cli.evaluate import evaluate
from contraflow.data import Part
from contraflow.evaluation import certify, reconstruct
from contraflow.flow import Flow
from contraflow.report import Density, ReportContents, read_metrics, render_report

_GRID = 160


def run(words: Sequence[str]) -> int:
    """Write the report and print its path."""
    options = parser().parse_args(list(words))
    folder = open_run(options.run)
    out = Path(options.out) if options.out else folder.folder / "report.html"
    out.write_text(render_report(contents(folder, options.data_root)))
    print(out)
    return 0


def parser() -> Parser:
    """Return the options of ``contraflow report``."""
    parser = command_parser(
        "report",
        "Write one self-contained HTML page about a run and print its path: curves, "
        "likelihood, certificate, samples, reconstructions.",
        examples=["runs/digits", "runs/digits --out digits.html"],
    )
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument(
        "--out", metavar="FILE", type=str | None, help="file to write; RUN/report.html if not given"
    )
    parser.add_argument("--data-root", metavar="DIR", type=str | None, help="folder of data sets")
    return parser


def contents(folder: Run, data_root: str | None = None) -> ReportContents:
    """Gather what the report shows; evaluates the test set if that was not done yet."""
    flow = folder.flow()
    part = folder.splits(data_root).test
    evaluation = None
    if folder.evaluation.is_file():
        evaluation = json.loads(folder.evaluation.read_text())
    if evaluation is None or evaluation.get("model") != folder.digest():
        evaluation = evaluate(folder, data_root=data_root)  # of this very model
    metadata = folder.metadata()
    columns = metadata.get("columns")
    generator = torch.Generator().manual_seed(0)
    shown = _rows(part, 64 if len(flow.event_shape) == 3 else 2000)
    x = as_input(shown.x, flow)
    context = None if shown.context is None else as_input(shown.context, flow)
    samples = flow.sample(() if context is not None else (len(x),), context, generator=generator)
    start, back = reconstruct(flow, x, context, generator=generator)
    images = len(flow.event_shape) == 3
    return ReportContents(
        title=folder.folder.name,
        command=str(metadata.get("command", "")),
        configuration=folder.config.read_text(),
        environment={key: str(value) for key, value in _facts(metadata).items()},
        metrics=read_metrics(folder.metrics) if folder.metrics.is_file() else (),
        evaluation=evaluation,
        certificate=certify(flow).to_json(),
        data=start.numpy(),
        samples=samples.numpy(),
        reconstructions=back.numpy(),
        columns=columns,
        density=_density(flow, x) if not images and flow.size == 2 and context is None else None,
    )


def _facts(metadata: dict[str, Any]) -> dict[str, Any]:
    facts = dict(metadata.get("environment", {}))
    for key, name in (
        ("steps", "training steps"),
        ("epochs", "epochs"),
        ("train_seconds", "training seconds"),
    ):
        if key in metadata:
            facts[name] = metadata[key]
    return facts


def _rows(part: Part, count: int) -> Part:
    rows = torch.linspace(0, len(part) - 1, min(count, len(part))).round().long()
    return Part(part.x[rows], None if part.context is None else part.context[rows])


@torch.no_grad()
def _density(flow: Flow, x: torch.Tensor) -> Density:
    """Evaluate a plane flow on a grid around the data."""
    low, high = x.quantile(0.001, 0), x.quantile(0.999, 0)
    margin = 0.15 * (high - low)
    axes = [
        torch.linspace(float(a), float(b), _GRID, dtype=x.dtype)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    ys, xs = torch.meshgrid(axes[1], axes[0], indexing="ij")
    values = flow.log_prob(torch.stack([xs, ys], -1)).numpy()
    return axes[0].numpy(), axes[1].numpy(), np.asarray(values)
