"""Rows that arrive piece by piece: kept in memory while they are few, in a mapped file beyond."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from contraflow.errors import ConfigurationError

IN_MEMORY = 2**28
"""Bytes beyond which rows go to a temporary file."""


class RowStore:
    """A growing tensor ``[N, *shape]`` whose rows are appended in pieces.

    Up to ``in_memory`` bytes stay in memory. Beyond that the rows are written to a file without
    a name in the folder for temporary files (the variable ``TMPDIR`` chooses it), which is
    mapped at the end: a data set larger than memory can be indexed like any tensor, and the
    system frees the space when the process ends, however it ends.

    As a context it gives its file back if the rows never come to their end.

    Args:
        shape: shape of one row.
        dtype: dtype of the rows.
        in_memory: bytes that may stay in memory.

    Example:
        >>> store = RowStore((2,), np.float32, in_memory=8)
        >>> store.append(np.array([[1.0, 2.0]]))
        >>> store.append(np.array([[3.0, 4.0], [5.0, 6.0]]))
        >>> store.tensor()
        tensor([[1., 2.],
                [3., 4.],
                [5., 6.]])
    """

    def __init__(
        self, shape: Sequence[int], dtype: np.typing.DTypeLike, in_memory: int = IN_MEMORY
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.rows = 0
        self.in_memory = in_memory
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape)
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # what was mapped stays

    def append(self, rows: np.ndarray) -> None:
        """Add ``[n, *shape]``, converted to the store's dtype.

        Raises:
            OSError: the folder for temporary files is full.
        """
        rows = np.ascontiguousarray(rows, self.dtype).reshape(-1, *self.shape)
        try:
            self._file.write(rows.data.cast("B"))
        except OSError as error:
            done = f"after {self.rows * self._row_bytes / 1e9:.1f} GB of rows"
            advice = "set TMPDIR to a folder on a disk with more room"
            raise OSError(
                error.errno, f"{error.strerror} {done}; {advice}", tempfile.gettempdir()
            ) from error
        self.rows += len(rows)

    def tensor(self) -> Tensor:
        """Return all rows ``[N, *shape]``; the store takes no more afterwards."""
        like = torch.from_numpy(np.empty(0, self.dtype))
        size = (self.rows, *self.shape)
        if self.rows == 0:
            return like.new_empty(size)
        self._file.seek(0)
        if self.rows * self._row_bytes <= self.in_memory:
            data = bytearray(self._file.read())
            self._file.close()
            return torch.frombuffer(data, dtype=like.dtype).reshape(size)
        mapped = np.memmap(self._file, dtype=self.dtype, mode="r+", shape=size)
        self._file.close()  # the mapping has a descriptor of its own
        return torch.from_numpy(mapped)


def split_rows(
    rows: int, fractions: Sequence[float], *, seed: int, block: int = 2**16
) -> list[np.ndarray]:
    """Return a label for each row, so that every part has its exact share at random.

    Args:
        rows: N.
        fractions: share of each part but the last, which takes the rest.
        seed: seed of the draw.
        block: rows drawn at once.

    Raises:
        ConfigurationError: the seed is negative.

    Returns:
        Labels ``[N]`` in blocks, 0 for the first part and so on.
    """
    if seed < 0:
        raise ConfigurationError(f"seed={seed}; expected 0 or more, to split the rows by.")
    counts = [round(fraction * rows) for fraction in fractions]
    left = np.array([*counts, rows - sum(counts)])
    generator = np.random.default_rng(seed)
    labels = []
    for start in range(0, rows, block):
        size = min(block, rows - start)
        drawn = generator.multivariate_hypergeometric(left, size, method="marginals")
        left -= drawn
        labels.append(generator.permuted(np.repeat(np.arange(len(left), dtype=np.int8), drawn)))
    return labels
