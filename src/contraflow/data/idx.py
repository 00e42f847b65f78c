"""The idx format of MNIST's files."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

from contraflow.errors import DataError


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
