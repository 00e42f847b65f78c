"""Fit a flow with Lightning's Trainer and keep the best weights of the validation."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from contraflow.contraction import lipschitz_of, set_lipschitz_
from contraflow.data import Part, Splits
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow
from contraflow.tasks.checkpoints import AtomicCheckpointIO, Best, Latest, read_checkpoint
from contraflow.tasks.curves import Curves
from contraflow.tasks.density import DensityTask, Optimisation, WarmAverage, unwrap
from contraflow.tasks.loaders import SplitsModule, mix_seed
from contraflow.tasks.schedule import PatientStopping, ScheduledLipschitz


class ValidationLines(Callback):
    """One line on standard error at each validation, where no progress bar can be shown.

    Args:
        since: optimiser steps before the first validation that can be the best.
    """

    def __init__(self, since: int = 0) -> None:
        self.since = since
        self.start = time.monotonic()
        self.best = float("inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        value = float(metrics.get("val/loss", float("nan")))
        if trainer.global_step >= self.since:
            self.best = min(self.best, value)
        training = float(metrics.get("train/loss", float("nan")))
        print(
            f"epoch {trainer.current_epoch:4d}  step {trainer.global_step:7d}  "
            f"train {training:8.4f}  validation {value:8.4f}  best {self.best:8.4f}  "
            f"{time.monotonic() - self.start:6.0f} s",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class Training:
    """How a training went.

    Args:
        steps: optimiser steps, all in all.
        epochs: passes over the data.
        interrupted: whether Ctrl-C ended it.
    """

    steps: int
    epochs: int
    interrupted: bool


def train(
    flow: Flow,
    splits: Splits,
    folder: Path,
    *,
    optimisation: Optimisation | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    loggers: Any = False,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    callbacks: Sequence[Callback] = (),
) -> Training:
    """Fit ``flow`` in place; afterwards it holds the best validated weights, in ``eval()``.

    A training that ends before its first validation leaves the last weights (their average,
    if one is kept). Order and noise are functions of (seed, epoch) and (seed, step, rank), so
    a training that was killed and resumed gives what an undisturbed one gives, to the last
    digit on a CPU with the same number of threads.

    With ``optimisation.lipschitz_schedule`` the flow ends with the schedule's final L, or, with a
    warning, with the L of its last step if it stops before. A training that fails gives the flow
    back with the L that it had.

    Args:
        flow: initialised from the training rows unless ``resume``.
        splits: the data.
        folder: where ``metrics.csv`` and ``checkpoints/`` are written.
        optimisation: settings.
        seed: seed of order and noise.
        trainer: arguments of ``lightning.pytorch.Trainer``.
        loggers: Lightning loggers, or False.
        resume: go on from ``checkpoints/last.ckpt``.
        checkpoint_every: seconds between two checkpoints; one is written at the end in any case.
        callbacks: further Lightning callbacks.

    Returns:
        Steps, epochs, and whether Ctrl-C ended the training.

    Raises:
        DivergenceError: the loss became NaN or infinite.
        KeyboardInterrupt: a second Ctrl-C, or SIGTERM.
        DataError: there is no checkpoint to resume from, or it is damaged.
        ConfigurationError: Lightning refuses an argument of its trainer, or the checkpoint
            belongs to another model.
    """
    settings = optimisation or Optimisation()
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    if not checkpoint_every >= 0:
        raise ConfigurationError(f"checkpoint_every={checkpoint_every}; expected 0 s or more.")
    if next(flow.parameters(), None) is None:
        raise ConfigurationError(f"{type(flow).__name__} has no parameters: nothing to train.")
    folder.mkdir(parents=True, exist_ok=True)
    flow.train()
    if resume:
        _check_model(last, flow)
    data = SplitsModule(splits, settings.batch_size, seed)
    chosen = {key: value for key, value in (trainer or {}).items() if value is not None}
    max_steps = chosen.pop("max_steps", -1)
    if max_steps == 0 or max_steps < -1:
        raise ConfigurationError(
            f"trainer: max_steps={max_steps}; expected 1 or more, or -1 for no limit."
        )
    latest = Latest(last, checkpoint_every, max_steps)
    progress = sys.stderr.isatty()
    arguments: dict[str, Any] = {
        "max_epochs": -1,
        "gradient_clip_val": 1.0,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": min(50, len(data.train_dataloader())),
        "logger": loggers,
        "default_root_dir": str(folder),
        "plugins": [AtomicCheckpointIO()],
    }
    arguments |= chosen
    arguments["use_distributed_sampler"] = False  # Batches divides the rows itself
    curves = Curves(folder / "metrics.csv", arguments["log_every_n_steps"])
    schedule, own = settings.lipschitz_schedule, lipschitz_of(flow)
    scheduled = None if schedule is None else ScheduledLipschitz(schedule, own)
    since = 0 if schedule is None else schedule.steps
    best = Best(checkpoints, since)
    # L is set before anything else looks at the flow.
    callbacks = [*([scheduled] if scheduled else []), *callbacks, curves, best, latest]
    if settings.ema_decay > 0:
        callbacks.append(WarmAverage(settings.ema_decay))
    if settings.patience is not None:
        callbacks.append(PatientStopping(settings.patience, since))
    if not progress:
        callbacks.append(ValidationLines(since))
    with _quiet(), torch.random.fork_rng(devices=[]), _keeping_bounds(flow, scheduled):
        runner = _trainer(callbacks, arguments, len(data.train_dataloader()))
        if scheduled is not None:
            scheduled.set_(flow, 0)
        if not resume:
            _initialise(flow, splits.train, settings.initial_rows, seed)
        task = DensityTask(flow, settings, seed)
        with _stopping_on_interrupt(latest):
            checkpoint = str(last) if resume else None
            try:
                runner.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            except MisconfigurationException as error:  # fewer epochs than the checkpoint has
                raise ConfigurationError(f"trainer: {error}") from error
            except (SystemExit, SIGTERMException) as error:  # what Lightning makes of signals
                raise KeyboardInterrupt from error
    if best.best_model_path:
        state = read_checkpoint(checkpoints / "best.ckpt")
        flow.load_state_dict(unwrap(state["state_dict"]))
    if scheduled is not None:
        scheduled.finish_(flow, runner.global_step)
    flow.enforce_bounds_()
    flow.eval()
    return Training(runner.global_step, runner.current_epoch, latest.interrupted)


def _trainer(callbacks: list[Callback], arguments: dict[str, Any], batches: int) -> pl.Trainer:
    """Build Lightning's trainer, and refuse at once what it would refuse in the middle."""
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches", "log_every_n_steps"):
        value = arguments.get(name)
        if value is not None and value < 1:
            raise ConfigurationError(f"trainer: {name}={value}; expected 1 or more.")
    if arguments.get("max_epochs") == 0:
        raise ConfigurationError("trainer: max_epochs=0; expected 1 or more, or -1 for no limit.")
    interval = arguments.get("val_check_interval")
    if isinstance(interval, (int, float)):
        most = batches if isinstance(interval, int) else 1.0
        if not 0 < interval <= most:
            raise ConfigurationError(
                f"trainer: val_check_interval={interval}; expected above 0 and at most {most}, "
                "in batches of an epoch if it is an integer, else in epochs."
            )
    try:
        runner = pl.Trainer(callbacks=callbacks, **arguments)
    except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
        ours = {"logger", "plugins", "default_root_dir", "gradient_clip_val", "log_every_n_steps"}
        defaults = inspect.signature(pl.Trainer).parameters
        given = ", ".join(
            f"{name}={value}"
            for name, value in arguments.items()
            if name not in ours and value != defaults[name].default
        )
        raise ConfigurationError(f"trainer: {error} Got {given}.") from error
    cores = os.cpu_count() or 1
    if isinstance(runner.accelerator, CPUAccelerator) and runner.num_devices > cores:
        raise ConfigurationError(
            f"trainer: devices={arguments.get('devices')} asks for {runner.num_devices} processes "
            f"on {cores} processor cores; expected at most one a core."
        )
    return runner


