"""``contraflow score``: the log-density of every row of a file, whatever its size."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import flow_dtype, open_run
from contraflow.cli._tables import Progress, keep_inputs, rows_of_events, table_writer
from contraflow.domain import Domain, ProductDomain
from contraflow.errors import ConfigurationError, DataError, SupportError
from contraflow.evaluation import estimate_log_prob
from contraflow.flow import Flow

_NUMBERS = 2**20  # of one piece: rows times entries of a row


def run(words: Sequence[str]) -> int:
    """Score a file and write one row for each of its rows."""
    options = parser().parse_args(list(words))
    if not options.stderr > 0 or options.max_draws < 4:
        raise ConfigurationError(
            f"got --stderr {options.stderr} and --max-draws {options.max_draws}; expected an "
            "error above 0 and 4 draws or more."
        )
    keep_inputs(options.out, options.file, options.context)
    if options.json and not options.out:
        raise ConfigurationError("--json needs --out: standard output holds the scores.")
    folder = open_run(options.run)
    (flow, certificate), metadata = folder.flow(), folder.metadata()
    chunk = max(64, min(2**16, _NUMBERS // flow.size))
    total, pieces = rows_of_events(options.file, metadata.get("columns"), flow.event_shape, chunk)
    contexts = _contexts(
        flow, options.context or options.file, metadata.get("context_columns"), chunk,
        own_file=options.context is not None,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(options.seed)
    summary = _Summary()
    with table_writer(options.out) as writer, Progress(total) as progress:
        for x in _inputs(flow, pieces):
            context = _next(contexts, progress.rows + len(x))
            columns = _score(
                flow, x, context, progress.rows, generator,
                stderr=options.stderr, max_draws=options.max_draws, outside=options.outside,
                names=metadata.get("columns"),
            )  # fmt: skip
            writer.write(columns)
            summary.add(columns["log_prob"])
            progress.add(len(x))
        _check_end(contexts, progress.rows)
    result = {
        "out": options.out,
        "rows": progress.rows,
        "unit": "nats",
        "kind": str(flow.kind),
        "bias_bound": flow.likelihood.bias_bound,
        **summary.to_json(),
        "certified": certificate.certified,
        "warning": certificate.warning,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(_describe(result), file=sys.stderr)
    return 0


def parser() -> Parser:
    """Return the options of ``contraflow score``."""
    parser = command_parser(
        "score",
        "Write the log-density of every row of a file, in nats, with its kind. The file is read "
        "and scored piece by piece, so it may be larger than memory.",
        arguments="RUN FILE",
        examples=[
            "runs/table new.csv --out scores.csv",
            "runs/table big.parquet --out scores.parquet --json",
            "runs/posterior theta.npy --context x.npy --out scores.npy",
        ],
    )
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument(
        "file", metavar="FILE", type=str, help="rows to score: .csv, .parquet, .npy or .npz"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=str | None,
        help=".csv, .parquet or .npy; CSV on standard output if not given",
    )  # fmt: skip
    parser.add_argument(
        "--context", metavar="FILE", type=str | None,
        help="the context of each row, or one for all; columns of FILE if not given",
    )  # fmt: skip
    parser.add_argument(
        "--outside", action="store_true",
        help="give rows outside the support -inf instead of refusing them",
    )  # fmt: skip
    parser.add_argument(
        "--stderr", type=float, default=0.1, help="wanted error of a row that is estimated, nats"
    )
    parser.add_argument("--max-draws", type=int, default=64, help="most evaluations of a row")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument(
        "--json", action="store_true", help="with --out: a summary as one JSON object"
    )
    return parser


def _inputs(flow: Flow, pieces: Iterator[np.ndarray]) -> Iterator[Tensor]:
    return (torch.tensor(rows, dtype=flow_dtype(flow)) for rows in pieces)


def _contexts(
    flow: Flow, path: str, names: Sequence[str] | None, chunk: int, *, own_file: bool
) -> Iterator[Tensor | None]:
    """Yield the contexts of the pieces, without end where there is one for all, or none."""
    if not flow.context:
        if own_file:
            raise ConfigurationError(
                f"--context {path}: this model is unconditional; leave the option out."
            )
        while True:
            yield None
    if not own_file and not names:
        raise ConfigurationError(
            f"this model is conditional ({flow.context} features, without names); give "
            "--context FILE."
        )
    total, pieces = rows_of_events(path, names, (flow.context,), chunk)
    for rows in _inputs(flow, pieces):
        yield rows
        while total == 1:
            yield rows


def _next(contexts: Iterator[Tensor | None], rows: int) -> Tensor | None:
    try:
        return next(contexts)
    except StopIteration:
        raise DataError(
            f"got fewer rows of context than the {rows} rows or more that are to be scored; "
            "expected as many, or one."
        ) from None


def _check_end(contexts: Iterator[Tensor | None], rows: int) -> None:
    further = next(contexts, None)
    if further is not None and len(further) > 1:
        raise DataError(f"got more rows of context than the {rows} rows that were to be scored.")


def _score(
    flow: Flow,
    x: Tensor,
    context: Tensor | None,
    before: int,
    generator: torch.Generator,
    *,
    stderr: float,
    max_draws: int,
    outside: bool,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the columns of one piece; ``before`` rows came earlier."""
    if context is not None and len(context) not in (1, len(x)):
        raise DataError(
            f"got {before + len(context)} rows of context for {before + len(x)} rows or more; "
            "expected as many, or one."
        )
    inside = flow.transform.domain.contains(x, len(flow.event_shape))
    if not outside and not bool(inside.all()):
        _refuse(flow.transform.domain, x, int((~inside).nonzero()[0]), before, names)
    found = estimate_log_prob(
        flow, x, context, stderr=stderr, max_draws=max_draws, generator=generator
    )
    values = found.value.numpy()
    bad = np.isnan(values) | (np.isinf(values) & inside.numpy())
    if bad.any():
        raise SupportError(
            f"row {before + int(bad.argmax()) + 1} (counted from 1) has no finite log-density "
            "though it lies inside the support: it is too far from the data for "
            f"{x.dtype}. Remove the row, or rescale the data."
        )
    columns: dict[str, Any] = {"log_prob": values}
    if flow.likelihood.stochastic:
        columns["stderr"] = found.stderr.numpy()
    return {**columns, "kind": str(found.kind)}


