"""MNIST, and Fashion-MNIST, which has its shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from contraflow.data.download import Remote
from contraflow.data.idx import read_idx
from contraflow.data.public import Home, PublicImages
from contraflow.errors import DataError

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_NAMES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


@dataclass(frozen=True)
class _IdxImages(PublicImages):
    """Images of 28 x 28 pixels in one idx file to train on and one to test."""

    def read(self, path: Path) -> Tensor:
        """Read one of the files: uint8 ``[N, 1, 28, 28]``."""
        images = read_idx(path)
        if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
            raise DataError(
                f"{path}: got sizes {list(images.shape)}, expected [N, 28, 28] with N >= 1. "
                "Is this a file of images? Those of labels are not needed."
            )
        return images.unsqueeze(1)


def _home(name: str, folder: str, remotes: tuple[Remote, ...]) -> Home:
    """Return the home of a set whose two files lie in ``folder`` or in the root, packed or not."""
    files = {
        part: tuple(f"{at}{file}{end}" for at in (f"{folder}/", "") for end in ("", ".gz"))
        for part, file in _NAMES.items()
    }
    return Home(name, files, remotes, folder, num_train=60_000)


@dataclass(frozen=True)
class Mnist(_IdxImages):
    """60,000 and 10,000 handwritten digits of 28 x 28 pixels in 256 grey levels.

    x is uint8 ``[N, 1, 28, 28]``. Pad nothing and repeat no channel: bits per dimension at other
    shapes cannot be compared.

    The default leaves 55,000 images to train on; tables that split 50,000 / 10,000 need
    ``num_validation=10_000``. The files lie in ``root/MNIST/raw`` or in ``root`` itself, gzipped
    or not.

    Reference:
        LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document
        Recognition".
    """

    home: ClassVar[Home] = _home(
        "mnist",
        "MNIST/raw",
        (
            Remote(f"{_MNIST}train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Remote(f"{_MNIST}t10k-images-idx3-ubyte.gz", "md5:9fb629c4189551a2d022fa330f9573f3"),
        ),
    )


@dataclass(frozen=True)
class FashionMnist(_IdxImages):
    """60,000 and 10,000 articles of clothing of 28 x 28 pixels in 256 grey levels.

    x is uint8 ``[N, 1, 28, 28]``. The files lie in ``root/FashionMNIST/raw`` or in ``root``
    itself, gzipped or not; they have the names of MNIST's, so keep the two sets apart.

    Reference:
        Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.
    """

    home: ClassVar[Home] = _home(
        "fashion_mnist",
        "FashionMNIST/raw",
        (
            Remote(f"{_FASHION}train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Remote(f"{_FASHION}t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79"),
        ),
    )
