"""Fit a flow with Lightning's Trainer and keep the best weights of the validation."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from contraflow._edges import check_tensor
from contraflow.data import Part, Splits
from contraflow.data.splits import check_weights
from contraflow.errors import ConfigurationError, DataError, DtypeError, ShapeError, nearest
from contraflow.flow import Flow
from contraflow.tasks.checkpoints import AtomicCheckpointIO, Best, Latest, read_checkpoint
from contraflow.tasks.curves import Curves
from contraflow.tasks.density import DensityTask, Optimisation, WarmAverage, unwrap
from contraflow.tasks.loaders import SplitsModule, mix_seed


class ValidationLines(Callback):
    """One line on standard error at each validation, where no progress bar can be shown."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.best = float("inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        value = float(metrics.get("val/loss", float("nan")))
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
    folder.mkdir(parents=True, exist_ok=True)
    flow.train()
    if resume:
        _check_model(last, flow)
    data = SplitsModule(splits, settings.batch_size, seed)
    chosen = {key: value for key, value in (trainer or {}).items() if value is not None}
    latest = Latest(last, checkpoint_every, chosen.pop("max_steps", -1))
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
    best = Best(checkpoints)
    callbacks = [*callbacks, curves, best, latest]
    if settings.ema_decay > 0:
        callbacks.append(WarmAverage(settings.ema_decay))
    if settings.patience is not None:
        callbacks.append(
            EarlyStopping("val/loss", patience=settings.patience, check_on_train_epoch_end=False)
        )
    if not progress:
        callbacks.append(ValidationLines())
    with _quiet(), torch.random.fork_rng(devices=[]):
        runner = _trainer(callbacks, arguments, len(data.train_dataloader()))
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
    flow.enforce_bounds_()
    flow.eval()
    return Training(runner.global_step, runner.current_epoch, latest.interrupted)


def _trainer(callbacks: list[Callback], arguments: dict[str, Any], batches: int) -> pl.Trainer:
    """Build Lightning's trainer, and refuse at once what it would refuse in the middle."""
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches", "log_every_n_steps"):
        value = arguments.get(name)
        if value is not None and value < 1:
            raise ConfigurationError(f"trainer: {name}={value}; expected 1 or more.")
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


