"""``contraflow train``: from data to a certified flow in a run folder."""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from contraflow import certify
from contraflow._version import __version__
from contraflow.cli._config import (
    fit_model_to_data,
    instantiate,
    preset_path,
    set_data_root,
)
from contraflow.cli._run import Run, as_input, write_json
from contraflow.cli._train_options import is_help, read_options, train_help, train_parser
from contraflow.data import Splits
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.report import save_samples
from contraflow.tasks import Optimisation, Training, train


def run(words: Sequence[str]) -> int:
    """Train, certify and save; returns 130 when interrupted."""
    words = list(words)
    if is_help(words):
        print(train_help(words), end="")
        return 0
    if not words or words[0].startswith("-"):
        raise ConfigurationError("train: expected a preset's name or a YAML file first.")
    source = preset_path(words[0])
    parser = train_parser()
    options = read_options(parser, source, words[1:])
    as_json = options.pop("json")  # how to print is no part of the configuration
    folder = Run(Path(options.out) / (options.name or source.stem))
    if folder.model.exists() and not options.resume:
        raise ConfigurationError(
            f"{folder.folder}: holds a trained model already; choose another --name, or go on "
            "with --resume."
        )
    set_data_root(options, options.data_root)
    splits = instantiate(parser, data=options.data).load()
    fit_model_to_data(options.model, splits)
    torch.manual_seed(options.seed)
    flow = instantiate(parser, model=options.model)
    optimisation = Optimisation(**vars(options.optimisation))
    folder.folder.mkdir(parents=True, exist_ok=True)
    parser.save(options, str(folder.config), overwrite=True)
    print(flow_summary(flow, splits), file=sys.stderr)

    started = time.monotonic()
    earlier = read_rows(folder.metrics) if options.resume else []
    with redirect_stdout(sys.stderr):  # Lightning's progress bar would mix with our JSON
        training = train(
            flow,
            splits,
            folder.folder,
            optimisation=optimisation,
            seed=options.seed,
            trainer=vars(options.trainer),
            loggers=_loggers(folder.folder),
            resume=options.resume,
        )
    command = shlex.join(["contraflow", "train", *words])
    prepend_rows(folder.metrics, earlier)
    seconds = time.monotonic() - started
    certified = finish(flow, splits, folder, training, command, seconds)
    if as_json:
        print(json.dumps({
            "run": str(folder.folder),
            "model": str(folder.model),
            "steps": training.steps,
            "epochs": training.epochs,
            "interrupted": training.interrupted,
            "certified": certified,
            "seconds": round(seconds, 1),
        }))  # fmt: skip
    return 130 if training.interrupted else 0


def _loggers(folder: Path) -> list[Any]:
    return [
        CSVLogger(folder.parent, name=folder.name, version=""),
        TensorBoardLogger(folder.parent, name=folder.name, version=""),
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def prepend_rows(path: Path, earlier: list[dict[str, str]]) -> None:
    """Put rows back before those of a resumed run, whose logger starts a new file."""
    if not earlier:
        return
    rows = earlier + read_rows(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def flow_summary(flow: Flow, splits: Splits) -> str:
    """Return two lines about what is about to be trained."""
    parameters = sum(p.numel() for p in flow.parameters())
    rows = f"{len(splits.train):,} / {len(splits.validation):,} / {len(splits.test):,}"
    return (
        f"{type(flow).__name__}, {parameters:,} parameters; {splits.name}: {rows} rows to "
        f"train / validate / test, events {tuple(splits.event_shape)}"
    )


def finish(
    flow: Flow, splits: Splits, run: Run, training: Training, command: str, seconds: float
) -> bool:
    """Certify, save and draw samples; returns whether the flow is certified."""
    certificate = certify(flow)
    metadata = {
        "command": command,
        "steps": training.steps,
        "epochs": training.epochs,
        "train_seconds": round(seconds, 1),
        "environment": environment(),
        "columns": splits.columns,
        "context_columns": splits.context_columns,
    }
    flow.save(run.model, metadata=metadata)
    write_json(run.certificate, certificate.to_json())
    context = splits.validation.context
    context = None if context is None else as_input(context[:64], flow)
    count = 64 if len(flow.event_shape) == 3 else 2000
    generator = torch.Generator().manual_seed(0)
    shape = () if context is not None else (count,)
    samples = flow.sample(shape, context, generator=generator)
    held_out = splits.validation.x[:count]
    save_samples(
        run.folder / "samples.png",
        samples.float().numpy(),
        data=held_out.float().numpy(),
        columns=splits.columns,
    )
    verdict = "certified" if certificate.certified else "NOT certified"
    print(f"{run.folder}: saved after {training.steps} steps, {verdict}", file=sys.stderr)
    return certificate.certified


def environment() -> dict[str, str]:
    """Return versions and hardware, for the report."""
    return {
        "contraflow": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": str(torch.get_num_threads()),
    }
