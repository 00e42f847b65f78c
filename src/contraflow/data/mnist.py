"""MNIST from its four standard idx files."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contraflow.data.root import data_root
from contraflow.data.splits import Part, Source, Splits
from contraflow.errors import ConfigurationError, DataError

_TRAIN, _TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_WANTED = (
    f"Download {_TRAIN}.gz and {_TEST}.gz, for example from "
    "https://ossci-datasets.s3.amazonaws.com/mnist/, into ROOT/MNIST/raw; they may stay packed."
)


@dataclass(frozen=True)
class Mnist(Source):
    """60,000 and 10,000 images of 28 x 28 pixels in 256 grey levels.

    x stays uint8 ``[N, 1, 28, 28]``: 47 MB instead of 188. Pad nothing and repeat no channel:
    bits per dimension at other shapes cannot be compared.

    The last ``num_validation`` training images validate, in the files' order, so the split
    needs no seed. The default leaves 55,000 to train on; tables that split 50,000 / 10,000 need
    ``num_validation=10_000``.

    Args:
        root: data root; the images lie in ``root/MNIST/raw`` or in ``root`` itself, gzipped or
            not. None takes the variable ``CONTRAFLOW_DATA``.
        num_validation: how many training images validate.

    Raises:
        ConfigurationError: ``num_validation`` is below 1.
    """

    root: str | os.PathLike[str] | None = None
    num_validation: int = 5_000

    def __post_init__(self) -> None:
        if self.num_validation < 1:
            raise ConfigurationError(
                f"Mnist: got num_validation={self.num_validation}, expected at least 1."
            )

    def load(self) -> Splits:
        """Read the images.

        Raises:
            DataError: a file is missing, is not an idx file of 28 x 28 bytes, or is cut short;
                or too few training images are left.
        """
        root = data_root(self.root, wanted=_WANTED)
        train, test = _read_images(root, _TRAIN), _read_images(root, _TEST)
        num_train = len(train) - self.num_validation
        if num_train < 1:
            raise DataError(
                f"Mnist: got {len(train)} training images and "
                f"num_validation={self.num_validation}, which leaves none to train on; "
                "lower num_validation."
            )
        parts = (train[:num_train], train[num_train:], test)
        return Splits("mnist", *(Part(x) for x in parts), num_bins=256)


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped if its name ends in ``.gz``.

    The file is a magic number ``0, 0, 8, ndim`` (8: unsigned byte), ``ndim`` sizes of four
    bytes, largest byte first, and the values.

    Returns:
        uint8 tensor of the sizes that the file states.

    Raises:
        DataError: the file cannot be read, is no such file, or has another length than it states.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Download it again.") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] == 0:
        raise DataError(
            f"{path}: bad magic number, got bytes {data[:4].hex(' ') or 'none'}, expected "
            "00 00 08 and the number of dimensions (an idx file of unsigned bytes). "
            "Download it again."
        )
    start = 4 + 4 * data[3]
    sizes = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(sizes)
    if len(data) != expected:
        stated = f"{expected} for sizes {sizes}" if len(data) >= start else f"{start} or more"
        raise DataError(
            f"{path}: got {len(data)} bytes, expected {stated}: the file is truncated or damaged. "
            "Download it again."
        )
    # bytearray: a tensor over immutable bytes would warn that it can be written to.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].reshape(sizes)


def _read_images(root: Path, name: str) -> Tensor:
    path = _find(root, name)
    images = read_idx(path)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise DataError(
            f"{path}: got sizes {list(images.shape)}, expected [N, 28, 28] with N >= 1. "
            "Is this the images' file of MNIST?"
        )
    return images.unsqueeze(1)


def _find(root: Path, name: str) -> Path:
    """Return the first of the file's usual places; the unpacked file before the ``.gz``."""
    folders = (root / "MNIST" / "raw", root)
    candidates = [folder / f"{name}{end}" for folder in folders for end in ("", ".gz")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise DataError(f"Mnist: found none of {tried}. {_WANTED}")
