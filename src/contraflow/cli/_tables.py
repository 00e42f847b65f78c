"""Tables in and out of a command: rows in pieces, a file that is whole or not there."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os.path import samefile
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.lib import format as npy

from contraflow._files import written_beside
from contraflow.data import TableFile, open_table
from contraflow.data.tabular.numpy_file import map_array
from contraflow.errors import ConfigurationError, DataError

ENDINGS = (".csv", ".parquet", ".npy")


class Writer(Protocol):
    """Takes the columns of further rows, by name."""

    def write(self, columns: dict[str, Any]) -> None:
        """Append rows: arrays ``[n, ...]``, or one string for all rows."""
        ...


@contextmanager
def table_writer(out: str | Path | None) -> Iterator[Writer]:
    """Yield a writer for a file of that ending; CSV on standard output if there is none.

    The file appears under its name when all is written, and not before.

    Raises:
        ConfigurationError: the ending is unknown.
    """
    if out is None:
        yield _ArrowWriter(lambda schema: _csv(sys.stdout.buffer, schema))
        return
    path = Path(out)
    if path.suffix not in ENDINGS:
        raise ConfigurationError(f"{path}: expected a name ending in {', '.join(ENDINGS)}.")
    with ExitStack() as stack:
        partial = stack.enter_context(written_beside(path))
        if path.suffix == ".npy":
            yield stack.enter_context(_NpyWriter(partial))
            return
        file = stack.enter_context(partial.open("wb"))
        kind = _csv if path.suffix == ".csv" else pq.ParquetWriter
        writer = _ArrowWriter(lambda schema: kind(file, schema))
        stack.callback(writer.close)
        yield writer


def _csv(file: IO[bytes], schema: pa.Schema) -> pa_csv.CSVWriter:
    header = io.StringIO(newline="")
    csv.writer(header, lineterminator="\n").writerow(schema.names)  # quotes where it must
    file.write(header.getvalue().encode())
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    return pa_csv.CSVWriter(file, schema, write_options=options)


class _ArrowWriter:
    """CSV and Parquet: the schema is that of the first rows."""

    def __init__(self, start: Any) -> None:
        self._start = start
        self._writer: Any = None

    def write(self, columns: dict[str, Any]) -> None:
        rows = max(len(c) for c in columns.values() if not isinstance(c, str))
        arrays = [
            pa.repeat(pa.scalar(c), rows) if isinstance(c, str) else pa.array(c)
            for c in columns.values()
        ]
        batch = pa.record_batch(arrays, names=list(columns))
        if self._writer is None:
            self._writer = self._start(batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _NpyWriter:
    """One array ``[N, ...]``: a single numeric column as it is, several side by side."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._rows = 0
        self._like: np.ndarray | None = None

    def __enter__(self) -> _NpyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._like is not None:
            self._header()  # the same length: numpy leaves room for the number of rows to grow
        self._file.close()

    def write(self, columns: dict[str, Any]) -> None:
        numbers = [np.asarray(c) for c in columns.values() if not isinstance(c, str)]
        rows = numbers[0] if len(numbers) == 1 else np.stack(numbers, 1)
        if self._like is None:
            self._like = rows
            self._header()
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self._rows += len(rows)

    def _header(self) -> None:
        assert self._like is not None
        self._file.seek(0)
        description = npy.header_data_from_array_1_0(self._like)
        description |= {"shape": (self._rows, *self._like.shape[1:]), "fortran_order": False}
        npy.write_array_header_1_0(self._file, description)


def keep_inputs(out: str | Path | None, *inputs: str | None) -> None:
    """Refuse to write over a file that is read.

    Raises:
        ConfigurationError: ``out`` is one of the inputs.
    """
    for path in inputs:
        if out and path and Path(out).exists() and Path(path).exists() and samefile(out, path):
            raise ConfigurationError(f"--out {out}: is the file that is read; name another.")


