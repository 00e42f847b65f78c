"""What a solver is given: a contraction of independent rows, and a place in its domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.jacobian import Jacobian


@runtime_checkable
class RowMap(Protocol):
    """A map f of a batch that can be restricted to rows, so that finished rows cost nothing."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``f(x)``, ``[R, *E]``."""
        ...

    def rows(self, index: Tensor) -> RowMap:
        """Return the map for the rows in ``index``."""
        ...

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        """Return ``f(x)`` and J, the Jacobian of ``-f``: that of g where ``f = z - g``."""
        ...

    def to(self, dtype: torch.dtype) -> RowMap | None:
        """Return the very same map computed in ``dtype``; None where that cannot be had."""
        ...

    # A map whose inner values may be larger than x also has ``inner_size() -> Tensor``, ``[R]``
    # or a scalar: their norm beyond that of x, which sets what rounding does to f(x).


def inner_size(f: RowMap, like: Tensor) -> Tensor:
    """Return the size of a map's inner values, ``[R]``; zeros where it does not tell."""
    known = getattr(f, "inner_size", None)
    sizes = like.new_zeros(()) if known is None else known().to(like.dtype)
    return sizes.expand(len(like))


class PlainMap:
    """A plain function of the whole batch, seen on some of its rows.

    The function knows its rows by their places only, so it is always asked for the whole batch.
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], whole: Tensor, index: Tensor | None = None
    ) -> None:
        self.f, self.whole, self.index = f, whole, index

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``f(x)`` for the rows in ``index``."""
        if self.index is None:
            return self.f(x)
        whole = self.whole.clone()
        whole[self.index] = x
        return self.f(whole)[self.index]

    def rows(self, index: Tensor) -> PlainMap:
        """Return the function, seen on fewer rows."""
        kept = index if self.index is None else self.index[index]
        return PlainMap(self.f, self.whole, kept)

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        """Refuse: a plain function has no derivative."""
        raise ConfigurationError(
            "this solver needs a map with linearize(x), such as a residual block's, and got a "
            "plain function; use Picard(), Anderson() or Broyden()."
        )

    def to(self, dtype: torch.dtype) -> PlainMap | None:
        """Return None: what the function has captured keeps its dtype."""
        return None


class Iterate(NamedTuple):
    """The active rows of a solve.

    Args:
        x: points, ``[R, *E]``.
        fx: the map's values there, ``[R, *E]``.
        target: the residual at which a row is done, ``[R]``.
        previous: the points before and the map's values there; None at a start.
        jacobian: J at ``x``, for solvers that ask for it.
        memory: what the solver remembers; each tensor begins with the R rows. Empty at first;
            a search that goes on in float64 hands on what it has learned.
        step: steps taken in this dtype, the same for all rows.
    """

    x: Tensor
    fx: Tensor
    target: Tensor
    step: int = 0
    previous: tuple[Tensor, Tensor] | None = None
    jacobian: Jacobian | None = None
    memory: tuple[Tensor, ...] = ()


class Proposal(NamedTuple):
    """Where a solver would go next.

    Args:
        x: points, ``[R, *E]``.
        fx: the map's values there, if the solver has evaluated them.
        memory: what it remembers from now on.
        evaluations: of f, spent on the way, ``[R]`` or one number for all rows.
        products: with J or its transpose, likewise.
    """

    x: Tensor
    fx: Tensor | None = None
    memory: tuple[Tensor, ...] = ()
    evaluations: Tensor | int = 0
    products: Tensor | int = 0
