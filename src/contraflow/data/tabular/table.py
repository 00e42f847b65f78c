"""The user's own tables as a data source."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from contraflow.data.splits import Part, Source, Splits
from contraflow.data.store import RowStore, split_rows
from contraflow.data.tabular.columns import ColumnStatistics, Supports, warn_of_atoms
from contraflow.data.tabular.file import TableFile
from contraflow.data.tabular.reading import open_table
from contraflow.domain import Domain
from contraflow.errors import ConfigurationError, DataError

Names = str | Sequence[str]


@dataclass(frozen=True)
class Table(Source):
    """Rows of a CSV, Parquet, NPY or NPZ file, split at random, float32, in their own units.

    The file is read once, piece by piece; rows beyond 256 MB are kept in a temporary file that
    is mapped into memory, so a table may be larger than memory. Values are not changed:
    standardising and the bijections of bounded columns are the flow's first transforms, for
    they must be saved with it.

    Args:
        path: the file, as for ``open_table``.
        columns: what to model: names, or one string ``"a,b"``; None takes every column that has
            no other role.
        context_columns: what to condition on, given likewise.
        weight_column: how much each row counts, 0 or more; None for equal weights.
        exclude: columns to leave out, for ``columns=None``.
        bounds: ends of columns, ``{"a": (0, 1), "b": (0, None)}``; None for no end.
        ordinal: columns of whole numbers, which are dequantised.
        find: find the domains of the other columns: up to 256 whole numbers in a row are taken
            for levels, values that fill [0, 1], [-1, 1] or [0, 100] for an interval, values
            that crowd above 0 for positive ones. What was found is part of the saved model.
        validation_path: file of the validation rows; None takes them from ``path``.
        test_path: file of the test rows, likewise.
        fraction_validation: part of the rows, rounded to the nearest row.
        fraction_test: the same for the test part.
        seed: seed of the split.

    Raises:
        ConfigurationError: a fraction is not in (0, 1), nothing is left to train on, or a
            column is named twice.

    Example:
        >>> table = Table("power.csv", columns="a, b", context_columns=["c"])
        >>> table.columns, table.context_columns
        (('a', 'b'), ('c',))
    """

    path: str | os.PathLike[str]
    columns: Names | None = None
    context_columns: Names = ()
    weight_column: str | None = None
    exclude: Names = ()
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None
    ordinal: Names = ()
    find: bool = True
    validation_path: str | os.PathLike[str] | None = None
    test_path: str | os.PathLike[str] | None = None
    fraction_validation: float = 0.1
    fraction_test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        columns = None if self.columns is None else _as_names(self.columns)
        context_columns = _as_names(self.context_columns)
        if columns == ():
            raise ConfigurationError("Table: got no columns, expected a name, or None for all.")
        weight = () if self.weight_column is None else (self.weight_column,)
        named = (columns or ()) + context_columns + weight
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ConfigurationError(
                f"Table: {twice} named more than once in columns={columns}, context_columns="
                f"{context_columns} and weight_column={self.weight_column}; name each column once."
            )
        fractions = (self.fraction_validation, self.fraction_test)
        if not all(0 < fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
            raise ConfigurationError(
                f"Table: got fraction_validation={fractions[0]} and fraction_test={fractions[1]}, "
                "expected both above 0 and their sum below 1."
            )
        for name, (low, high) in (self.bounds or {}).items():
            ends = [end for end in (low, high) if end is not None]
            if not all(math.isfinite(end) for end in ends) or ends != sorted(set(ends)):
                raise ConfigurationError(
                    f"Table: got bounds {low}, {high} for {name!r}, expected finite numbers in "
                    "this order, or None for no end."
                )
        tidy = {
            "columns": columns,
            "context_columns": context_columns,
            "exclude": _as_names(self.exclude),
            "ordinal": _as_names(self.ordinal),
        }
        for name, value in tidy.items():
            object.__setattr__(self, name, value)  # tuples: comparable and hashable

    def load(self) -> Splits:
        """Read, check and split the rows.

        Raises:
            DataError: the file or a column is missing; a value is text, NaN, missing or
                infinite; rows are ragged or too few; a modelled column is constant; float32 would
                blur a column; weights are negative; or values lie outside declared bounds.
        """
        with ExitStack() as stack:
            return self._load(stack)

    def _load(self, stack: ExitStack) -> Splits:
        file = open_table(self.path)
        roles = self._roles(file)
        statistics = ColumnStatistics(roles.names)
        labels = (0, 1, 2)  # train, validation, test
        rows = {0: _read(file, roles.names, statistics)}
        for label, path in ((1, self.validation_path), (2, self.test_path)):
            if path is not None:
                rows[label] = _read(open_table(path), roles.names, statistics)
        statistics.check(self.path, roles.x)
        self._check_weights(statistics)
        domains = self._supports(file).domains(self.path, statistics, roles.x)
        warn_of_atoms(self.path, statistics, roles.x, domains or [Domain()] * len(roles.x))
        parts = {label: _Collected(roles, stack) for label in labels}
        for label, tensor in rows.items():
            shares = [] if label else self._shares()
            self._distribute(tensor.numpy(), shares, parts, label)
        return Splits(
            Path(self.path).stem,
            *(parts[label].part(self.path) for label in labels),
            columns=tuple(roles.names[i] for i in roles.x),
            context_columns=tuple(roles.names[i] for i in roles.context) or None,
            support=domains,
        )

    def _roles(self, file: TableFile) -> _Roles:
        context = file.expand(_as_names(self.context_columns))
        weight = () if self.weight_column is None else file.expand((self.weight_column,))
        left_out = {*context, *weight, *file.expand(_as_names(self.exclude))}
        if self.columns is None:
            x = tuple(name for name in file.names if name not in left_out)
            if not x:
                raise DataError(
                    f"{self.path}: all columns {list(file.names)} are context, weights or "
                    "excluded, expected at least one column to model."
                )
        else:
            x = file.expand(_as_names(self.columns))
        names = (*x, *context, *weight)
        ends = (len(x), len(x) + len(context))
        return _Roles(names, list(range(ends[0])), list(range(*ends)), ends[1] if weight else None)

    def _supports(self, file: TableFile) -> Supports:
        bounds = {}
        for key, (low, high) in (self.bounds or {}).items():
            for name in file.expand((key,)):
                bounds[name] = (low, high)
        return Supports(bounds, file.expand(_as_names(self.ordinal)), self.find)

    def _check_weights(self, statistics: ColumnStatistics) -> None:
        if self.weight_column is None:
            return
        low, high = statistics.low[-1], statistics.high[-1]
        if low < 0 or high <= 0:
            raise DataError(
                f"{self.path}: the weights in column {self.weight_column!r} lie in [{low:g}, "
                f"{high:g}], expected numbers of 0 or more that are not all 0."
            )

    def _shares(self) -> list[tuple[int, float]]:
        shares = [(1, self.fraction_validation), (2, self.fraction_test)]
        given = (self.validation_path, self.test_path)
        return [share for share, path in zip(shares, given, strict=True) if path is None]

    def _distribute(
        self,
        rows: np.ndarray,
        shares: list[tuple[int, float]],
        parts: dict[int, _Collected],
        rest: int,
    ) -> None:
        """Append the rows to the parts that they are drawn for."""
        wanted = [round(share * len(rows)) for _, share in shares]
        left = len(rows) - sum(wanted)
        if min([*wanted, left]) < 1:
            raise DataError(
                f"{self.path}: too few rows: {len(rows)} give {left} to train on and "
                f"{' and '.join(map(str, wanted))} to validate and test, expected at least one of "
                "each. Add rows, or raise the fractions."
            )
        start = 0
        for labels in split_rows(len(rows), [share for _, share in shares], seed=self.seed):
            piece = rows[start : start + len(labels)]
            start += len(labels)
            for at, label in enumerate([*(label for label, _ in shares), rest]):
                parts[label].append(piece[labels == at])


@dataclass(frozen=True)
class _Roles:
    """Names of all columns that are read, and the places of each role among them."""

    names: tuple[str, ...]
    x: list[int]
    context: list[int]
    weight: int | None


class _Collected:
    """The rows of one part, by role."""

    def __init__(self, roles: _Roles, stack: ExitStack) -> None:
        self.roles = roles
        self.x, self.context, self.weights = (
            stack.enter_context(RowStore(shape, np.float32))
            for shape in ((len(roles.x),), (len(roles.context),), ())
        )

    def append(self, rows: np.ndarray) -> None:
        self.x.append(rows[:, self.roles.x])
        if self.roles.context:
            self.context.append(rows[:, self.roles.context])
        if self.roles.weight is not None:
            self.weights.append(rows[:, self.roles.weight])

    def part(self, path: object) -> Part:
        context = self.context.tensor() if self.roles.context else None
        weights = None if self.roles.weight is None else self.weights.tensor()
        if weights is not None and not bool((weights > 0).any()):
            raise DataError(
                f"{path}: all rows of a part have weight 0, expected some above 0. Choose another "
                "seed or larger fractions."
            )
        return Part(self.x.tensor(), context, weights)


def _read(file: TableFile, names: Sequence[str], statistics: ColumnStatistics) -> torch.Tensor:
    with RowStore((len(names),), np.float32) as store:
        for values in file.chunks(names):
            store.append(statistics.add(values))
        return store.tensor()


def _as_names(names: Names) -> tuple[str, ...]:
    """Split ``"a, b"`` at its commas; leave a sequence as it is."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(",")) if names.strip() else ()
    return tuple(names)
