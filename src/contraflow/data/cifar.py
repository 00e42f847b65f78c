"""CIFAR-10 and CIFAR-100 from their python pickles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from contraflow.data._unpickle import unpickle_arrays
from contraflow.data.download import Remote
from contraflow.data.public import Home, PublicImages
from contraflow.errors import DataError

_URL = "https://www.cs.toronto.edu/~kriz/"
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


@dataclass(frozen=True)
class _CifarImages(PublicImages):
    def read(self, path: Path) -> Tensor:
        """Read one batch: uint8 ``[N, 3, 32, 32]``.

        Raises:
            DataError: it is no pickle of such a batch, or the pickle names anything but arrays.
        """
        batch = unpickle_arrays(path)
        if not isinstance(batch, dict):
            raise DataError(
                f"{path}: holds a {type(batch).__name__}, expected a dictionary with the entry "
                "'data'. Is this a batch of CIFAR's python version?"
            )
        data = batch.get(b"data", batch.get("data"))  # Python 2 wrote bytes, Python 3 text
        if not isinstance(data, np.ndarray):
            raise DataError(
                f"{path}: got the entries {sorted(str(key) for key in batch)[:10]}, expected an "
                "array called 'data'. Is this a batch of CIFAR's python version?"
            )
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or len(data) == 0:
            raise DataError(
                f"{path}: got data of dtype {data.dtype} and shape {list(data.shape)}, expected "
                "uint8 [N, 3072] with N >= 1: the red, green and blue planes of 32 x 32 pixels."
            )
        return torch.from_numpy(np.array(data, order="C")).reshape(-1, 3, 32, 32)


@dataclass(frozen=True)
class Cifar10(_CifarImages):
    """50,000 and 10,000 colour photographs of 32 x 32 pixels, of ten classes.

    x is uint8 ``[N, 3, 32, 32]``: red, green, blue. The default leaves 45,000 images to train on.
    The files lie in ``root/cifar-10-batches-py``. If some of the five training batches are
    missing the others are used, with a warning: no such result stands beside published ones.

    Reference:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    home: ClassVar[Home] = Home(
        "cifar10",
        {
            **{batch: (f"cifar-10-batches-py/{batch}",) for batch in _BATCHES},
            "test": ("cifar-10-batches-py/test_batch",),
        },
        (
            Remote(
                f"{_URL}cifar-10-python.tar.gz",
                "md5:c58f30108f718f92721af3b95e74349a",
                unpack=True,
            ),
        ),
        folder="",
        num_train=50_000,
        optional=_BATCHES,
    )


@dataclass(frozen=True)
class Cifar100(_CifarImages):
    """50,000 and 10,000 colour photographs of 32 x 32 pixels, of a hundred classes.

    x is uint8 ``[N, 3, 32, 32]``: red, green, blue. The default leaves 45,000 images to train on.
    The files lie in ``root/cifar-100-python``.

    Reference:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    home: ClassVar[Home] = Home(
        "cifar100",
        {part: (f"cifar-100-python/{part}",) for part in ("train", "test")},
        (
            Remote(
                f"{_URL}cifar-100-python.tar.gz",
                "md5:eb9058c3a382ffc7106e4002c42a8d85",
                unpack=True,
            ),
        ),
        folder="",
        num_train=50_000,
    )
