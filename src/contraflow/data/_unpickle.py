"""Pickles of plain values and numpy arrays, read without running what else they name."""

from __future__ import annotations

import _codecs
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from contraflow.errors import DataError


def unpickle_arrays(path: Path) -> Any:
    """Read a pickle of numbers, text, lists, dictionaries and numpy arrays.

    A pickle is a program that may call whatever can be imported. Here it may call what rebuilds
    a numpy array, and nothing else. Text that Python 2 wrote comes as bytes.

    Raises:
        DataError: the pickle names anything else, is damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="bytes").load()
    except _RefusedError as error:
        raise DataError(
            f"{path}: the pickle wants to call {error}, expected numpy arrays and plain values "
            "alone. It was not called, for it might do harm. Download the published file."
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise DataError(
            f"{path}: cannot be read as a pickle ({type(error).__name__}: {error}): the file is "
            "truncated or damaged. Delete it and download it again."
        ) from error


class _RefusedError(Exception):
    """The pickle names something that rebuilds no array."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _allowed()
        if (module, name) not in allowed:
            raise _RefusedError(f"{module}.{name}")
        return allowed[module, name]


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    """Return what rebuilds arrays: numpy 1 says ``numpy.core``, numpy 2 ``numpy._core``."""
    # The function that an array's own __reduce__ names: where it is imported from has changed.
    reconstruct: Any = np.empty(0).__reduce__()[0]

    # Made anew for each pickle, which could set attributes of a function that others share.
    def from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> Any:
        return np.frombuffer(buffer, dtype).reshape(shape, order=order)

    allowed: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _codecs.encode,  # bytes, as protocols below 3 write them
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer  # protocol 5
    return allowed
