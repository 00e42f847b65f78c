"""Maximum likelihood as a LightningModule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from contraflow.errors import ConfigurationError, DivergenceError
from contraflow.flow import Flow
from contraflow.tasks.loaders import mix_seed

_LEAST = {
    "weight_decay": 0, "warmup_steps": 0, "decay_steps": 0, "final_rate": 0, "patience": 0,
    "batch_size": 1, "initial_rows": 2,
}  # fmt: skip


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

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ConfigurationError(f"learning_rate={self.learning_rate}; expected above 0.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay={self.ema_decay}; expected in [0, 1).")
        if not 0 <= self.beta2 < 1:
            raise ConfigurationError(f"beta2={self.beta2}; expected in [0, 1).")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigurationError(f"{name}={value}; expected {least} or more.")

    def rate(self, step: int) -> float:
        """Return the learning rate's factor at a step."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.decay_steps is None:
            return warm
        done = min(1.0, max(0, step - self.warmup_steps) / max(self.decay_steps, 1))
        return warm * (
            self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        )


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
        losses = -self.flow.log_prob(batch["x"], batch.get("context"), generator=generator)
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
            lr=settings.learning_rate,
            betas=(0.9, settings.beta2),
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
