"""CSV files, read block by block through pyarrow."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from contraflow.data.tabular.file import TableFile, count
from contraflow.errors import DataError

_compute: Any = pc  # its functions are made at run time, unknown to type checkers
_BLOCK = 2**22  # bytes
_MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none")


class CsvFile(TableFile):
    """Comma-separated numbers under a header of column names, in UTF-8.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names, self._lines_of_header = _read_header(path)

    def _read(self, positions: Sequence[int], size: int) -> Iterator[np.ndarray]:
        places = [str(i) for i in range(len(self.names))]
        ragged: list[tuple[int, int]] = []  # line, number of fields

        def remember(row: pa_csv.InvalidRow) -> str:
            ragged.append((row.number or 0, row.actual_columns))
            return "skip"

        wanted = [places[i] for i in positions]
        done = 0
        try:
            with pa_csv.open_csv(
                self.path,
                pa_csv.ReadOptions(
                    use_threads=False,  # else lines have no numbers
                    block_size=_BLOCK,
                    skip_rows=self._lines_of_header,
                    column_names=places,
                ),
                pa_csv.ParseOptions(
                    newlines_in_values=True,
                    ignore_empty_lines=len(self.names) > 1,  # of one column: a missing value
                    invalid_row_handler=remember,
                ),
                pa_csv.ConvertOptions(
                    include_columns=list(dict.fromkeys(wanted)),
                    column_types={place: pa.string() for place in wanted},
                ),
            ) as reader:
                for batch in reader:
                    named = {p: self._numbers(batch, p, done) for p in dict.fromkeys(wanted)}
                    done += batch.num_rows
                    if ragged:
                        continue  # read on, to count
                    values = np.stack([named[place] for place in wanted], 1)
                    yield from (values[i : i + size] for i in range(0, len(values), size))
        except pa.ArrowException as error:
            if "Empty CSV file" in str(error):
                return
            raise DataError(
                f"{self.path}: cannot be read as CSV ({str(error).splitlines()[0]}). Save it as "
                "comma-separated UTF-8."
            ) from error
        if ragged:
            line, fields = ragged[0]
            raise DataError(
                f"{self.path}: {count(len(ragged), 'row')} ragged, first line {line} with "
                f"{count(fields, 'field')}, expected {len(self.names)} as in the header. Repair "
                "these lines."
            )

    def _numbers(self, batch: pa.RecordBatch, place: str, before: int) -> np.ndarray:
        """Return one column as float64, NaN where a value is missing."""
        texts = _compute.utf8_trim_whitespace(batch.column(place))
        try:
            values = pc.cast(texts, pa.float64())
        except pa.ArrowInvalid:
            missing = _compute.is_in(_compute.utf8_lower(texts), pa.array(_MISSING))
            values = self._with_missing(_compute.if_else(missing, None, texts), place, before)
        return pc.fill_null(values, float("nan")).to_numpy(zero_copy_only=False)

    def _with_missing(self, texts: pa.Array, place: str, before: int) -> pa.Array:
        try:
            return pc.cast(texts, pa.float64())
        except pa.ArrowInvalid:
            name = self.names[int(place)]
            row, text = next((i, t) for i, t in enumerate(texts.to_pylist()) if not _is_number(t))
            raise DataError(
                f"{self.path}: column {name!r} holds text, first {text!r} in data row "
                f"{before + row + 1} (counted from 1, without the header), expected numbers. Leave "
                "the column out by naming the others in columns, or encode it."
                f"{_separator_hint(self.names)}"
            ) from None


def _read_header(path: Path) -> tuple[tuple[str, ...], int]:
    """Return the column names and the lines that they take."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for fields in reader:
                if any(field.strip() for field in fields):
                    names = tuple(field.strip() for field in fields)
                    _check_header(path, names)
                    return names, reader.line_num
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: is not CSV text in UTF-8 ({error}). Save it as comma-separated UTF-8."
        ) from error
    raise DataError(f"{path}: the file is empty, expected a header and rows of numbers.")


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


def _is_number(text: str | None) -> bool:
    """Tell whether a field is a number, or missing."""
    try:
        pc.cast(pa.array([text]), pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
