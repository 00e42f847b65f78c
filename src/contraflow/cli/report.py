"""``contraflow report``: one self-contained HTML page about a run, or about several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from contraflow._files import written_beside
from contraflow.cli._contents import gather
from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import Run, open_run
from contraflow.errors import ConfigurationError
from contraflow.report import render_comparison, render_report


def run(words: Sequence[str]) -> int:
    """Write the report and print its path; returns 1 if a part of it failed."""
    options = parser().parse_args(list(words))
    if options.out and Path(options.out).suffix not in (".html", ".htm"):
        raise ConfigurationError(f"--out {options.out}: expected a name ending in .html.")
    runs = [open_run(each) for each in options.run]
    several = len(runs) > 1
    out = Path(options.out) if options.out else _default_path(runs)
    with written_beside(out) as partial:  # first: gathering takes minutes
        gathered = [gather(each, options.data_root, brief=several) for each in runs]
        contents = [each for each, _ in gathered]
        page = render_comparison(contents) if several else render_report(contents[0])
        partial.write_text(page, encoding="utf-8")
    print(out)
    return 1 if any(failed for _, failed in gathered) else 0


def parser() -> Parser:
    """Return the options of ``contraflow report``."""
    parser = command_parser(
        "report",
        "Write one self-contained HTML page and print its path: likelihood, samples, calibration, "
        "reconstructions, curves and certificate of a run, or several runs side by side.",
        arguments="RUN [RUN ...]",
        examples=[
            "runs/digits",
            "runs/digits --out digits.html",
            "runs/narrow runs/wide --out comparison.html",
        ],
    )
    parser.add_argument(
        "run", metavar="RUN", type=str, nargs="+", help="the run's folder, or several"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=str | None,
        help="file to write; RUN/report.html if not given, comparison.html for several",
    )
    parser.add_argument("--data-root", metavar="DIR", type=str | None, help="folder of data sets")
    return parser


def _default_path(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder / "report.html"
    common = Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    here = Path.cwd()
    common = common.relative_to(here) if common.is_relative_to(here) else common
    return common / "comparison.html"
