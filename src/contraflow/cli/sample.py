"""``contraflow sample``: draw samples into a picture, an array or a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import as_input, open_run
from contraflow.data import read_table
from contraflow.errors import ConfigurationError
from contraflow.report import save_samples

_ENDINGS = (".png", ".npy", ".csv", ".parquet")


def run(words: Sequence[str]) -> int:
    """Draw samples and write them."""
    options = parser().parse_args(list(words))
    folder = open_run(options.run)
    flow = folder.flow()
    if options.number < 1:
        raise ConfigurationError(f"-n {options.number}; expected 1 or more.")
    out = Path(options.out) if options.out else folder.folder / "samples.png"
    if out.suffix not in _ENDINGS:
        raise ConfigurationError(f"{out}: expected a name ending in {', '.join(_ENDINGS)}.")
    context = None
    names = folder.metadata().get("context_columns")
    if options.context is not None:
        _, values = read_table(options.context, names)
        context = as_input(torch.from_numpy(values), flow)
    generator = torch.Generator().manual_seed(options.seed)
    samples = flow.sample((options.number,), context, generator=generator)
    rows = samples.reshape(-1, *flow.event_shape).numpy()
    columns = folder.metadata().get("columns")
    _write(out, rows, columns)
    written = {"out": str(out), "rows": len(rows), "columns": columns and list(columns)}
    print(json.dumps(written) if options.json else out)
    return 0


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
        "--context", metavar="FILE", type=str | None, help="what to condition on, CSV or NPY"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=str | None,
        help=f"a name ending in {', '.join(_ENDINGS)}; RUN/samples.png if not given",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _write(out: Path, rows: np.ndarray, columns: Sequence[str] | None) -> None:
    if out.suffix == ".png":
        save_samples(out, rows, columns=columns)
    elif out.suffix == ".npy":
        np.save(out, rows)
    else:
        import pandas as pd

        flat = rows.reshape(len(rows), -1)
        names = list(columns) if columns else [f"x{i}" for i in range(flat.shape[1])]
        frame = pd.DataFrame(flat, columns=pd.Index(names))
        if out.suffix == ".csv":
            frame.to_csv(out, index=False)
        else:
            frame.to_parquet(out, index=False)
