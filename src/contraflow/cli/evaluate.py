"""``contraflow evaluate``: the likelihood of held-out data and the round trip."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import Run, inputs, keep_json, open_run, spread
from contraflow.data import Part
from contraflow.errors import ConfigurationError
from contraflow.evaluation import evaluate_likelihood, round_trip_error

_SPLITS = ("train", "validation", "test")
_ROUND_TRIP_ROWS = 2000


def run(words: Sequence[str]) -> int:
    """Evaluate a run and print value, kind and errors; keeps them in evaluation.json."""
    options = parser().parse_args(list(words))
    folder = open_run(options.run)
    result = evaluate(
        folder,
        split=options.split,
        stderr=options.stderr,
        max_draws=options.max_draws,
        limit=options.limit,
        data_root=options.data_root,
        seed=options.seed,
    )
    print(json.dumps(result, indent=2) if options.json else describe(result), flush=True)
    keep_json(folder.evaluation, result)
    return 0


def parser() -> Parser:
    """Return the options of ``contraflow evaluate``."""
    parser = command_parser(
        "evaluate",
        "Print the likelihood of held-out data with its kind and errors, and the error of the "
        "round trip; keep both in evaluation.json.",
        examples=[
            "runs/digits",
            "runs/digits --split validation --limit 100",
            "runs/digits --json | jq .value",
        ],
    )
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument(
        "--split", metavar="PART", type=str, default="test", help=", ".join(_SPLITS)
    )
    parser.add_argument(
        "--stderr", type=float, default=2e-3, help="wanted Monte-Carlo error of the mean"
    )
    parser.add_argument("--max-draws", type=int, default=256, help="most evaluations of a row")
    parser.add_argument("--limit", type=int | None, help="only N rows, evenly spaced")
    parser.add_argument("--data-root", metavar="DIR", type=str | None, help="folder of data sets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def evaluate(
    folder: Run,
    *,
    split: str = "test",
    stderr: float = 2e-3,
    max_draws: int = 256,
    limit: int | None = None,
    data_root: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the object of ``contraflow evaluate --json``."""
    if split not in _SPLITS:
        raise ConfigurationError(f"split {split!r}; expected one of {', '.join(_SPLITS)}.")
    if not stderr > 0 or max_draws < 4:
        raise ConfigurationError(
            f"got --stderr {stderr} and --max-draws {max_draws}; expected an error above 0 and 4 "
            "draws or more."
        )
    if limit is not None and limit < 1:
        raise ConfigurationError(f"--limit {limit}; expected 1 row or more.")
    flow, certificate = folder.flow()
    part: Part = getattr(folder.splits(data_root), split)
    part = spread(part, limit)
    x, context = inputs(part, flow)
    generator = torch.Generator().manual_seed(seed)
    evaluation = evaluate_likelihood(
        flow,
        x,
        context,
        stderr=stderr,
        max_draws=max_draws,
        generator=generator,
        weights=part.weights,
    )
    x, context = inputs(spread(part, _ROUND_TRIP_ROWS), flow)
    return {
        "split": split,
        **evaluation.to_json(),
        "round_trip_error": round_trip_error(flow, x, context, generator=generator),
        "round_trip_error_float64": round_trip_error(
            flow, x, context, dtype=torch.float64, generator=generator
        ),
        "round_trip_rows": len(x),
        "certified": certificate.certified,
        "warning": certificate.warning,
        "model": folder.digest(),
    }


def describe(result: dict[str, Any]) -> str:
    """Return the evaluation in words."""
    unit = "bits/dim" if result["unit"] == "bits_per_dim" else "nats"
    bias = f", |bias| <= {result['bias_bound']:.1e}" if result["bias_bound"] else ""
    warning = f"\n{result['warning']}" if result["warning"] else ""
    return (
        f"{result['split']}: {result['value']:.4f} {unit}, {result['kind']} "
        f"(standard error {result['stderr']:.1e} Monte Carlo over {result['draws']} draws, "
        f"{result['stderr_data'] or math.nan:.1e} from {result['n']} rows{bias})\n"
        f"round trip over {result['round_trip_rows']} rows: largest error "
        f"{result['round_trip_error']:.1e} as saved, "
        f"{result['round_trip_error_float64']:.1e} in float64, data units{warning}"
    )
