"""Tables of numbers from CSV and NPY files."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contraflow.data.splits import Part, Source, Splits
from contraflow.errors import ConfigurationError, DataError, nearest


@dataclass(frozen=True)
class Table(Source):
    """Rows of a CSV or NPY file, shuffled and split, float32, in their own units.

    Standardising is the flow's first transform, not ours: it must be saved with the flow.

    Args:
        path: ``.csv`` with a header of column names, or ``.npy`` ``[N, D]``, whose columns are
            called ``column_0``, ``column_1`` and so on.
        columns: what to model: names, or one string ``"a,b"``; None takes every column that is
            not a context column.
        context_columns: what to condition on, given likewise.
        fraction_validation: part of the rows, rounded to the nearest row.
        fraction_test: the same for the test part.
        seed: seed of the shuffle.

    Raises:
        ConfigurationError: a fraction is not in (0, 1), nothing is left to train on, or a
            column is named twice.

    Example:
        >>> table = Table("power.csv", columns="a, b", context_columns=["c"])
        >>> table.columns, table.context_columns
        (('a', 'b'), ('c',))
    """

    path: str | os.PathLike[str]
    columns: str | Sequence[str] | None = None
    context_columns: str | Sequence[str] = ()
    fraction_validation: float = 0.1
    fraction_test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        columns = None if self.columns is None else _as_names(self.columns)
        context_columns = _as_names(self.context_columns)
        if columns == ():
            raise ConfigurationError("Table: got no columns, expected a name, or None for all.")
        named = (columns or ()) + context_columns
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ConfigurationError(
                f"Table: {twice} named more than once in columns={columns} and "
                f"context_columns={context_columns}; name each column once."
            )
        fractions = (self.fraction_validation, self.fraction_test)
        if not all(0 < fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
            raise ConfigurationError(
                f"Table: got fraction_validation={fractions[0]} and fraction_test={fractions[1]}, "
                "expected both above 0 and their sum below 1."
            )
        object.__setattr__(self, "columns", columns)  # tuples: comparable and hashable
        object.__setattr__(self, "context_columns", context_columns)

    def load(self) -> Splits:
        """Read, check, shuffle and split the rows.

        Raises:
            DataError: the file or a column is missing; a value is text, NaN or infinite; rows
                are ragged or too few; or float32 would blur a column.
        """
        context_columns = _as_names(self.context_columns)
        if self.columns is None:
            names, values = read_table(self.path)
            context_at = [_find(self.path, names, name) for name in context_columns]
            x_at = [i for i in range(len(names)) if i not in context_at]
            if not x_at:
                raise DataError(
                    f"{self.path}: all columns {list(names)} are context, expected at least one "
                    "column to model; take one out of context_columns."
                )
        else:
            names, values = read_table(self.path, _as_names(self.columns) + context_columns)
            context_at = list(range(len(names) - len(context_columns), len(names)))
            x_at = list(range(len(names) - len(context_columns)))

        rows = _to_float32(self.path, names, values)  # [N, D + M]
        test, validation, train = self._shuffle(len(rows))
        x, context = rows[:, x_at], rows[:, context_at] if context_at else None
        parts = [
            Part(x[at], None if context is None else context[at])
            for at in (train, validation, test)
        ]
        return Splits(
            Path(self.path).stem,
            *parts,
            columns=tuple(names[i] for i in x_at),
            context_columns=tuple(names[i] for i in context_at) or None,
        )

    def _shuffle(self, num_rows: int) -> tuple[Tensor, ...]:
        """Return the indices of the test, validation and training rows."""
        num_test = round(self.fraction_test * num_rows)
        num_validation = round(self.fraction_validation * num_rows)
        num_train = num_rows - num_test - num_validation
        if min(num_test, num_validation, num_train) < 1:
            raise DataError(
                f"{self.path}: too few rows: {num_rows} give {num_train} training, "
                f"{num_validation} validation and {num_test} test rows, expected at least one of "
                "each. Add rows, or raise the fractions."
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(num_rows, generator=generator)
        return order.split([num_test, num_validation, num_train])


def read_table(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Read the named columns of a CSV or NPY file, in the order asked for.

    Columns that are not asked for may hold anything.

    Args:
        path: ``.csv`` with a header, or ``.npy`` ``[N, D]``.
        columns: names; None takes all.

    Returns:
        The names, and finite float64 values ``[N, len(names)]``, N >= 1.

    Raises:
        DataError: the file or a column is missing; a value is text, NaN or infinite; or rows
            are ragged or absent.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(
            f"{path}: no such file (looked for {path.absolute()}). Give the path of a .csv or "
            ".npy file."
        )
    readers = {".csv": _read_csv, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path}: got a file of type {path.suffix or 'without an ending'!r}, expected .csv or "
            ".npy. Convert it, or rename it if it is one of these."
        )
    try:
        names, values = readers[path.suffix.lower()](path, columns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if len(values) == 0:
        raise DataError(f"{path}: got no rows, expected at least one row of numbers.")
    _check_finite(path, names, values)
    return names, values


# NPY -------------------------------------------------------------------------------------------


def _read_npy(path: Path, columns: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: is not a readable .npy file of numbers ({error}). Write it with numpy.save "
            "from a float array."
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: holds several arrays (.npz), expected one array [N, D].")
    if array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: got values of dtype {array.dtype}, expected real numbers; "
            "write array.astype(numpy.float64)."
        )
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(
            f"{path}: got shape {list(array.shape)}, expected [N, D] with D >= 1; "
            "write array.reshape(len(array), -1)."
        )
    names = tuple(f"column_{i}" for i in range(array.shape[1]))
    chosen = names if columns is None else tuple(columns)
    return chosen, array[:, [_find(path, names, name) for name in chosen]].astype(np.float64)


# CSV -------------------------------------------------------------------------------------------


def _read_csv(path: Path, columns: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        import pandas as pd
    except ImportError as error:
        raise DataError(
            f"{path}: CSV files are read by pandas, which cannot be imported ({error}). "
            "Install it: pip install pandas."
        ) from error
    names = _scan_csv(path)
    chosen = names if columns is None else tuple(columns)
    positions = [_find(path, names, name) for name in chosen]
    try:
        frame = pd.read_csv(
            path,
            header=0,
            names=list(names),
            index_col=False,
            usecols=sorted(positions),
            skipinitialspace=True,
            low_memory=False,
        )
    except ValueError as error:  # pandas' own parser errors are ValueErrors
        raise DataError(f"{path}: cannot be read as CSV ({error}).") from error
    values = np.empty((len(frame), len(chosen)))
    for i, name in enumerate(chosen):
        entries = frame.loc[:, name]
        if entries.dtype == bool:
            entries = entries.astype(str)  # "True" is text, not 1
        values[:, i] = np.asarray(pd.to_numeric(entries, errors="coerce"), dtype=np.float64)
        text = np.isnan(values[:, i]) & np.asarray(entries.notna())
        if text.any():
            row = int(text.argmax())
            raise DataError(
                f"{path}: column {name!r} holds text in {_count(text.sum(), 'row')}, first "
                f"{str(entries.iloc[row])!r} in data row {row + 1} (counted from 1, without the "
                "header), expected numbers. Leave the column out by naming the others in "
                f"columns, or encode it.{_separator_hint(names)}"
            )
    return chosen, values


def _scan_csv(path: Path) -> tuple[str, ...]:
    """Return the header, after a pass that finds ragged rows: pandas pads or cuts them."""
    names: tuple[str, ...] = ()
    ragged: list[tuple[int, int]] = []  # line, number of fields
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for fields in reader:
                if not fields or (len(fields) == 1 and not fields[0].strip()):
                    continue  # a blank line, which pandas skips too
                if not names:
                    names = tuple(field.strip() for field in fields)
                elif len(fields) != len(names):
                    ragged.append((reader.line_num, len(fields)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: is not CSV text in UTF-8 ({error}). Save it as comma-separated UTF-8."
        ) from error
    if not names:
        raise DataError(f"{path}: the file is empty, expected a header and rows of numbers.")
    _check_header(path, names)
    if ragged:
        line, num_fields = ragged[0]
        raise DataError(
            f"{path}: {_count(len(ragged), 'row')} ragged, first line {line} with "
            f"{_count(num_fields, 'field')}, expected {len(names)} as in the header. "
            "Repair these lines."
        )
    return names


def _check_header(path: Path, names: tuple[str, ...]) -> None:
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: the first line holds only numbers ({', '.join(names[:3])}...), expected a "
            "header of column names. Add one, or the first row would be lost."
        )
    if "" in names:
        raise DataError(
            f"{path}: column {names.index('') + 1} of the header has no name. Name it; if pandas "
            "wrote the file, write it again with index=False."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {twice} more than once. Rename the columns.")


def _separator_hint(names: tuple[str, ...]) -> str:
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        return f" The header is the single field {names[0]!r}: the separator must be a comma."
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# Both ------------------------------------------------------------------------------------------


def _as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Split ``"a, b"`` at its commas; leave a sequence as it is."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(",")) if names.strip() else ()
    return tuple(names)


def _find(path: str | os.PathLike[str], names: Sequence[str], name: str) -> int:
    """Return the position of column ``name``."""
    if name not in names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise DataError(
            f"{path}: no column is called {name!r}{nearest(name, names) or '.'} "
            f"The columns are {shown}."
        )
    return list(names).index(name)


def _check_finite(path: Path, names: Sequence[str], values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    row, column = (int(i) for i in np.argwhere(bad)[0])
    what = "NaN or missing" if np.isnan(values[row, column]) else "infinite"
    where = ", ".join(repr(names[i]) for i in np.flatnonzero(bad.any(0))[:20])
    raise DataError(
        f"{path}: {_count(bad.sum(), 'value')} NaN, missing or infinite in "
        f"{_count(bad.any(1).sum(), 'row')} and columns {where}; the first is {what}, in data row "
        f"{row + 1} (counted from 1), column {names[column]!r}. Expected finite numbers: remove "
        "these rows, or leave the columns out."
    )


def _to_float32(path: str | os.PathLike[str], names: Sequence[str], values: np.ndarray) -> Tensor:
    """Round to float32 ``[N, D]``, unless that would change a column's distribution."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float32)
        error = np.abs(rounded - values).max(0)  # [D]
        spread = values.std(0)
    blurred = ~np.isfinite(rounded).all(0) | (
        (error > 1e-3 * spread) & (values.max(0) > values.min(0))
    )
    if blurred.any():
        i = int(blurred.argmax())
        raise DataError(
            f"{path}: float32 rounds column {names[i]!r} by up to {error[i]:.1e}, against its "
            f"standard deviation {spread[i]:.1e}; expected at most a thousandth of it. Subtract "
            "an offset from the column, or change its unit."
        )
    return torch.from_numpy(rounded)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
