"""BSDS300: small patches of natural images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contraflow.data.benchmarks._protocol import (
    RELEASE,
    as_splits,
    check_columns,
    check_finite,
    find_files,
)
from contraflow.data.splits import Source, Splits
from contraflow.errors import DataError

_COLUMNS = 63
_ROWS = (1_000_000, 50_000, 250_000)
_PARTS = ("train", "validation", "test")
_RELEASED = ("BSDS300/BSDS300.hdf5",)
_ARRAYS = tuple(f"BSDS300/{part}.npy" for part in _PARTS)


@dataclass(frozen=True)
class Bsds300(Source):
    """Patches of 8 x 8 grey pixels, 63 columns: 1,000,000 / 50,000 / 250,000 rows.

    x is the published benchmark itself, float32: patches with uniform noise below one grey
    level, their mean taken out, and the last pixel, which is then known, left out. So
    log-likelihoods in nats are directly comparable with published ones.

    Three ``.npy`` files may stand for the HDF5 file; they are as comparable as their patches are
    the published ones. They are mapped, not read: the 328 MB take memory only where they are used.

    Args:
        root: data root, with ``BSDS300/BSDS300.hdf5`` or ``BSDS300/{train,validation,test}.npy``
            in it or in ``root/data``; None takes the variable ``CONTRAFLOW_DATA``.
        download: fetch the release (857 MB, all five tables) if the HDF5 file is missing.

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057, appendix D; Zoran and Weiss 2011, "From
        learning models of natural image patches to whole image restoration", ICCV.
    """

    root: str | os.PathLike[str] | None = None
    download: bool = False

    def load(self) -> Splits:
        """Read or map the three parts.

        Raises:
            DataError: a file is missing or malformed, or h5py is not installed.
        """
        paths = find_files("Bsds300", self.root, [_RELEASED, _ARRAYS], fetch=self.download)
        parts = _read_hdf5(*paths) if len(paths) == 1 else [_map_array(path) for path in paths]
        return as_splits("Bsds300", parts, published=_ROWS)


def _read_hdf5(path: Path) -> list[np.ndarray]:
    """Return the three data sets of the released file."""
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{path}: HDF5 files are read by h5py, which cannot be imported ({error}). "
            "Install it: pip install h5py."
        ) from error
    parts = []
    try:
        with h5py.File(path, "r") as file:
            for name in _PARTS:
                stored = file.get(name)
                if not isinstance(stored, h5py.Dataset):
                    raise DataError(
                        f"{path}: got the entries {sorted(file)}, expected the data sets "
                        f"{', '.join(_PARTS)}. Download {RELEASE.url} again."
                    )
                _check_layout(path, stored.shape, stored.dtype)
                rows = np.empty(stored.shape, np.float32)
                if len(rows):
                    stored.read_direct(rows)  # converted on the way: no second copy
                check_finite(path, rows)
                parts.append(rows)
    except OSError as error:
        raise DataError(
            f"{path}: is not a readable HDF5 file ({error}). Download {RELEASE.url} again."
        ) from error
    return parts


def _map_array(path: Path) -> np.ndarray:
    """Return the rows of an NPY file, float32; those stored as float32 are mapped."""
    try:
        # Copy on write: torch gets memory that it may write to, the file stays as it is.
        rows = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: is not a readable .npy file of numbers ({error}). Make it again."
        ) from error
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise DataError(f"{path}: holds several arrays (.npz), expected one array [N, 63].")
    _check_layout(path, rows.shape, rows.dtype)
    check_finite(path, rows)
    return rows


def _check_layout(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind != "f":
        raise DataError(
            f"{path}: got values of dtype {dtype}, expected floating-point numbers. "
            "Is this the released file?"
        )
    if len(shape) != 2:
        raise DataError(f"{path}: got shape {list(shape)}, expected [N, {_COLUMNS}].")
    check_columns(path, shape[1], _COLUMNS)
