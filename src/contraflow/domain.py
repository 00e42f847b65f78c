"""The values that each coordinate of x may take."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from contraflow.errors import ConfigurationError
from contraflow.registry import register


@register
@dataclass(frozen=True)
class Domain:
    """The set of one coordinate's values: the reals, an open interval, or a range of integers.

    Args:
        low: lower end; None for no end.
        high: upper end; None for no end.
        integer: whether only the integers from low to high belong to it, both included.

    Raises:
        ConfigurationError: the set is empty, an end is not finite, or integers have no ends.

    Example:
        >>> Domain(0, 16, integer=True).contains(torch.tensor([[3.0, 16.0], [0.5, 1.0]]), 1)
        tensor([ True, False])
    """

    low: float | None = None
    high: float | None = None
    integer: bool = False

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        if not all(abs(end) <= sys.float_info.max for end in ends):
            raise ConfigurationError(f"{self}: got an infinite end, expected a number or None.")
        if self.integer and (len(ends) < 2 or any(end != int(end) for end in ends)):
            raise ConfigurationError(f"{self}: integers need two whole ends.")
        if self.integer and any(abs(end) > 2**53 for end in ends):
            raise ConfigurationError(f"{self}: beyond 2**53 no float tells integers apart.")
        if len(ends) == 2 and not (ends[0] < ends[1]):
            raise ConfigurationError(f"{self}: got an empty set, expected low < high.")

    def __str__(self) -> str:
        """Return ``(0, inf)`` or ``{1, ..., 5}``."""
        low, high = self.ends
        return f"{{{low:g}, ..., {high:g}}}" if self.integer else f"({low:g}, {high:g})"

    @property
    def unbounded(self) -> bool:
        """Tell whether every finite value belongs to the domain."""
        return self.low is None and self.high is None

    @property
    def discrete(self) -> bool:
        """Tell whether some coordinate takes integers only."""
        return self.integer

    def contains(self, x: Tensor, event_dim: int) -> Tensor:
        """Tell which rows of ``[*B, *E]`` lie in the domain, ``[*B]``."""
        inside = self._each(x)
        return inside.flatten(-event_dim).all(-1) if event_dim else inside

    def _each(self, x: Tensor) -> Tensor:
        low, high = self.ends
        if self.integer:
            return (x >= low) & (x <= high) & (x == x.round())
        return (x > low) & (x < high)

    @property
    def ends(self) -> tuple[float, float]:
        """Return low and high as numbers, infinite where there is no end."""
        low = -math.inf if self.low is None else float(self.low)
        return low, math.inf if self.high is None else float(self.high)

    def clamp(self, x: Tensor) -> Tensor:
        """Return x moved inside: the next number inside an open end, the nearest integer."""
        low, high = self.ends
        if self.integer:
            return x.round().clamp(low, high)
        ends = torch.tensor([low, high], dtype=x.dtype, device=x.device)
        inner = torch.nextafter(ends, ends.flip(0))
        return x.clamp(inner[0], inner[1])

    def replace_rows(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return ``[B, *E]`` with one value of the domain in all rows that are not inside."""
        mask = inside.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(mask, x, self._some_value())

    def _some_value(self) -> float:
        if self.low is None or self.high is None:
            return self.low + 1.0 if self.low is not None else (self.high or 0.0) - 1.0
        return self.low if self.integer else (self.low + self.high) / 2

    def place(self, normal: Tensor) -> Tensor:
        """Return points of the domain, well off its ends, for any real numbers."""
        share = 0.1 + 0.8 * torch.sigmoid(normal)
        if self.low is not None and self.high is not None:
            points = self.low + (self.high - self.low) * share
            return points.round() if self.integer else points
        if self.low is not None:
            return self.low + 0.1 + softplus(normal)
        return normal if self.high is None else self.high - 0.1 - softplus(normal)

    def constraint(self, event_dim: int) -> constraints.Constraint:
        """Return the domain as a ``torch.distributions`` constraint."""
        low, high = self.ends
        if self.integer:
            base: constraints.Constraint = constraints.integer_interval(int(low), int(high))
        elif self.unbounded:
            base = constraints.real
        elif self.high is None:
            base = constraints.greater_than(low)
        elif self.low is None:
            base = constraints.less_than(high)
        else:
            base = constraints.interval(low, high)
        return constraints.independent(base, event_dim)


@dataclass(frozen=True)
class ProductDomain:
    """One domain for each column of a vector, with the methods of ``Domain``.

    Args:
        columns: D domains.

    Example:
        >>> domain = ProductDomain((Domain(), Domain(low=0)))
        >>> domain.contains(torch.tensor([[-3.0, 1.0], [3.0, -1.0]]), 1)
        tensor([ True, False])
    """

    columns: tuple[Domain, ...]

    integer = False  # not all of it: likelihoods are in nats, not in bits per dimension

    @property
    def unbounded(self) -> bool:
        """Tell whether every finite vector belongs to the domain."""
        return all(column.unbounded for column in self.columns)

    @property
    def discrete(self) -> bool:
        """Tell whether some column takes integers only."""
        return any(column.integer for column in self.columns)

    def contains(self, x: Tensor, event_dim: int) -> Tensor:
        """Tell which rows of ``[*B, D]`` lie in the domain, ``[*B]``."""
        inside = [column.contains(x[..., i], 0) for i, column in enumerate(self.columns)]
        return torch.stack(inside, -1).all(-1)

    def clamp(self, x: Tensor) -> Tensor:
        """Return ``[*B, D]`` moved inside, column by column."""
        return torch.stack([c.clamp(x[..., i]) for i, c in enumerate(self.columns)], -1)

    def replace_rows(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return ``[B, D]`` with one point of the domain in all rows that are not inside."""
        point = x.new_tensor([column._some_value() for column in self.columns])
        return torch.where(inside[:, None], x, point)

    def place(self, normal: Tensor) -> Tensor:
        """Return points of the domain, well off its ends, for any real numbers ``[*B, D]``."""
        return torch.stack([c.place(normal[..., i]) for i, c in enumerate(self.columns)], -1)

    def constraint(self, event_dim: int) -> constraints.Constraint:
        """Return the domain as a ``torch.distributions`` constraint."""
        return _Stacked(self)


class _Stacked(constraints.Constraint):
    """A product domain as a constraint; ``constraints.stack`` has no event dimension."""

    event_dim = 1

    def __init__(self, domain: ProductDomain) -> None:
        self.domain = domain

    @property
    def is_discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.domain.discrete

    def check(self, value: Tensor) -> Tensor:
        return self.domain.contains(value, 1)

    def __repr__(self) -> str:
        return f"columns in {', '.join(map(str, self.domain.columns))}"
