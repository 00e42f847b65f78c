"""``contraflow sample``: draw samples into a picture, an array or a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contraflow._files import written_beside
from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import as_input, open_run
from contraflow.cli._tables import ENDINGS, Progress, keep_inputs, rows_of_events, table_writer
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.report import save_samples

_ENDINGS = (".png", *ENDINGS)
_CHUNK = 2**14  # samples at once
_MOST_DRAWN = 10_000


def run(words: Sequence[str]) -> int:
    """Draw samples and write them."""
    options = parser().parse_args(list(words))
    folder = open_run(options.run)
    flow, certificate = folder.flow()
    if options.number < 1:
        raise ConfigurationError(f"-n {options.number}; expected 1 or more.")
    out = Path(options.out) if options.out else folder.samples
    if out.suffix not in _ENDINGS:
        raise ConfigurationError(f"{out}: expected a name ending in {', '.join(_ENDINGS)}.")
    keep_inputs(out, options.context)
    metadata = folder.metadata()
    context = _context(options.context, metadata.get("context_columns"), flow)
    names = metadata.get("columns")
    count = options.number * (1 if context is None else len(context))
    if out.suffix == ".png":
        if count > _MOST_DRAWN:
            raise ConfigurationError(
                f"{out}: got {count:,} samples for one picture, expected at most {_MOST_DRAWN:,}; "
                "lower -n, or write .npy, .csv or .parquet."
            )
        with written_beside(out) as partial:
            drawn = np.concatenate(list(_draws(flow, options.number, context, options.seed)))
            save_samples(partial, drawn, columns=names)
    else:
        with table_writer(out) as writer, Progress(count) as progress:
            for rows in _draws(flow, options.number, context, options.seed):
                writer.write({"samples": rows} if out.suffix == ".npy" else _columns(rows, names))
                progress.add(len(rows))
    written = {
        "out": str(out),
        "rows": count,
        "columns": names and list(names),
        "certified": certificate.certified,
        "warning": certificate.warning,
    }
    print(json.dumps(written) if options.json else out)
    return 0


def _context(path: str | None, names: Sequence[str] | None, flow: Flow) -> Tensor | None:
    """Read the rows to condition on.

    Raises:
        ConfigurationError: there is a file but no need of one, or the reverse.
    """
    if (path is None) != (flow.context == 0):
        raise ConfigurationError(
            f"--context {path}: this model is unconditional; leave the option out."
            if path is not None
            else f"this model is conditional; give --context FILE with {flow.context} columns"
            f"{': ' + ', '.join(names) if names else ''}."
        )
    if path is None:
        return None
    _, pieces = rows_of_events(path, names, (flow.context,), _CHUNK)
    return as_input(torch.from_numpy(np.concatenate(list(pieces))), flow)


def _draws(flow: Flow, number: int, context: Tensor | None, seed: int) -> Iterator[np.ndarray]:
    """Yield samples ``[n, *E]``, those of the first context first."""
    generator = torch.Generator().manual_seed(seed)
    total = number * (1 if context is None else len(context))
    for start in range(0, total, _CHUNK):
        size = min(_CHUNK, total - start)
        if context is None:
            yield flow.sample((size,), generator=generator).numpy()
        else:
            given = context[torch.arange(start, start + size) // number]
            yield flow.sample((), given, generator=generator).numpy()


def _columns(rows: np.ndarray, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    flat = rows.reshape(len(rows), -1)
    names = names or [f"x{i}" for i in range(flat.shape[1])]
    return {name: flat[:, i] for i, name in enumerate(names)}


def parser() -> Parser:
    """Return the options of ``contraflow sample``."""
    parser = command_parser(
        "sample",
        "Draw samples from a run and print where they were written.",
        examples=[
            "runs/digits",
            "runs/table -n 1000 --seed 1 --out samples.csv",
            "runs/table --context given.csv --out samples.npy",
        ],
    )
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument(
        "-n", "--number", type=int, default=64, help="how many, for each row of the context"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument(
        "--context",
        metavar="FILE",
        type=str | None,
        help="what to condition on: .csv, .parquet, .npy or .npz",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=str | None,
        help=f"a name ending in {', '.join(_ENDINGS)}; RUN/samples.png if not given",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser
