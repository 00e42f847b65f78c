"""Monotone maps of one scalar whose parameters a conditioner supplies.

Coupling and autoregressive transforms take any of these; each is a small frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.registry import register


@runtime_checkable
class ScalarTransformer(Protocol):
    """A monotone map of each entry of x, given K parameters an entry."""

    @property
    def parameters(self) -> int:
        """Return K."""
        ...

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[*B, D]`` with ``[*B, D, K]`` to value and log-derivative, ``[*B, D]`` each."""
        ...

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``; the log-derivative is that of the inverse."""
        ...


@register
@dataclass(frozen=True)
class Affine:
    """``y = x * exp(a) + b`` with ``a`` in (-limit, limit); all-zero parameters: the identity.

    Args:
        limit: largest |log-scale|.

    Example:
        >>> Affine().forward(torch.ones(1), torch.tensor([[2.0, 0.0]]))
        (tensor([3.]), tensor([0.]))
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ConfigurationError(f"Affine: limit={self.limit}; expected above 0.")

    @property
    def parameters(self) -> int:
        """Return 2: shift and raw log-scale."""
        return 2

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.unbind(-1)
        return shift, self.limit * torch.tanh(raw / self.limit)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x * exp(a) + b`` and ``a``."""
        shift, log_scale = self._split(parameters)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y - b) * exp(-a)`` and ``-a``."""
        shift, log_scale = self._split(parameters)
        return (y - shift) * (-log_scale).exp(), -log_scale
