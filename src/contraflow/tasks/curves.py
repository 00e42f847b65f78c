"""The learning curves, written row by row so that a kill loses none that a checkpoint has seen."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from contraflow._files import written_beside
from contraflow.contraction import lipschitz_of

COLUMNS: tuple[str, ...] = ("epoch", "step", "train/loss", "val/loss", "lipschitz")


class Curves(Callback):
    """Append losses to a CSV file: every ``interval`` steps, and at each validation.

    Beside a loss stands the L that it was taken with, the largest bound asked of a block.

    A checkpoint remembers how many rows there were; a resumed training removes those that came
    after it, since it will write them again. Numbers are written with all their digits.

    Args:
        path: the file.
        interval: steps between two training losses.
    """

    def __init__(self, path: Path, interval: int = 50) -> None:
        self.path = path
        self.interval = interval
        self.rows = 0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            _truncate(self.path, self.rows)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stepped = not trainer.fit_loop.epoch_loop._should_accumulate()
        if stepped and trainer.global_step % self.interval == 0:
            self._append(trainer, pl_module, {"train/loss": float(outputs["loss"])})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val/loss"])
            self._append(trainer, pl_module, {"val/loss": loss})

    def _append(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, losses: dict[str, float]
    ) -> None:
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            **losses,
        }
        bounds = lipschitz_of(pl_module)
        if bounds:
            row["lipschitz"] = max(bounds)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, restval="").writerow(row)
        self.rows += 1


def _truncate(path: Path, rows: int) -> None:
    """Keep the header and the first rows; start the file if there is none."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() and rows else []
    with written_beside(path) as partial, partial.open("wb") as file:
        file.write(f"{','.join(COLUMNS)}\r\n".encode())
        file.writelines(lines[1 : rows + 1])  # as they are: damage to a curve stops no training