def _check_model(path: Path, flow: Flow) -> None:
    """Refuse a checkpoint of another model before Lightning does, at length."""
    saved = unwrap(read_checkpoint(path)["state_dict"])
    shapes = {name: tuple(value.shape) for name, value in saved.items()}
    for name, value in flow.state_dict().items():
        if shapes.get(name) != tuple(value.shape):
            raise ConfigurationError(
                f"{path}: belongs to another model: {name} has shape {shapes.get(name)} there, "
                f"{tuple(value.shape)} here. Resume with the options that the run was started with."
            )


def _initialise(flow: Flow, part: Part, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(mix_seed(seed, 3))
    index = torch.randperm(len(part), generator=generator)[:rows]
    like = next(flow.parameters())
    context = None if part.context is None else part.context[index].to(like)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 4))
        flow.initialise_from(part.x[index].to(like), context)


@contextmanager
def _keeping_bounds(flow: Flow, scheduled: ScheduledLipschitz | None) -> Iterator[None]:
    """Give a flow whose training fails its own bounds back."""
    try:
        yield
    except BaseException:
        if scheduled is not None:
            set_lipschitz_(flow, scheduled.own)
        raise


@contextmanager
def _stopping_on_interrupt(latest: Latest) -> Iterator[None]:
    """Let a first Ctrl-C end the training after its step, so that everything is saved.

    A second one interrupts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        latest.interrupted = True
        signal.signal(signal.SIGINT, before)
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice of Lightning's that does not apply to data held in memory."""
    consoles = [
        logging.getLogger(f"lightning.pytorch.{module}")
        for module in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")
    ]
    levels = [console.level for console in consoles]
    for console in consoles:
        console.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers",
            "GPU available but not used",
            ".*treespec, LeafSpec.*",
            "Experiment logs directory .* exists and is not empty",
            "Checkpoint directory .* exists and is not empty",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for console, level in zip(consoles, levels, strict=True):
                console.setLevel(level)
