"""Batches of splits held in memory, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from contraflow.data import Part, Splits

_EVALUATION_ROWS = 1024


class _Rows(Dataset):
    """A part that is indexed with a list of rows and returns them by name.

    Weights are scaled to a mean of 1.
    """

    def __init__(self, part: Part) -> None:
        named = {"x": part.x, "context": part.context, "weights": part.weights}
        if part.weights is not None:
            named["weights"] = part.weights / part.weights.double().mean().to(part.weights)
        self.rows = len(part)
        self.named = {name: value for name, value in named.items() if value is not None}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: list[int]) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.named.items()}


class Batches(Sampler[list[int]]):
    """Lists of row numbers: a fresh permutation an epoch, or the rows in order.

    Args:
        rows: number of rows.
        batch_size: rows a batch; with ``seed`` the incomplete last batch is dropped, unless
            it is the only one.
        seed: seed of the permutations; None for the rows in order.
        rank: which of several processes this is; each takes its share of every batch.
        world: number of processes.

    Attributes:
        start: batch that the next iteration begins with, once; the following begin with 0.
        position: batches handed out in this epoch.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self.rows = rows
        self.rank = rank
        self.world = world
        self.batch_size = min(batch_size, rows)
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's permutation; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (
            self.rows // self.batch_size
            if self.seed is not None
            else -(-self.rows // self.batch_size)
        )

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.rows)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
            order = torch.randperm(self.rows, generator=generator)
        start, self.start = self.start % len(self), 0
        for batch in range(start, len(self)):
            self.position = batch + 1
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            # All processes take as many rows; the last rows of a validation stand in twice.
            share = whole[torch.arange(self.rank, -(-len(whole) // self.world) * self.world,
                                       self.world) % len(whole)]  # fmt: skip
            yield share.tolist()


class ResumableLoader(DataLoader):
    """A loader that can go on in the middle of an epoch: its state is the number of batches."""

    def __init__(self, part: Part, batches: Batches) -> None:
        super().__init__(_Rows(part), sampler=batches, batch_size=None)
        self.batches = batches

    def state_dict(self) -> dict[str, Any]:
        """Return how far the epoch is."""
        return {"position": self.batches.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration there."""
        self.batches.start = state["position"]


def mix_seed(*numbers: int) -> int:
    """Return one seed for a tuple of small numbers, different for different tuples.

    Example:
        >>> mix_seed(0, 1) != mix_seed(1, 0)
        True
    """
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        # The finaliser of splitmix64 (Steele et al. 2014), folded over the numbers.
        mixed = (mixed + number) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


class SplitsModule(pl.LightningDataModule):
    """Lightning's view of ``Splits``.

    Args:
        splits: the data.
        batch_size: rows of a training batch; shrinks to the training rows.
        seed: seed of the order.
    """

    def __init__(self, splits: Splits, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.splits = splits
        self.batch_size = batch_size
        self.seed = seed

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.splits.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.splits.validation, _EVALUATION_ROWS, None)

    def _loader(self, part: Part, batch_size: int, seed: int | None) -> DataLoader:
        trainer = self.trainer  # None outside of a training
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return ResumableLoader(part, Batches(len(part), batch_size, seed, rank, world))
