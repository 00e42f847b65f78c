"""Checkpoints from which a killed training goes on as if nothing had happened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from contraflow._files import written_beside
from contraflow.errors import DataError

_PARTS = {  # of every checkpoint
    "state_dict", "epoch", "global_step", "loops", "callbacks", "optimizer_states",
    "lr_schedulers", "pytorch-lightning_version",
}  # fmt: skip


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target, then rename: the target is always a whole file.

    Lightning's own writer goes through the folder for temporary files, from where a move to
    another disk is a copy that can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write, flush to the disk, rename."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch says where its writer stopped, the system why
                if isinstance(error.__context__, OSError):
                    raise OSError(*error.__context__.args, str(path)) from error
                raise


class Latest(Checkpoint):
    """Keep ``last.ckpt`` at moments from which Lightning resumes without a difference.

    There are three: after a batch that neither ends its epoch nor is followed by a validation,
    after a validation inside an epoch, and after a whole epoch; never while gradients are being
    accumulated, for they are not saved. A checkpoint is written at the
    first of them once ``every`` seconds have passed, and whenever training stops; then before
    the validation that Lightning adds to a stop, which an undisturbed training does not have.

    Args:
        path: the file.
        every: seconds between two checkpoints.
        max_steps: optimiser steps after which training stops; -1 for no limit. (Lightning's
            own limit changes how it resumes.)
    """

    def __init__(self, path: Path, every: float = 60.0, max_steps: int = -1) -> None:
        self.path = path
        self.every = every
        self.max_steps = max_steps
        self.interrupted = False  # set by a signal handler: stop after this batch
        self._written = 0.0
        self._validates = False
        self._stops = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._written = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stop = self.interrupted or 0 <= self.max_steps <= trainer.global_step
        trainer.should_stop = _any_process(trainer, stop or trainer.should_stop)
        self._validates = _validation_is_due(trainer)
        if _ends_epoch(trainer):
            # Stop once the epoch is over: its end is the better moment, and comes at once.
            self._stops = trainer.should_stop
            trainer.should_stop = False
        elif not self._validates:
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validates and not _ends_epoch(trainer):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _ends_epoch(trainer):  # and was not left in the middle
            trainer.should_stop |= self._stops
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        ending = trainer.should_stop or _ends_training(trainer)
        late = time.monotonic() - self._written >= self.every
        if _any_process(trainer, ending or late):
            trainer.save_checkpoint(self.path, weights_only=False)  # optimiser and loops too
            self._written = time.monotonic()


class Best(ModelCheckpoint):
    """Keep ``best.ckpt``, of the lowest validation loss; also in a folder that was moved.

    Args:
        folder: where it is written.
        since: optimiser steps before the first validation that counts: while the bound L of a
            schedule is on its way, weights are validated under another L than they end with.
    """

    def __init__(self, folder: Path, since: int = 0) -> None:
        super().__init__(
            folder,
            filename="best",
            monitor="val/loss",
            save_on_train_epoch_end=False,  # but after each validation
            enable_version_counter=False,
        )
        self.since = since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare and save, from step ``since`` on."""
        if trainer.global_step >= self.since:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, under the folder's name of today."""
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): moved(item) for key, item in value.items()}
            return value.replace(before, now, 1) if isinstance(value, str) else value

        super().load_state_dict(moved(state_dict))


def _any_process(trainer: pl.Trainer, decision: bool) -> bool:
    """Decide as one: a process that saves or stops alone would wait for the others for ever."""
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def _ends_epoch(trainer: pl.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _ends_training(trainer: pl.Trainer) -> bool:
    limit = trainer.max_epochs
    return limit is not None and 0 <= limit <= trainer.current_epoch + 1 and _ends_epoch(trainer)


def _validation_is_due(trainer: pl.Trainer) -> bool:
    """Tell whether a validation follows this batch by the schedule, stop or no stop."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None  # it exists while batches come
    stopping, trainer.should_stop = trainer.should_stop, False
    try:
        return loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = stopping


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint.") from None
    except Exception as error:  # torch raises many types on a damaged file, and long stories
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise _unreadable(path, reason) from error
    missing = _PARTS - state.keys() if isinstance(state, dict) else _PARTS
    if missing:
        raise _unreadable(path, f"without {', '.join(sorted(missing))}")
    return state


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: not a readable checkpoint ({reason}). Delete it to start anew, or restore it "
        "from a copy."
    )
