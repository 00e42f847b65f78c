"""A table in a file: its columns by name, its rows in pieces, every mishap with its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from contraflow.errors import DataError, nearest

CHUNK_ROWS = 2**16


class TableFile(ABC):
    """A file of rows of numbers, read piece by piece.

    Args:
        path: the file.

    Attributes:
        names: column names, in the file's order.
        groups: names that stand for several columns at once.
        rows: number of rows; None where only reading to the end tells.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: tuple[str, ...] = ()
        self.groups: dict[str, tuple[str, ...]] = {}
        self.rows: int | None = None

    @abstractmethod
    def _read(self, positions: Sequence[int], size: int) -> Iterator[np.ndarray]:
        """Yield float64 ``[n, len(positions)]``; NaN for a missing value.

        Raises:
            DataError: a value is text, or the file is damaged.
        """

    def expand(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the column names that these names stand for.

        Raises:
            DataError: a column is missing.
        """
        names: list[str] = []
        for name in columns:
            names += self.groups.get(name, (name,))
        for name in names:
            self._find(name)
        return tuple(names)

    def chunks(
        self, columns: Sequence[str] | None = None, size: int = CHUNK_ROWS
    ) -> Iterator[np.ndarray]:
        """Yield the rows of the named columns in order, in pieces of at most ``size`` rows.

        Args:
            columns: names, in the order wanted; None takes all. Other columns may hold anything.
            size: most rows of a piece.

        Yields:
            Finite float64 ``[n, len(columns)]``, n >= 1.

        Raises:
            DataError: a column is missing; a value is text, NaN, missing or infinite; rows are
                ragged; or there are no rows. Counts are of the whole file.
        """
        names = self.names if columns is None else self.expand(columns)
        bad = _BadValues(self.path, names)
        for values in self._read([self._find(name) for name in names], size):
            bad.look_at(values)
            if not bad.count and len(values):
                yield values  # else read on, to count
        bad.check()

    def _find(self, name: str) -> int:
        """Return the position of a column."""
        if name not in self.names:
            known = [*self.names, *self.groups]
            shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise DataError(
                f"{self.path}: no column is called {name!r}{nearest(name, known) or '.'} "
                f"The columns are {shown}."
            )
        return self.names.index(name)


class _BadValues:
    """Counts values that are not finite, and remembers the first."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = names
        self.rows = 0
        self.count = 0
        self.bad_rows = 0
        self.columns = np.zeros(len(names), bool)
        self.first = ""

    def look_at(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            bad = ~finite
            if not self.count:
                row, column = (int(i) for i in np.argwhere(bad)[0])
                what = "NaN or missing" if np.isnan(values[row, column]) else "infinite"
                self.first = (
                    f"{what}, in data row {self.rows + row + 1} (counted from 1), column "
                    f"{self.names[column]!r}"
                )
            self.count += int(bad.sum())
            self.bad_rows += int(bad.any(1).sum())
            self.columns |= bad.any(0)
        self.rows += len(values)

    def check(self) -> None:
        if self.count:
            where = ", ".join(repr(self.names[i]) for i in np.flatnonzero(self.columns)[:20])
            raise DataError(
                f"{self.path}: {count(self.count, 'value')} NaN, missing or infinite in "
                f"{count(self.bad_rows, 'row')} and columns {where}; the first is {self.first}. "
                "Expected finite numbers: remove these rows, or leave the columns out."
            )
        if not self.rows:
            raise DataError(f"{self.path}: got no rows, expected at least one row of numbers.")


def count(number: int, noun: str) -> str:
    """Return ``"1 row"`` or ``"2 rows"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
