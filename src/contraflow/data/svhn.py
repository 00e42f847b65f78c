"""The street view house numbers from their MATLAB files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from contraflow.data.download import Remote
from contraflow.data.public import Home, PublicImages
from contraflow.errors import DataError

_URL = "http://ufldl.stanford.edu/housenumbers/"


@dataclass(frozen=True)
class Svhn(PublicImages):
    """73,257 and 26,032 colour photographs of house numbers, 32 x 32 pixels around one digit.

    x is uint8 ``[N, 3, 32, 32]``: red, green, blue. The default leaves 68,257 images to train on;
    the 531,131 "extra" images are not used. The files lie in ``root/SVHN``, ``root/svhn`` or
    ``root`` itself.

    Reference:
        Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning".
    """

    home: ClassVar[Home] = Home(
        "svhn",
        {
            part: tuple(f"{at}{part}_32x32.mat" for at in ("SVHN/", "svhn/", ""))
            for part in ("train", "test")
        },
        (
            Remote(f"{_URL}train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            Remote(f"{_URL}test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
        ),
        folder="SVHN",
        num_train=73_257,
    )

    def read(self, path: Path) -> Tensor:
        """Read one of the files: uint8 ``[N, 3, 32, 32]``.

        Raises:
            DataError: it is no MATLAB file of such images, or scipy is not installed.
        """
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise DataError(
                f"{path}: MATLAB files are read by scipy, which cannot be imported ({error}). "
                "Install it: pip install scipy."
            ) from error
        try:
            images = loadmat(path, variable_names=["X"]).get("X")
        except Exception as error:  # a damaged file raises whatever its bytes happen to spell
            raise DataError(
                f"{path}: cannot be read as a MATLAB file of version 5 "
                f"({type(error).__name__}: {error}). Delete it and download it again."
            ) from error
        if not isinstance(images, np.ndarray):
            raise DataError(
                f"{path}: holds no array X, expected the images [32, 32, 3, N] under that name. "
                "Is this a file of the cropped digits?"
            )
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[:3] != (32, 32, 3)
            or images.size == 0
        ):
            raise DataError(
                f"{path}: got X of dtype {images.dtype} and shape {list(images.shape)}, expected "
                "uint8 [32, 32, 3, N] with N >= 1. Is this a file of the cropped digits?"
            )
        return torch.from_numpy(np.array(images.transpose(3, 2, 0, 1), order="C"))
