"""What a log-likelihood is: exact, unbiased, truncated, numerical or a lower bound."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """Kinds of likelihood, best first; a composition is of its worst part's kind."""

    EXACT = "exact"
    UNBIASED = "unbiased"
    TRUNCATED = "truncated"
    NUMERICAL = "numerical"
    LOWER_BOUND = "lower_bound"

    @property
    def rank(self) -> int:
        """Return the place in the order, 0 for exact."""
        return list(Kind).index(self)


@dataclass(frozen=True)
class Likelihood:
    """How exact a log-determinant or a log-likelihood is.

    Args:
        kind: what it is.
        bias_bound: largest possible |bias|, nats per event.
        stochastic: whether two calls differ, so that a standard error belongs to it.

    Example:
        >>> a, b = Likelihood(Kind.TRUNCATED, bias_bound=1e-4), Likelihood(Kind.EXACT)
        >>> str(a.kind), Likelihood.compose([a, b, a]).bias_bound
        ('truncated', 0.0002)
    """

    kind: Kind = Kind.EXACT
    bias_bound: float = 0.0
    stochastic: bool = False

    @staticmethod
    def compose(parts: Iterable[Likelihood]) -> Likelihood:
        """Return the likelihood of a chain: worst kind, summed bias bounds."""
        parts = list(parts)
        return Likelihood(
            max((part.kind for part in parts), key=lambda kind: kind.rank, default=Kind.EXACT),
            sum(part.bias_bound for part in parts),
            any(part.stochastic for part in parts),
        )
