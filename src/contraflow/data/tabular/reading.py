"""Which reader a table needs, by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contraflow.data.tabular.file import TableFile
from contraflow.errors import DataError


def open_table(path: str | os.PathLike[str]) -> TableFile:
    """Open a table; nothing but its column names and their types is read yet.

    Args:
        path: ``.csv`` with a header of column names; ``.parquet``, or a folder of such files,
            read in the order of their names; ``.npy`` ``[N, D]``, whose columns are called
            ``column_0`` and so on; ``.npz`` of arrays of the same length, where ``y`` ``[N]``
            or ``[N, 1]`` is the column ``y``, and ``x`` ``[N, D]`` the columns ``x_0`` and so
            on, together called ``x``.

    Raises:
        DataError: the file is missing, of another type, or damaged.
    """
    # The readers are imported when asked for: pyarrow takes its time, NPY does not need it.
    path = Path(path).expanduser()
    suffix = ".parquet" if path.is_dir() else path.suffix.lower()
    if not path.exists():
        raise DataError(
            f"{path}: no such file (looked for {path.absolute()}). Give the path of a .csv, "
            ".parquet, .npy or .npz file."
        )
    try:
        if suffix == ".csv":
            from contraflow.data.tabular.csv_file import CsvFile

            return CsvFile(path)
        if suffix == ".parquet":
            from contraflow.data.tabular.parquet_file import ParquetFile

            return ParquetFile(path)
        if suffix in (".npy", ".npz"):
            from contraflow.data.tabular.numpy_file import NpyFile, NpzFile

            return NpyFile(path) if suffix == ".npy" else NpzFile(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ImportError as error:
        raise DataError(
            f"{path}: needs the package {error.name!r}; install the extra: "
            "pip install 'contraflow[train]'."
        ) from error
    raise DataError(
        f"{path}: got a file of type {path.suffix or 'without an ending'!r}, expected .csv, "
        ".parquet, .npy or .npz. Convert it, or rename it if it is one of these."
    )


def read_table(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Read the named columns of a table whole, in the order asked for.

    Args:
        path: as for ``open_table``.
        columns: names; None takes all. Columns that are not asked for may hold anything.

    Returns:
        The names, and finite float64 values ``[N, len(names)]``, N >= 1.

    Raises:
        DataError: as for ``open_table`` and ``TableFile.chunks``.
    """
    file = open_table(path)
    names = file.names if columns is None else file.expand(columns)
    return names, np.concatenate(list(file.chunks(names)))