def fit(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    validation: float = 0.1,
    max_epochs: int = 200,
    max_time: timedelta | str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Flow:
    """Fit a flow to rows in one line: early stopping, EMA, the best weights kept.

    Args:
        flow: any flow; trained in place and returned in ``eval()`` mode.
        x: ``[N, *E]``, data units, of the flow's dtype.
        context: ``[N, M]``.
        weights: ``[N]``, how much each row counts, 0 or more; None for equal weights.
        validation: share of the rows, chosen at random, that decides when to stop.
        max_epochs: most passes over the data.
        max_time: wall-clock limit, as ``timedelta`` or ``"DD:HH:MM:SS"``.
        seed: seed of split, order and noise.
        **settings: fields of ``Optimisation``.

    Raises:
        ConfigurationError: a setting is unknown or out of range.
        DataError: too few rows, values that are not finite or outside the support, or weights
            that are none.
        ShapeError: x is not ``[N, *E]``, or the context does not fit.
        DtypeError: dtypes differ from the flow's.
        DivergenceError: the loss became NaN or infinite.

    Example:
        >>> import contraflow as cf
        >>> flow = cf.flows.MAF(features=2, transforms=1, hidden_features=(8,))
        >>> _ = fit(flow, torch.randn(64, 2), max_epochs=1)
        >>> flow.log_prob(torch.zeros(2)).isfinite().item()
        True
    """
    optimisation = _optimisation(settings)
    _check_limits(validation, max_epochs, max_time, seed)
    rows = _checked_rows(flow, x, context, weights)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    held = min(max(1, round(validation * len(rows))), len(rows) - 2)
    held_out, rest = rows.rows(order[:held]), rows.rows(order[held:])
    splits = Splits("fit", rest, held_out, held_out)
    with tempfile.TemporaryDirectory() as folder:
        train(
            flow,
            splits,
            Path(folder),
            optimisation=optimisation,
            seed=seed,
            trainer={"max_epochs": max_epochs, "max_time": max_time},
        )
    return flow


def _optimisation(settings: dict[str, Any]) -> Optimisation:
    names = [field.name for field in fields(Optimisation)]
    for name in settings:
        if name not in names:
            raise ConfigurationError(
                f"fit takes no setting {name!r}{nearest(name, names) or '.'} Known: "
                f"{', '.join(names)}."
            )
    return Optimisation(**settings)


def _check_limits(
    validation: float, max_epochs: int, max_time: timedelta | str | None, seed: int
) -> None:
    """Refuse limits that Lightning would refuse late, or never."""
    if not isinstance(validation, Real) or not 0 < validation < 1:
        raise ConfigurationError(f"validation={validation!r}; expected a share in (0, 1).")
    for name, value, least in (("max_epochs", max_epochs, 1), ("seed", seed, 0)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not least <= value < 2**63:
            raise ConfigurationError(f"{name}={value!r}; expected a whole number from {least}.")
    spelt = isinstance(max_time, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", max_time)
    span = isinstance(max_time, timedelta) and max_time > timedelta(0)
    if max_time is not None and not (spelt or span):
        raise ConfigurationError(
            f'max_time={max_time!r}; expected a timedelta above 0 or "DD:HH:MM:SS", such as '
            '"00:00:10:00" for ten minutes.'
        )


def _checked_rows(flow: Flow, x: Tensor, context: Tensor | None, weights: Tensor | None) -> Part:
    """Return the rows that count; raise if one cannot be fitted."""
    check_tensor("x", x)
    for name, values in (("context", context), ("weights", weights)):
        if values is not None:
            check_tensor(name, values)
    if x.ndim != 1 + len(flow.event_shape):
        raise ShapeError(
            f"fit: got x of shape {tuple(x.shape)}; expected [N, "
            f"{', '.join(map(str, flow.event_shape))}]."
        )
    if not any(parameter.requires_grad for parameter in flow.parameters()):
        raise ConfigurationError("fit: the flow has no parameter to fit.")
    if weights is not None:
        if weights.is_complex():
            raise DtypeError(f"fit: weights is {weights.dtype}; expected real numbers.")
        check_weights(weights, len(x))
        weights = _plain(weights).to(flow._like().dtype)
    if len(x) > 0:
        flow.log_prob(x[:1].nan_to_num(), _first_row(context))  # shapes and dtypes
    for name, values in (("x", x), ("context", context)):
        if values is not None and not bool(values.isfinite().all()):
            row = int((~values.isfinite()).reshape(len(values), -1).any(1).nonzero()[0])
            raise DataError(f"fit: row {row} of {name} is not finite; remove or impute it.")
    inside = flow.transform.domain.contains(x, len(flow.event_shape))
    if not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        raise DataError(
            f"fit: row {row} of x lies outside the support, "
            f"{flow.transform.domain.constraint(len(flow.event_shape))}; remove it, or build the "
            "flow with the support of the data."
        )
    rows = Part(_plain(x), None if context is None else _plain(context), weights)
    if weights is not None:  # a row of weight 0 would only dilute the validation
        rows = rows.rows(weights > 0)
    if len(rows) < 3:
        raise DataError(
            f"fit: got {len(rows)} rows{' of positive weight' if weights is not None else ''}; "
            "expected 3 or more, one of them to validate."
        )
    return rows


def _plain(values: Tensor) -> Tensor:
    """Return the values without a graph, and not as an inference tensor, which no loss takes."""
    return values.clone().detach() if values.is_inference() else values.detach()


def _first_row(context: Tensor | None) -> Tensor | None:
    return None if context is None or context.ndim == 0 else context[:1].nan_to_num()
