"""MNIST with each pixel black or white, drawn once and for all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from contraflow.data.download import Remote
from contraflow.data.public import Home
from contraflow.data.splits import Part, Source, Splits
from contraflow.errors import DataError

_PIXELS = 784
_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_FOLDER = "binarized_mnist"
_SHA256 = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}


@dataclass(frozen=True)
class BinarizedMnist(Source):
    """50,000, 10,000 and 10,000 digits of 28 x 28 pixels, each 0 or 1.

    x is uint8 ``[N, 1, 28, 28]``. Each pixel was drawn once, with its grey level as the chance of
    a 1; the split is the published one. The test images are sorted by digit: a part of them is
    no sample of the whole.

    The files are ``train``, ``valid`` and ``test.npy``, uint8 ``[N, 784]``, in
    ``root/binarized_mnist``, or the published ``binarized_mnist_train.amat`` and so on, there or
    in ``root`` itself.

    Args:
        root: data root; None takes the variable ``CONTRAFLOW_DATA``.
        download: fetch the published files if any is missing; each is checked by its hash.

    Reference:
        Salakhutdinov and Murray 2008, "On the Quantitative Analysis of Deep Belief Networks";
        the files are those of Larochelle and Murray 2011.
    """

    root: str | os.PathLike[str] | None = None
    download: bool = False

    home: ClassVar[Home] = Home(
        "binarized_mnist",
        {
            part: (
                f"{_FOLDER}/{part}.npy",
                f"{_FOLDER}/binarized_mnist_{part}.amat",
                f"binarized_mnist_{part}.amat",
            )
            for part in _SHA256
        },
        tuple(
            Remote(f"{_URL}binarized_mnist_{part}.amat", f"sha256:{digest}")
            for part, digest in _SHA256.items()
        ),
        folder=_FOLDER,
        num_train=50_000,
    )

    def load(self) -> Splits:
        """Read the images.

        Raises:
            DataError: a file is missing or damaged, or holds anything but rows of 784 zeros and
                ones.
        """
        paths = self.home.locate(self.root, fetch=self.download)
        parts = (Part(_read(paths[part])) for part in ("train", "valid", "test"))
        return Splits(self.home.name, *parts, num_bins=2)


def _read(path: Path) -> Tensor:
    """Return uint8 ``[N, 1, 28, 28]``."""
    pixels = _read_npy(path) if path.suffix == ".npy" else _read_amat(path)
    if len(pixels) == 0:
        raise DataError(f"{path}: got no rows, expected at least one of {_PIXELS} pixels.")
    if pixels.max() > 1:
        raise DataError(
            f"{path}: got values up to {pixels.max()}, expected 0 and 1. Grey levels are read by "
            "Mnist; rounding them would be another data set."
        )
    return torch.from_numpy(pixels).reshape(-1, 1, 28, 28)


def _read_npy(path: Path) -> np.ndarray:
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: is not a readable .npy file ({error}). Delete it and fetch it again."
        ) from error
    if not isinstance(pixels, np.ndarray):
        pixels.close()
        raise DataError(f"{path}: holds several arrays (.npz), expected one array [N, {_PIXELS}].")
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{path}: got values of dtype {pixels.dtype}, expected uint8 zeros and ones; write "
            "array.astype(numpy.uint8) if these are the binary images."
        )
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DataError(
            f"{path}: got shape {list(pixels.shape)}, expected [N, {_PIXELS}]; write "
            f"array.reshape(-1, {_PIXELS})."
        )
    return np.ascontiguousarray(pixels)


def _read_amat(path: Path) -> np.ndarray:
    """Read lines of 784 digits with spaces between."""
    rows = bytearray()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                entries = line.split()
                row = b"".join(entries)
                if not entries:
                    continue
                if len(entries) != _PIXELS or len(row) != _PIXELS or row.strip(b"01"):
                    raise DataError(
                        f"{path}: line {number} has {len(entries)} entries and starts with "
                        f"{line[:20]!r}, expected {_PIXELS} zeros and ones with spaces between. "
                        "The file is truncated or damaged: delete it and fetch it again."
                    )
                rows += row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    return np.frombuffer(rows, np.uint8).reshape(-1, _PIXELS) - ord("0")
