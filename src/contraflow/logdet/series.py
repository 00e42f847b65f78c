"""The power series of i-ResNet, with as many terms as a wanted bias asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.jacobian import Jacobian
from contraflow.kinds import Kind, Likelihood
from contraflow.logdet._neumann import Noise, Terms, series_log_det
from contraflow.logdet._strategy import MOST_TERMS, rademacher, terms_for_bias, truncation_bound
from contraflow.registry import register


@register
@dataclass(frozen=True)
class PowerSeries:
    """``sum_{k=1..n} (-1)^{k+1} / k tr J^k`` with Hutchinson traces; biased, and says so.

    Args:
        terms: n; None takes the least n whose Theorem 3 bound is at most ``bias`` nats per
            dimension, resolved from L when called.
        bias: wanted bias, nats per dimension and block, for ``terms=None``.
        probes: Rademacher probes per row.

    Raises:
        ConfigurationError: a number is out of range.

    Example:
        >>> PowerSeries(bias=0.1).resolve(lipschitz=0.5)  # tails .193, .068
        2

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, Algorithm 2 and Theorem 3.
    """

    terms: int | None = None
    bias: float = 1e-4
    probes: int = 1

    def __post_init__(self) -> None:
        if self.terms is not None and not 1 <= self.terms <= MOST_TERMS:
            raise ConfigurationError(
                f"PowerSeries: terms={self.terms}; expected 1 to {MOST_TERMS:,}."
            )
        if not self.bias > 0:
            raise ConfigurationError(f"PowerSeries: bias={self.bias}; expected above 0 nats.")
        if not 1 <= self.probes <= MOST_TERMS:
            raise ConfigurationError(
                f"PowerSeries: probes={self.probes}; expected 1 to {MOST_TERMS:,}."
            )

    def resolve(self, lipschitz: float) -> int:
        """Return the number of terms for the bound L."""
        if self.terms is not None:
            return self.terms
        return terms_for_bias(1, lipschitz, self.bias)

    def draw(
        self,
        shape: torch.Size,
        like: Tensor,
        *,
        lipschitz: float,
        generator: torch.Generator | None = None,
    ) -> Noise:
        """Draw the probes for a batch ``[B, *E]``."""
        count = self.resolve(lipschitz)
        terms = Terms((shape[0],) * count, (1.0,) * count)
        probes = tuple(rademacher(shape, like, generator) for _ in range(self.probes))
        return Noise(probes, (terms,) * self.probes)

    def __call__(self, jacobian: Jacobian, noise: Noise, *, lipschitz: float) -> Tensor:
        """Return the truncated series, ``[B]`` nats."""
        return series_log_det(jacobian, noise)

    def likelihood(self, size: int, lipschitz: float) -> Likelihood:
        """Tell the truncation bound of Theorem 3 for D = ``size``."""
        bound = truncation_bound(size, lipschitz, self.resolve(lipschitz))
        return Likelihood(Kind.TRUNCATED, bound, stochastic=True)
