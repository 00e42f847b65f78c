"""NPY and NPZ files, read in pieces: mapped, or straight out of the archive."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from contraflow.data.tabular.file import TableFile
from contraflow.errors import DataError

# What the readers raise when bytes are not what they should be: those of the archive, and those
# of an array's header, which is Python text. RuntimeError says that an archive is encrypted.
_DAMAGES = (
    zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, struct.error,
    ValueError, TypeError, SyntaxError, tokenize.TokenError, OverflowError, MemoryError,
)  # fmt: skip


class NpyFile(TableFile):
    """One array ``[N, D]``, mapped into memory page by page.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        array = map_array(path)
        _check_array(path, "the array", array.dtype, array.shape)
        if array.ndim != 2:
            raise DataError(
                f"{path}: got shape {list(array.shape)}, expected [N, D] with D >= 1; "
                "write array.reshape(len(array), -1)."
            )
        self._array = array
        self.rows = len(array)
        self.names = tuple(f"column_{i}" for i in range(array.shape[1]))

    def _read(self, positions: Sequence[int], size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self._array), size):
            yield np.asarray(self._array[start : start + size], np.float64)[:, list(positions)]


def map_array(path: Path) -> np.ndarray:
    """Map the array of an NPY file into memory; nothing is read yet.

    Raises:
        DataError: the file is not an NPY file of plain values, or cannot be read.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*_DAMAGES, OSError) as error:
        raise DataError(
            f"{path}: is not a readable .npy file of numbers ({error}). Write it with "
            "numpy.save from a float array."
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: holds several arrays; name the file .npz.")
    return array


class NpzFile(TableFile):
    """Several arrays of one length, each read out of the archive as it goes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        headers: dict[str, tuple[tuple[int, ...], bool, np.dtype]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if entry.endswith(".npy"):
                        with archive.open(entry) as file:
                            headers[entry] = _header(file)
        except _DAMAGES as error:
            raise DataError(
                f"{path}: is not a readable .npz file of numbers ({error}). Write it with "
                "numpy.savez from float arrays."
            ) from error
        columns = {entry: header for entry, header in headers.items() if header[0]}  # no scalars
        lengths = {entry: shape[0] for entry, (shape, _, _) in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(
                f"{path}: got arrays of lengths {lengths or 'none'}, expected one length: a row of "
                "the table is a row of each array."
            )
        names: list[str] = []
        self._member: list[tuple[str, int]] = []  # of each column: member and place in it
        self._headers = columns
        for entry, (shape, _, _) in columns.items():
            key, width = entry.removesuffix(".npy"), math.prod(shape[1:])
            own = [key] if width == 1 else [f"{key}_{i}" for i in range(width)]
            if width > 1:
                self.groups[key] = tuple(own)
            names += own
            self._member += [(entry, i) for i in range(width)]
        twice = sorted(
            {name for name in names if names.count(name) > 1} | set(names) & set(self.groups)
        )
        if twice:
            raise DataError(
                f"{path}: the arrays {sorted(lengths)} give the columns {twice} more than once. "
                "Rename the arrays."
            )
        self.names = tuple(names)
        self.rows = next(iter(lengths.values()))

    def _read(self, positions: Sequence[int], size: int) -> Iterator[np.ndarray]:
        members = {entry: None for entry, _ in (self._member[at] for at in positions)}
        for entry in members:
            shape, _, dtype = self._headers[entry]
            _check_array(self.path, f"array {entry.removesuffix('.npy')!r}", dtype, shape)
        try:
            with zipfile.ZipFile(self.path) as archive:
                streams = {entry: _stream(archive, entry, size) for entry in members}
                for start in range(0, self.rows or 0, size):
                    length = min(size, (self.rows or 0) - start)
                    pieces = {entry: next(stream) for entry, stream in streams.items()}
                    values = np.empty((length, len(positions)))
                    for i, at in enumerate(positions):
                        entry, place = self._member[at]
                        values[:, i] = pieces[entry][:, place]
                    yield values
        except (*_DAMAGES, StopIteration) as error:
            raise DataError(
                f"{self.path}: is damaged or cut short ({error or 'the data end early'}). "
                "Restore it from a copy."
            ) from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"NPY format {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(file)


def _stream(archive: zipfile.ZipFile, entry: str, size: int) -> Iterator[np.ndarray]:
    """Yield an array's rows ``[n, width]`` in the file's dtype."""
    with archive.open(entry) as file:
        shape, by_columns, dtype = _header(file)
        width = math.prod(shape[1:])
        if by_columns and width > 1:  # stored column after column: no row is in one place
            whole = np.frombuffer(_exactly(file, dtype.itemsize * math.prod(shape)), dtype)
            whole = whole.reshape(shape, order="F").reshape(shape[0], width)
            yield from (whole[start : start + size] for start in range(0, shape[0], size))
            return
        for start in range(0, shape[0], size):
            rows = min(size, shape[0] - start)
            data = _exactly(file, rows * width * dtype.itemsize)
            yield np.frombuffer(data, dtype).reshape(rows, width)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f"{len(data)} bytes where {size} were stated")
    return data


def _check_array(path: Path, what: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind not in "fiu":
        raise DataError(
            f"{path}: {what} has values of dtype {dtype}, expected real numbers. Leave it out by "
            "naming the others in columns, or write it as numbers."
        )
    if len(shape) == 0 or 0 in shape[1:]:
        raise DataError(f"{path}: {what} has the shape {list(shape)}, expected [N] or [N, D].")
