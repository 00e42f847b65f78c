"""What every data source returns: three parts, their columns and their grey levels."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from contraflow.domain import Domain
from contraflow.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """The rows of one split.

    Args:
        x: data in their own units, ``[N, *event]``.
        context: what the density is conditioned on, ``[N, M]``; None if nothing.
        weights: how much each row counts in a mean, ``[N]``, 0 or more; None for equal weights.

    Raises:
        DataError: no row, no event dimension, a context of another length, or weights that are
            negative, not finite or all zero.

    Example:
        >>> part = Part(torch.zeros(5, 1, 8, 8))
        >>> part, len(part)
        (Part(x=float32 [5, 1, 8, 8], context=None), 5)
    """

    x: Tensor
    context: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.x.numel() == 0:
            raise DataError(
                f"Part: got x of shape {list(self.x.shape)}, expected [N, *event] with at least "
                "one row and one event dimension; a single column needs x.unsqueeze(-1)."
            )
        context = self.context
        if context is not None and (
            context.ndim != 2 or len(context) != len(self.x) or context.shape[1] == 0
        ):
            raise DataError(
                f"Part: got context of shape {list(context.shape)}, expected "
                f"[{len(self.x)}, M], one row for each row of x."
            )
        if self.weights is not None:
            check_weights(self.weights, len(self.x))

    def rows(self, index: Tensor | slice) -> Part:
        """Return the part of these rows."""
        context, weights = self.context, self.weights
        return Part(
            self.x[index],
            None if context is None else context[index],
            None if weights is None else weights[index],
        )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Part(x={_summary(self.x)}, context={_summary(self.context)})"


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, split.

    Validation chooses a model, test reports it; never the other way round.

    Args:
        name: name of the data set.
        train: rows to fit.
        validation: rows to stop and choose by.
        test: rows to report.
        columns: names of the entries of a flat event; None for images.
        context_columns: names of the entries of the context; None if unnamed or absent.
        num_bins: x holds the integers 0, ..., num_bins - 1, to be dequantised; None for
            continuous data.
        support: domain of each column of a flat event; None for the real line.

    Raises:
        DataError: the parts disagree in event shape, dtype or context; a name is missing or
            given twice; a level lies outside 0, ..., num_bins - 1; or the
            number of domains is not that of the columns.

    Example:
        >>> part = Part(torch.zeros(5, 2), context=torch.zeros(5, 3))
        >>> splits = Splits("zeros", part, part, part, columns=("a", "b"))
        >>> splits.event_shape, splits.context_features
        (torch.Size([2]), 3)
    """

    name: str
    train: Part
    validation: Part
    test: Part
    _: KW_ONLY
    columns: tuple[str, ...] | None = None
    context_columns: tuple[str, ...] | None = None
    num_bins: int | None = None
    support: tuple[Domain, ...] | None = None

    def __post_init__(self) -> None:
        expected = _signature(self.train)
        for label, part in (("validation", self.validation), ("test", self.test)):
            if _signature(part) != expected:
                raise DataError(
                    f"{self.name}: the {label} part is {part}, but the training part is "
                    f"{self.train}; event shape, dtype and context must agree."
                )
        flat = self.event_shape[0] if len(self.event_shape) == 1 else None
        _check_names(self.name, "columns", self.columns, flat)
        _check_names(self.name, "context_columns", self.context_columns, self.context_features)
        if self.support is not None and len(self.support) != flat:
            raise DataError(f"{self.name}: got {len(self.support)} domains for {flat} columns.")
        if self.num_bins is not None:
            for part in (self.train, self.validation, self.test):
                _check_levels(self.name, part.x, self.num_bins)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one row of x."""
        return self.train.x.shape[1:]

    @property
    def context_features(self) -> int:
        """Entries M of one row of the context; 0 without context."""
        return 0 if self.train.context is None else self.train.context.shape[1]


class Source:
    """A data set that can be read and split; every set here is a frozen dataclass of options."""

    def load(self) -> Splits:
        """Read the data.

        Raises:
            DataError: the data are missing or malformed.
        """
        raise NotImplementedError(f"{type(self).__name__}.load")


def check_weights(weights: Tensor, rows: int) -> None:
    """Refuse weights that are no weights.

    Raises:
        DataError: their shape is not ``[rows]``, or they are negative, not finite or all zero.
    """
    if weights.shape != (rows,):
        raise DataError(f"weights: got shape {list(weights.shape)}, expected [{rows}].")
    bad = ~(weights.isfinite() & (weights >= 0))
    if bool(bad.any()) or not bool((weights > 0).any()):
        row = int(bad.nonzero()[0]) if bool(bad.any()) else 0
        raise DataError(
            f"weights: got {weights[row].item()} in row {row + 1} (counted from 1), expected "
            "numbers of 0 or more that are not all 0."
        )


def _summary(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _signature(part: Part) -> tuple[object, ...]:
    """What all parts of one data set share."""
    context = part.context
    of_context = None if context is None else (context.shape[1], context.dtype)
    return part.x.shape[1:], part.x.dtype, of_context


def _check_names(
    name: str, label: str, names: tuple[str, ...] | None, expected: int | None
) -> None:
    if names is None:
        return
    if len(names) != expected:
        wanted = "None, since x is not flat" if expected is None else f"{expected} names"
        raise DataError(f"{name}: got {label}={names}, expected {wanted}.")
    if len(set(names)) != len(names):
        raise DataError(f"{name}: got {label}={names}, expected every name once.")


def _check_levels(name: str, x: Tensor, num_bins: int) -> None:
    low, high = x.min().item(), x.max().item()
    whole = not x.is_floating_point() or bool((x == x.round()).all())  # NaN is not whole
    if not whole or low < 0 or high > num_bins - 1:
        raise DataError(
            f"{name}: got values in [{low:g}, {high:g}]{'' if whole else ', not all integers'}, "
            f"expected the integers 0 to {num_bins - 1} because num_bins={num_bins}."
        )
