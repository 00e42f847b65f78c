"""Parquet files, read batch by batch through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contraflow.data.tabular.file import TableFile
from contraflow.errors import DataError

_BUFFER = 2**20  # bytes read of a column at once: a row group need not fit in memory


class ParquetFile(TableFile):
    """One Parquet file, or a folder of them in the order of their names.

    Args:
        path: the file or folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self._paths:
            raise DataError(f"{path}: a folder without .parquet files; expected at least one.")
        self._schema: pa.Schema | None = None
        self.rows = 0
        for each in self._paths:
            with self._open(each) as file:
                schema = file.schema_arrow
                self.rows += file.metadata.num_rows
            if self._schema is None:
                self._schema = schema
            elif schema.names != self._schema.names:
                raise DataError(
                    f"{each}: got columns {schema.names}, expected {self._schema.names} as in "
                    f"{self._paths[0].name}."
                )
        assert self._schema is not None
        self.names = tuple(self._schema.names)

    @staticmethod
    def _open(path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is not a readable Parquet file ({_first(error)}).") from error

    def _read(self, positions: Sequence[int], size: int) -> Iterator[np.ndarray]:
        assert self._schema is not None
        columns = [self.names[i] for i in positions]
        for name in columns:
            _check_type(self.path, name, self._schema.field(name).type)
        for path in self._paths:
            with self._open(path) as file:
                try:
                    for batch in file.iter_batches(size, columns=list(dict.fromkeys(columns))):
                        yield np.stack([_numbers(batch.column(name)) for name in columns], 1)
                except (pa.ArrowException, OSError) as error:
                    raise DataError(
                        f"{path}: is damaged ({_first(error)}). Restore it from a copy."
                    ) from error


def _check_type(path: Path, name: str, kind: pa.DataType) -> None:
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(
            f"{path}: column {name!r} holds values of type {kind}, expected numbers. Leave the "
            "column out by naming the others in columns, or encode it."
        )


def _numbers(column: pa.Array) -> np.ndarray:
    """Return float64 ``[n]``, NaN where a value is missing."""
    values = pc.cast(column, pa.float64(), safe=False)
    return pc.fill_null(values, float("nan")).to_numpy(zero_copy_only=False)


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
