"""Maximum likelihood as a LightningModule."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from contraflow.errors import ConfigurationError, DivergenceError, SupportError
from contraflow.flow import Flow
from contraflow.tasks.loaders import mix_seed
from contraflow.tasks.schedule import LipschitzSchedule

_RANGES: tuple[tuple[str, type, float, float, str], ...] = (
    ("learning_rate", Real, sys.float_info.min, math.inf, "a number above 0"),
    ("weight_decay", Real, 0, math.inf, "a number of 0 or more"),
    ("beta2", Real, 0, 1, "a number in [0, 1)"),
    ("warmup_steps", Integral, 0, math.inf, "a whole number of 0 or more"),
    ("decay_steps", Integral, 1, math.inf, "a whole number of 1 or more, or None"),
    ("final_rate", Real, 0, math.inf, "a number of 0 or more"),
    ("ema_decay", Real, 0, 1, "a number in [0, 1)"),
    ("patience", Integral, 0, math.inf, "a whole number of 0 or more, or None"),
    ("batch_size", Integral, 1, math.inf, "a whole number of 1 or more"),
    ("initial_rows", Integral, 2, math.inf, "a whole number of 2 or more"),
)


@dataclass(frozen=True)
class Optimisation:
    """How a density is fitted.

    Args:
        learning_rate: Adam's step.
        weight_decay: decoupled decay of matrices and kernels (not of biases and scales).
        beta2: Adam's second-moment decay.
        warmup_steps: steps of linear warm-up.
        decay_steps: steps of the cosine after the warm-up, down to ``final_rate`` of the
            learning rate; None for a constant rate.
        final_rate: share of the learning rate that is left at the end.
        ema_decay: decay of the exponential moving average of the weights that is
            validated and saved; 0 for none.
        patience: validations without improvement before training stops; None for never.
        batch_size: rows a batch.
        initial_rows: rows that the data-dependent initialisation sees.
        lipschitz_schedule: bound L of the contractive blocks as a function of the step; None
            for the bounds that the flow was built with, all the time. Only validations at the
            schedule's final L choose the weights that are kept and count for ``patience``.

    Raises:
        ConfigurationError: a number is out of range.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta2: float = 0.99
    warmup_steps: int = 100
    decay_steps: int | None = None
    final_rate: float = 0.01
    ema_decay: float = 0.999
    patience: int | None = 20
    batch_size: int = 256
    initial_rows: int = 4096
    lipschitz_schedule: LipschitzSchedule | None = None

    def __post_init__(self) -> None:
        schedule = self.lipschitz_schedule
        if schedule is not None and not isinstance(schedule, LipschitzSchedule):  # pyright: ignore
            raise ConfigurationError(
                f"lipschitz_schedule={schedule!r}; expected a LipschitzSchedule(start, steps), "
                "or None."
            )
        for name, kind, low, high, expected in _RANGES:
            value = getattr(self, name)
            optional = value is None and name in ("decay_steps", "patience")
            if not optional and not _lies_in(value, kind, low, high):
                raise ConfigurationError(f"{name}={value!r}; expected {expected}.")

    def rate(self, step: int) -> float:
        """Return the learning rate's factor at a step."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.decay_steps is None:
            return warm
        done = min(1.0, max(0, step - self.warmup_steps) / max(self.decay_steps, 1))
        return warm * (
            self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        )


def _lies_in(value: Any, kind: type, low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value < high  # pyright: ignore


class DensityTask(pl.LightningModule):
    """Minimise ``-log p(x | context)``: bits per dimension for integer data, nats otherwise.

    Validation uses the flow's evaluation strategy and the same noise every time, so that two
    validations can be compared.

    Args:
        flow: any flow.
        optimisation: settings.
        seed: the noise of a step is a function of (seed, step, rank).

    Raises:
        DivergenceError: in training or validation, when the loss is not finite.
    """

    def __init__(self, flow: Flow, optimisation: Optimisation | None = None, seed: int = 0) -> None:
        super().__init__()
        self.flow = flow
        self.optimisation = optimisation or Optimisation()
        self.seed = seed
        self.scale = 1.0
        if flow.transform.domain.integer:
            self.scale = 1 / (flow.size * math.log(2))

    def _loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean of ``weights * -log p``; weights have mean 1 over the training rows."""
        try:
            losses = -self.flow.log_prob(batch["x"], batch.get("context"), generator=generator)
        except SupportError as error:  # the data were finite: it is the weights that ran away
            raise DivergenceError(
                f"step {self.global_step}: {error} Lower the learning rate, clip gradients, or "
                "check the data for extreme values."
            ) from error
        if "weights" in batch:
            losses = losses * batch["weights"]
        return losses.mean() * self.scale

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(mix_seed(self.seed, *numbers))

    def _guard(self, stage: str, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise DivergenceError(
                f"{stage}: the loss is {loss.item()} at step {self.global_step}; expected a "
                "finite number. Lower the learning rate, clip gradients, or check the data for "
                "extreme values. The last checkpoint is intact."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        numbers = (1, self.global_step, batch_idx, self.global_rank)
        torch.manual_seed(mix_seed(self.seed, 5, *numbers))  # of dropout and the like
        loss = self._loss(batch, self._generator(*numbers))
        self._guard("training", loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss = self._loss(batch, self._generator(2, batch_idx, self.global_rank))
        self._guard("validation", loss)
        self.log("val/loss", loss, prog_bar=True, batch_size=len(batch["x"]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        settings = self.optimisation
        decayed = [p for p in self.flow.parameters() if p.ndim > 1]
        others = [p for p in self.flow.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=float(settings.learning_rate),
            betas=(0.9, float(settings.beta2)),
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, settings.rate)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class WarmAverage(WeightAveraging):
    """An exponential moving average whose decay grows to ``decay``, so that it forgets the start.

    Args:
        decay: final decay; after n steps it is ``min(decay, (1 + n) / (10 + n))``.
    """

    def __init__(self, decay: float) -> None:
        def average(averages: Any, current: Any, count: Any) -> None:
            now = min(decay, (1 + int(count)) / (10 + int(count)))
            with torch.no_grad():
                for old, new in zip(averages, current, strict=True):
                    if old.is_floating_point():
                        old.lerp_(new, 1 - now)
                    else:
                        old.copy_(new)

        super().__init__(use_buffers=False, multi_avg_fn=average)


def unwrap(task_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the flow's part of a task's state."""
    return {
        name.removeprefix("flow."): value
        for name, value in task_state.items()
        if name.startswith("flow.")
    }
