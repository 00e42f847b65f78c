"""Russian roulette over the power series, with a law that keeps the moments finite.

A geometric tail of ratio q has finite variance only if q > L^2, and a finite fourth moment,
without which standard errors mean nothing, only if q > L^{4/3}. The published settings
(q = .5; Poisson) break this for every useful L. Here the geometric law is mixed with a
defensive tail of ratio L itself:

    P(tail goes on to its k-th term) = w_k = (1 - e) q^{k-1} + e L^{k-1},  w_1 = 1,

and since L > L^{4/3}, second and fourth moments are finite for every certified L.

Reference:
    Chen et al. 2019, arXiv:1906.02735, Theorem 1; Kahn 1955 (roulette).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.jacobian import Jacobian
from contraflow.kinds import Kind, Likelihood
from contraflow.logdet._neumann import Noise, Terms, series_log_det
from contraflow.logdet._strategy import MOST_TERMS, rademacher
from contraflow.registry import register


@dataclass(frozen=True)
class _TailLaw:
    """A law of the number of terms; a subclass spreads it over a batch."""

    decay: float = 0.7
    exact_terms: int = 2
    defence: float = 0.02
    probes: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 < self.decay < 1:
            raise ConfigurationError(f"{name}: decay={self.decay}; expected a ratio in (0, 1).")
        if not 0 <= self.exact_terms <= MOST_TERMS:
            raise ConfigurationError(
                f"{name}: exact_terms={self.exact_terms}; expected 0 to {MOST_TERMS:,}."
            )
        if not 0 < self.defence <= 1:
            raise ConfigurationError(
                f"{name}: defence={self.defence}; expected a share in (0, 1]: without the "
                "defensive tail the variance may be infinite."
            )
        if not 1 <= self.probes <= MOST_TERMS:
            raise ConfigurationError(f"{name}: probes={self.probes}; expected 1 to {MOST_TERMS:,}.")

    def survival(self, lipschitz: float, length: int) -> Tensor:
        """Return ``P(term k is taken)``, k = 1 ... ``length``, float64, non-increasing."""
        k = torch.arange(length, dtype=torch.float64)
        tail = (1 - self.defence) * self.decay**k + self.defence * lipschitz**k
        return torch.cat([torch.ones(self.exact_terms, dtype=torch.float64), tail])[:length]

    def draw(
        self,
        shape: torch.Size,
        like: Tensor,
        *,
        lipschitz: float,
        generator: torch.Generator | None = None,
    ) -> Noise:
        """Draw probes and terms for a batch ``[B, *E]``."""
        probes, terms = [], []
        for _ in range(self.probes):
            probes.append(rademacher(shape, like, generator))
            drawn = self._terms(shape[0], lipschitz, generator)
            assert drawn.order is not None
            terms.append(drawn._replace(order=drawn.order.to(like.device)))
        return Noise(tuple(probes), tuple(terms))

    def _terms(self, batch: int, lipschitz: float, generator: torch.Generator | None) -> Terms:
        raise NotImplementedError(f"{type(self).__name__}._terms")

    def likelihood(self, size: int, lipschitz: float) -> Likelihood:
        """Tell that the value is unbiased."""
        return Likelihood(Kind.UNBIASED, stochastic=True)

    def __call__(self, jacobian: Jacobian, noise: Noise, *, lipschitz: float) -> Tensor:
        """Return the weighted series, ``[B]`` nats, unbiased in value and gradient."""
        return series_log_det(jacobian, noise)

    def _tail_lengths(
        self, count: int, lipschitz: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draw N >= 1 with ``P(N >= k) = w_k`` for ``count`` rows, ``[count]``, on the CPU."""
        ratio = torch.where(
            _uniform(count, generator) < self.defence,
            torch.tensor(lipschitz, dtype=torch.float64),
            torch.tensor(self.decay, dtype=torch.float64),
        )
        # P(1 + floor(ln u / ln q) >= k) = q^{k-1}
        u = _uniform(count, generator).clamp_min(torch.finfo(torch.float64).tiny)
        return 1 + torch.floor(torch.log(u) / torch.log(ratio)).long()


def _uniform(count: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand(count, dtype=torch.float64, generator=generator, device=device).cpu()


@register
@dataclass(frozen=True)
class Roulette(_TailLaw):
    """Unbiased series; every row draws its own number of terms.

    Args:
        decay: q, ratio of the geometric part.
        exact_terms: terms that every row takes before the tail, which always has one.
        defence: e, share of the defensive tail of ratio L.
        probes: Rademacher probes per row.

    Raises:
        ConfigurationError: a number is out of range.

    Example:
        >>> Roulette().survival(lipschitz=0.9, length=3).tolist()[:2]
        [1.0, 1.0]
    """

    def _terms(self, batch: int, lipschitz: float, generator: torch.Generator | None) -> Terms:
        """Draw a length for each row; rows are ordered by length."""
        lengths = self.exact_terms + self._tail_lengths(batch, lipschitz, generator)
        sorted_lengths, order = lengths.sort(descending=True)
        longest = int(sorted_lengths[0]) if batch else 0
        steps = torch.arange(1, longest + 1)
        counts = batch - torch.searchsorted(sorted_lengths.flip(0), steps)
        weights = 1 / self.survival(lipschitz, longest)
        return Terms(tuple(counts.tolist()), tuple(weights.tolist()), order)


@register
@dataclass(frozen=True)
class NestedRoulette(_TailLaw):
    """Unbiased series; term k is evaluated on a nested, shrinking part of the batch.

    Term k takes the first ``floor(B w_k)`` rows of a fresh permutation, weighted by the
    reciprocal of that share; past the last whole row, one row goes on with the conditional
    probability. The number of products barely varies and its noise averages over the batch.

    Args:
        decay: q, ratio of the geometric part.
        exact_terms: terms that every row takes.
        defence: e, share of the defensive tail of ratio L.
        probes: Rademacher probes per row.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def _terms(self, batch: int, lipschitz: float, generator: torch.Generator | None) -> Terms:
        """Draw a permutation, and how far its first row goes."""
        device = "cpu" if generator is None else generator.device
        order = torch.randperm(batch, generator=generator, device=device)
        counts, weights = self._nested(batch, lipschitz, generator)
        return Terms(counts, weights, order)

    def _nested(
        self, batch: int, lipschitz: float, generator: torch.Generator | None
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        if batch == 0:
            return (), ()
        u = float(_uniform(1, generator))
        counts: list[int] = []
        weights: list[float] = []
        block = 64
        share = self.survival(lipschitz, block).tolist()
        k = 0
        while True:
            if k == len(share):
                share = self.survival(lipschitz, len(share) * 2).tolist()
            rows = int(batch * share[k] + 1e-9)  # floor, safe against 31.999999 for 32
            if rows >= 1:
                counts.append(rows)
                weights.append(batch / rows)
            elif batch * share[k] > u:  # one row, alive with probability B w_k
                counts.append(1)
                weights.append(1 / share[k])
            else:
                return tuple(counts), tuple(weights)
            k += 1
