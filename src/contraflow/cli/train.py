"""``contraflow train``: from data to a certified flow in a run folder."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback

from contraflow import certify
from contraflow._files import written_beside
from contraflow._version import __version__
from contraflow.cli._config import (
    fit_model_to_data,
    instantiate,
    make_paths_absolute,
    preset_path,
    set_data_root,
)
from contraflow.cli._parser import Parser
from contraflow.cli._run import Run, as_input, is_first_process, write_json, write_text
from contraflow.cli._train_options import (
    is_help,
    optimisation_of,
    read_options,
    train_help,
    train_parser,
    value_of,
)
from contraflow.cli._yaml import read_yaml
from contraflow.data import Splits
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.report import save_samples
from contraflow.tasks import Training, train
from contraflow.tasks.events import event_log


def run(words: Sequence[str]) -> int:
    """Train, certify and save; returns 130 when interrupted."""
    words = list(words)
    if is_help(words):
        print(train_help(words), end="")
        return 0
    if not words or words[0].startswith("-"):
        raise ConfigurationError("train: expected a preset's name or a YAML file first.")
    parser = train_parser()
    options = _options(parser, words)
    as_json, resume = options.pop("json"), options.pop("resume")  # of this call, not of the run
    folder = Run(Path(options.out) / options.name)
    with folder.exclusively():
        if folder.model.exists() and not resume:
            raise ConfigurationError(
                f"{folder.folder}: holds a trained model already; choose another --name, or go on "
                "with --resume."
            )
        command = shlex.join(["contraflow", "train", *words])
        result = _train(parser, options, folder, command, resume=resume)
    if as_json and is_first_process():
        print(json.dumps(result))
    return 130 if result["interrupted"] else 0


def _options(parser: Parser, words: list[str]) -> Namespace:
    """Return all options: the preset's, or those that a resumed run began with; then the words'."""
    source = preset_path(words[0])
    preset = read_yaml(source)
    out = value_of(words, "--out") or preset.get("out") or "runs"
    name = value_of(words, "--name") or preset.get("name") or source.stem
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise ConfigurationError(f"--name {name}: expected the name of a folder inside of --out.")
    begun = Run(Path(out) / name).config
    if "--resume" in words and begun.is_file():
        source = begun
    options = read_options(parser, source, words[1:])
    options.out, options.name = out, name
    return options


def _train(
    parser: Parser, options: Namespace, folder: Run, command: str, *, resume: bool
) -> dict[str, Any]:
    """Train and save; return what ``--json`` prints."""
    optimisation = optimisation_of(options.optimisation)
    set_data_root(options, options.data_root)
    splits = instantiate(parser, data=options.data).load()
    make_paths_absolute(options)  # in what is saved
    fit_model_to_data(options.model, splits)
    torch.manual_seed(options.seed)
    flow = instantiate(parser, model=options.model)
    if resume and not folder.checkpoint.is_file():
        print(f"{folder.folder}: no checkpoint yet, starting at step 0", file=sys.stderr)
        resume = False
    if is_first_process():
        print(flow_summary(flow, splits), file=sys.stderr)
        if len(splits.train) < optimisation.batch_size:
            print(
                f"contraflow: note: batches shrink from {optimisation.batch_size} rows to the "
                f"{len(splits.train)} that there are to train on",
                file=sys.stderr,
            )
    started = time.monotonic()
    # Lightning's progress bar would mix with our JSON.
    with redirect_stdout(sys.stderr), event_log(folder.folder) as events:
        training = train(
            flow,
            splits,
            folder.folder,
            optimisation=optimisation,
            seed=options.seed,
            trainer=vars(options.trainer),
            loggers=[events],
            resume=resume,
            checkpoint_every=options.checkpoint_every,
            callbacks=[KeepOptions(folder.config, parser.dump(options))],
        )
    seconds = time.monotonic() - started
    certified = None
    if is_first_process():
        certified = finish(flow, splits, folder, training, command, seconds)
    return {
        "run": str(folder.folder),
        "model": str(folder.model),
        "steps": training.steps,
        "epochs": training.epochs,
        "interrupted": training.interrupted,
        "certified": certified,
        "seconds": round(seconds, 1),
    }


class KeepOptions(Callback):
    """Write the configuration once nothing is left that could refuse it.

    A call that fails, for example to resume with another model's options, leaves the run as
    it was.

    Args:
        path: the file.
        text: its text.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_text(self.path, self.text)


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
    with written_beside(run.samples) as partial:
        save_samples(
            partial,
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