class Progress:
    """How far a stream of rows is, on standard error, at most every few seconds.

    Args:
        total: rows to come; None if unknown.
        every: seconds between two lines; a terminal shows one line that moves.
    """

    def __init__(self, total: int | None, every: float = 5.0) -> None:
        self.total = total
        self.moving = sys.stderr.isatty()
        self.every = 0.2 if self.moving else every
        self.rows = 0
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        print(self._erase, end="", file=sys.stderr, flush=True)  # what follows starts on it

    @property
    def _erase(self) -> str:
        return "\x1b[K" if self.moving else ""

    def add(self, rows: int) -> None:
        """Count rows, and show them if it is time."""
        self.rows += rows
        if time.monotonic() - self._shown >= self.every:
            self._shown = time.monotonic()
            end = "\r" if self.moving else "\n"
            print(self._erase + self._line(), end=end, file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = self.rows / seconds
        line = f"{self.rows:,} rows, {speed:,.0f} rows/s"
        if self.total:
            left = (self.total - self.rows) / max(speed, 1e-9)
            line = (
                f"{self.rows:,} of {self.total:,} rows ({self.rows / self.total:.0%}), "
                f"{speed:,.0f} rows/s, {left:,.0f} s left"
            )
        return line


def event_columns(
    file: TableFile, names: Sequence[str] | None, size: int, what: str
) -> tuple[str, ...]:
    """Return the columns of a file that hold an event, by name or else by place.

    Args:
        file: the table.
        names: names that the model was trained with; None if it had none.
        size: D.
        what: what the columns are, for messages.

    Raises:
        DataError: columns are missing, or their number is not D.
    """
    if names and set(names) <= {*file.names, *file.groups}:
        return file.expand(names)
    nameless = file.path.suffix in (".npy", ".npz")  # its names are ours
    if (not names or nameless) and len(file.names) == size:
        return file.names
    if names and not nameless:
        return file.expand(names)  # names the missing one, and the nearest
    raise DataError(
        f"{file.path}: got {len(file.names)} columns, expected {size}: the entries of {what}, in "
        "the order of training."
    )


def rows_of_events(
    path: str | Path, names: Sequence[str] | None, shape: Sequence[int], chunk: int
) -> tuple[int | None, Iterator[np.ndarray]]:
    """Open a file of events; return their number, if known, and an iterator over pieces.

    Args:
        path: any table; an NPY file may hold events of any shape ``[N, *E]``.
        names: names of the columns of a flat event.
        shape: E.
        chunk: most rows of a piece.

    Raises:
        DataError: the file does not hold such events.
    """
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        array = map_array(path)
        if array.ndim == len(shape) + 1 > 2:
            return len(array), _pieces(path, array, tuple(shape), chunk)
    file = open_table(path)
    columns = event_columns(file, names, math.prod(shape), "an event")
    pieces = (rows.reshape(-1, *shape) for rows in _even(file.chunks(columns, chunk), chunk))
    return file.rows, pieces


def _even(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same rows in pieces of exactly ``size``, the last one shorter."""
    kept: list[np.ndarray] = []
    for piece in pieces:
        kept.append(piece)
        while sum(map(len, kept)) >= size:
            whole = np.concatenate(kept) if len(kept) > 1 else kept[0]
            yield whole[:size]
            kept = [whole[size:]] if len(whole) > size else []
    if kept:
        yield np.concatenate(kept)


def _pieces(
    path: Path, array: np.ndarray, shape: tuple[int, ...], chunk: int
) -> Iterator[np.ndarray]:
    if array.shape[1:] != shape or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: got events of shape {array.shape[1:]} and dtype {array.dtype}, expected "
            f"numbers of shape {shape}."
        )
    for start in range(0, len(array), chunk):
        rows = np.asarray(array[start : start + chunk], np.float64)
        bad = ~np.isfinite(rows).reshape(len(rows), -1).all(1)
        if bad.any():
            raise DataError(
                f"{path}: row {start + int(bad.argmax()) + 1} (counted from 1) holds NaN or "
                "infinity, expected finite numbers."
            )
        yield rows
