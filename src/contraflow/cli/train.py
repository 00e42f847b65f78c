"""``contraflow train``: from data to a certified flow in a run folder."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import TensorBoardLogger

from contraflow import certify
from contraflow._files import written_beside
from contraflow._version import __version__
from contraflow.cli._config import (
    add_model_and_data,
    fit_model_to_data,
    instantiate,
    preset_path,
    set_data_root,
)
from contraflow.cli._run import Run, as_input, write_json
from contraflow.data import Splits
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.report import save_samples
from contraflow.tasks import Optimisation, Training, train

_OURS: set[str | int] = {  # arguments of Trainer that the run's folder decides
    "logger", "callbacks", "default_root_dir", "fast_dev_run", "barebones", "enable_checkpointing",
}  # fmt: skip


def run(words: Sequence[str]) -> int:
    """Train, certify and save; returns 130 when interrupted."""
    words = list(words)
    parser = _parser()
    if not words or words[0].startswith("-"):
        if not {"-h", "--help"} & set(words):
            raise ConfigurationError("train: expected a preset's name or a YAML file first.")
        parser.print_help()
        return 0
    options = _options(parser, words)
    folder = Run(Path(options.out) / options.name)
    with folder.exclusively():
        if folder.model.exists() and not options.resume:
            raise ConfigurationError(
                f"{folder.folder}: holds a trained model already; choose another --name, or go on "
                "with --resume."
            )
        return _train(parser, options, folder, shlex.join(["contraflow", "train", *words]))


def _options(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Return all options: the preset's, or those that a resumed run began with; then the words'."""
    source = preset_path(words[0])
    options = parser.parse_args(["--config", str(source), *words[1:]])
    name = options.name or source.stem
    begun = Run(Path(options.out) / name).config
    if options.resume and begun.is_file():
        options = parser.parse_args(["--config", str(begun), *words[1:]])
    options.name = name
    return options


def _train(parser: ArgumentParser, options: Namespace, folder: Run, command: str) -> int:
    set_data_root(options, options.data_root)
    splits = instantiate(parser, data=options.data).load()
    fit_model_to_data(options.model, splits)
    torch.manual_seed(options.seed)
    flow = instantiate(parser, model=options.model)
    resume = options.resume and folder.checkpoint.is_file()
    if options.resume and not resume:
        print(f"{folder.folder}: no checkpoint yet, starting at step 0", file=sys.stderr)
    with written_beside(folder.config) as partial:
        parser.save(options, str(partial), overwrite=True)
    print(flow_summary(flow, splits), file=sys.stderr)
    started = time.monotonic()
    training = train(
        flow,
        splits,
        folder.folder,
        optimisation=Optimisation(**vars(options.optimisation)),
        seed=options.seed,
        trainer=vars(options.trainer),
        loggers=[TensorBoardLogger(folder.folder.parent, name=folder.folder.name, version="")],
        resume=resume,
        checkpoint_every=options.checkpoint_every,
    )
    finish(flow, splits, folder, training, command, time.monotonic() - started)
    return 130 if training.interrupted else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="contraflow train",
        usage="contraflow train PRESET|FILE.yaml [options]",
        description="Train a flow. Options override those of the preset, for example "
        "--model.lipschitz 0.9 --optimisation.learning_rate 5e-4 --trainer.max_time 00:00:03:00.",
    )
    parser.add_argument("--name", type=str | None, default=None, help="name of the run")
    parser.add_argument("--out", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--data-root", type=str | None, default=None, help="folder of data sets")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument(
        "--checkpoint-every", type=float, default=60.0, help="seconds between two checkpoints"
    )
    add_model_and_data(parser)
    parser.add_class_arguments(Optimisation, "optimisation")
    parser.add_class_arguments(pl.Trainer, "trainer", skip=_OURS, instantiate=False)
    return parser


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
) -> None:
    """Certify, save and draw samples."""
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
