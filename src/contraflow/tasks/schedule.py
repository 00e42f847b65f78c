"""The bound L as a function of the training step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping

from contraflow.contraction import bounds_of_blocks, lipschitz_of, set_lipschitz_
from contraflow.errors import ConfigurationError
from contraflow.flow import Flow

Shape = Literal["geometric", "linear"]


@dataclass(frozen=True)
class LipschitzSchedule:
    """L from ``start`` to ``end`` in ``steps`` optimiser steps, and ``end`` from then on.

    L is a function of the step alone, so that a training that was cut off goes on with the L of
    its step. It moves in ``levels`` equal jumps. A compiled training step compiles anew at the
    first of them; from then on L is an input of its graph.

    Args:
        start: L of the first steps, one number or one for each block in forward order.
        steps: optimiser steps until ``end`` is reached.
        end: L from then on, likewise; None for the bounds that the flow was built with.
        shape: "geometric" multiplies 1 - L by the same factor at each jump, so that the bound
            1/(1 - L) of Lip(f^-1) grows evenly on a logarithmic scale; "linear" adds to L.
        levels: number of jumps; at most one each step is made.

    Raises:
        ConfigurationError: a number is out of range, or the shape is unknown.
        NotContractiveError: a bound is not in (0, 1).

    Example:
        >>> schedule = LipschitzSchedule(start=0.9, end=0.9999, steps=300, levels=3)
        >>> [f"{schedule.at(step, own=(0.9999,))[0]:.4f}" for step in (0, 99, 100, 200, 300)]
        ['0.9000', '0.9000', '0.9900', '0.9990', '0.9999']
    """

    start: float | Sequence[float]
    steps: int
    end: float | Sequence[float] | None = None
    shape: Shape = "geometric"
    levels: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "levels"):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ConfigurationError(
                    f"LipschitzSchedule: {name}={value!r}; expected a whole number of 1 or more."
                )
        if self.shape not in get_args(Shape):
            raise ConfigurationError(
                f"LipschitzSchedule: shape={self.shape!r}; expected 'geometric' or 'linear'."
            )
        for given in (self.start, self.end):
            if given is not None:
                bounds_of_blocks(given, len(given) if isinstance(given, Sequence) else 1)

    def at(self, step: int, own: Sequence[float]) -> tuple[float, ...]:
        """Return the bound of each block at a step.

        Args:
            step: optimiser steps taken.
            own: bounds that the flow was built with, one for each block.

        Raises:
            ConfigurationError: the number of bounds is not that of the blocks.
        """
        starts = bounds_of_blocks(self.start, len(own))
        ends = tuple(own) if self.end is None else bounds_of_blocks(self.end, len(own))
        levels = min(self.levels, self.steps)
        # A whole number of jumps, in integers: no rounding decides on which step one falls.
        jumps = min(step, self.steps) * levels // self.steps
        if jumps == levels:
            return ends
        share = jumps / levels
        return tuple(self._between(a, b, share) for a, b in zip(starts, ends, strict=True))

    def _between(self, start: float, end: float, share: float) -> float:
        if share == 0:
            return start
        if self.shape == "linear":
            return start + (end - start) * share
        gap = math.log1p(-start) + (math.log1p(-end) - math.log1p(-start)) * share
        return -math.expm1(gap)  # 1 - e^gap, in (0, 1) as both ends are


class ScheduledLipschitz(Callback):
    """Set the L of the step before each training step and each validation.

    A validation sees the L of the step that training goes on with. A checkpoint remembers
    ``own``: a flow whose training stopped early has another L when that is resumed.

    Args:
        schedule: L as a function of the step.
        own: bounds that the flow was built with, one for each block.
    """

    def __init__(self, schedule: LipschitzSchedule, own: Sequence[float]) -> None:
        self.schedule = schedule
        self.own = tuple(own)

    def set_(self, flow: Flow, step: int) -> None:
        """Write the L of a step, if it differs from the flow's."""
        bounds = self.schedule.at(step, self.own)
        if bounds != lipschitz_of(flow):
            set_lipschitz_(flow, bounds)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"own": list(self.own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the bounds that the flow was built with."""
        self.own = tuple(state_dict["own"])

    def finish_(self, flow: Flow, step: int) -> None:
        """Leave the flow with the L of the step at which training stopped; warn if it is early."""
        self.set_(flow, step)
        if step < self.schedule.steps:
            warnings.warn(
                f"training stopped at step {step:,} of the {self.schedule.steps:,} that the "
                f"schedule of L has: the flow keeps L={max(lipschitz_of(flow)):.6g}, not the "
                "final one. Train longer, or shorten the schedule.",
                stacklevel=3,
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.set_(_flow_of(pl_module), trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.set_(_flow_of(pl_module), trainer.global_step)


class PatientStopping(EarlyStopping):
    """Early stopping that does not count validations before a step.

    While L is still on its way a loss says nothing about the flow that will be saved.

    Args:
        patience: validations without improvement.
        since: optimiser steps before the first validation that counts.
    """

    def __init__(self, patience: int, since: int = 0) -> None:
        super().__init__("val/loss", patience=patience, check_on_train_epoch_end=False)
        self.since = since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step >= self.since:
            super().on_validation_end(trainer, pl_module)


def _flow_of(task: pl.LightningModule) -> Flow:
    flow = task.flow
    assert isinstance(flow, Flow)
    return flow
