"""What a log-determinant strategy is, and the truncation bound that several share."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from contraflow.jacobian import Jacobian
from contraflow.kinds import Likelihood

MOST_TERMS = 100_000  # terms or probes: more would not end, whoever asks for them


@runtime_checkable
class LogDet(Protocol):
    """A way to compute ``ln det(I + J)``: a frozen dataclass, without L and without state."""

    def draw(
        self,
        shape: torch.Size,
        like: Tensor,
        *,
        lipschitz: float,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Draw the noise for a batch ``[B, *E]``, eagerly; None for a deterministic strategy.

        The law of a random length depends on the branch's bound, which is why ``lipschitz``
        is given here as well as in the call.
        """
        ...

    def __call__(self, jacobian: Jacobian, noise: Any, *, lipschitz: float) -> Tensor:
        """Return ``ln det(I + J)``, ``[B]`` nats; a pure function of its arguments."""
        ...

    def likelihood(self, size: int, lipschitz: float) -> Likelihood:
        """Tell how exact the value is for D = ``size`` and bound L."""
        ...


def truncation_bound(size: int, lipschitz: float, terms: int) -> float:
    """Bound ``|PS(n) - ln det(I + J)|`` in nats by ``d * sum_{k > n} L^k / k``.

    The tail itself is summed: the closed form minus the partial sum would cancel.

    Args:
        size: d, entries of an event.
        lipschitz: L < 1.
        terms: n.

    Example:
        >>> f"{truncation_bound(1, 0.5, 0):.6f}"  # -ln(1 - L)
        '0.693147'

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, Theorem 3.
    """
    total, k = 0.0, terms + 1
    while True:
        # What is left after term k is at most L^(k+1) / ((k+1)(1-L)): stop when it cannot matter.
        total += lipschitz**k / k
        rest = lipschitz ** (k + 1) / ((k + 1) * (1 - lipschitz))
        if rest <= 1e-6 * total or k - terms > 10_000:
            return size * (total + rest)
        k += 1


def terms_for_bias(size: int, lipschitz: float, bias: float) -> int:
    """Return the least n whose truncation bound is at most ``bias`` nats.

    Example:
        >>> terms_for_bias(1, 0.5, 0.1)  # tails .193, .068
        2
    """
    low, high = 1, 1
    while truncation_bound(size, lipschitz, high) > bias:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if truncation_bound(size, lipschitz, middle) > bias:
            low = middle + 1
        else:
            high = middle
    return high


def rademacher(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw independent signs of the shape, dtype and device asked for.

    With a generator on another device the draw happens there and is then moved.
    """
    device = like.device if generator is None else generator.device
    bits = torch.randint(0, 2, shape, generator=generator, device=device)
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1)


def event_sum(product: Tensor, event_dim: int) -> Tensor:
    """Sum over the last ``event_dim`` dimensions."""
    return product.sum(tuple(range(-event_dim, 0))) if event_dim else product


def event_size(shape: torch.Size) -> int:
    """Return the entries of an event for a batch ``[B, *E]``."""
    return math.prod(shape[1:])