def _refuse(
    domain: Domain | ProductDomain, x: Tensor, row: int, before: int, names: Sequence[str] | None
) -> NoReturn:
    """Say which value of a row lies outside."""
    values = x[row].flatten()
    columns = domain.columns if isinstance(domain, ProductDomain) else (domain,) * len(values)
    for i, (column, value) in enumerate(zip(columns, values, strict=True)):
        if not bool(column.contains(value[None], 1)):
            where = f"column {names[i]!r}" if names else f"entry {i + 1}"
            what = f"which lies outside the support {column} of the model"
            if bool(value.isinf()):
                what = f"too large for {x.dtype}"
            raise SupportError(
                f"row {before + row + 1} (counted from 1), {where}: got {value:g}, {what}. Remove "
                "such rows, or give them -inf with --outside."
            )
    raise AssertionError("a row outside has a value outside")


class _Summary:
    """Mean and extremes of the finite values, and how many are not."""

    def __init__(self) -> None:
        self.sum = 0.0
        self.finite = 0
        self.outside = 0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)]
        self.outside += len(values) - len(finite)
        if len(finite):
            self.sum += float(finite.sum())
            self.finite += len(finite)
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))

    def to_json(self) -> dict[str, Any]:
        some = self.finite > 0
        return {
            "mean": self.sum / self.finite if some else None,
            "lowest": self.low if some else None,
            "highest": self.high if some else None,
            "outside": self.outside,
        }


def _describe(result: dict[str, Any]) -> str:
    text = f"{result['rows']:,} rows scored, {result['kind']}"
    if result["mean"] is not None:
        text += (
            f": mean log-density {result['mean']:.4f} nats, from {result['lowest']:.4g} to "
            f"{result['highest']:.4g}"
        )
    if result["outside"]:
        text += f"; {result['outside']:,} rows outside the support (-inf)"
    return text
