"""What the public image sets share: where their files lie, and how they are split and binned."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from contraflow.data.binning import bin_levels, check_bits
from contraflow.data.download import Remote, download
from contraflow.data.root import data_root
from contraflow.data.splits import Part, Source, Splits
from contraflow.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Home:
    """Where the files of a public set lie, on the network and below a data root.

    Args:
        name: name of the set.
        files: for each file, the paths below the root at which it may lie, the usual one first.
        remotes: what to download.
        folder: where to put it, below the root.
        num_train: how many training images were published.
        optional: keys of ``files`` of which some may be missing, but not all.
    """

    name: str
    files: Mapping[str, tuple[str, ...]]
    remotes: tuple[Remote, ...]
    folder: str
    num_train: int
    optional: tuple[str, ...] = ()

    def locate(self, root: str | os.PathLike[str] | None, *, fetch: bool) -> dict[str, Path]:
        """Return the path of each file, in the order of ``files``; optional ones may be missing.

        Args:
            root: data root; None takes the variable ``CONTRAFLOW_DATA``.
            fetch: download the set if any file is missing; the root is made if need be.

        Raises:
            DataError: there is no root; a file is missing; or it cannot be downloaded.
        """
        base = data_root(root, wanted=self._wanted("ROOT", fetch), make=fetch)
        found = self._find(base)
        if fetch and len(found) < len(self.files):
            download(list(self.remotes), base / self.folder)
            found = self._find(base)
        missing = [key for key in self.files if key not in found]
        if not missing or set(missing) < set(self.optional):
            return found
        tried = ", ".join(path for key in missing for path in self.files[key])
        raise DataError(
            f"{self.name}: found none of {tried} in {base}. {self._wanted(str(base), fetch)}"
        )

    def _find(self, base: Path) -> dict[str, Path]:
        found = {}
        for key, candidates in self.files.items():
            path = next((base / path for path in candidates if os.path.isfile(base / path)), None)
            if path is not None:
                found[key] = path
        return found

    def _wanted(self, root: str, fetch: bool) -> str:
        """Return the sentence that says what to download, and where to put it."""
        urls = " and ".join(remote.url for remote in self.remotes)
        unpack = " and unpack it" if any(remote.unpack for remote in self.remotes) else ""
        offer = "" if fetch else ", or give download=True (--data.download true)"
        into = os.path.normpath(os.path.join(root, self.folder))
        return f"Download {urls} into {into}{unpack}{offer}."


@dataclass(frozen=True)
class PublicImages(Source, ABC):
    """8-bit images with a published test set, read from their public files.

    x is uint8 ``[N, C, H, W]``, a quarter of float32. The last ``num_validation`` training images
    validate, in the files' order, so the split needs no seed.

    A subclass gives its ``home`` and reads one file; the images of the file ``test`` are the test
    part, those of all others the training images.

    Args:
        root: data root; None takes the variable ``CONTRAFLOW_DATA``.
        num_validation: how many training images validate.
        bits: bits that are kept of each level, 1 to 8: x holds 0, ..., 2^bits - 1.
        download: fetch the published files if any is missing; each is checked by its hash.

    Raises:
        ConfigurationError: ``num_validation`` is below 1, or ``bits`` is not 1 to 8.
    """

    root: str | os.PathLike[str] | None = None
    num_validation: int = 5_000
    bits: int = 8
    download: bool = False

    home: ClassVar[Home]

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_bits(owner, self.bits)
        if self.num_validation < 1:
            raise ConfigurationError(
                f"{owner}: got num_validation={self.num_validation}, expected at least 1."
            )

    def load(self) -> Splits:
        """Read the images.

        Warns when files of the training part are missing: a result on fewer images cannot be put
        beside published ones.

        Raises:
            DataError: a file is missing, is not the kind of file that was expected, or is cut
                short; or no training image would be left.
        """
        name = self.home.name
        paths = self.home.locate(self.root, fetch=self.download)
        images = {key: self.read(path) for key, path in paths.items()}
        test = images.pop("test")
        train = torch.cat(list(images.values()))  # [N, C, H, W]
        absent = [key for key in self.home.files if key not in paths]
        if absent:
            warnings.warn(
                f"{name}: {len(train):,} of {self.home.num_train:,} training images are there, "
                f"{', '.join(absent)} missing; report results as such.",
                stacklevel=2,
            )
        num_train = len(train) - self.num_validation
        if num_train < 1:
            raise DataError(
                f"{name}: got {len(train)} training images and "
                f"num_validation={self.num_validation}, which leaves none to train on; "
                "lower num_validation."
            )
        train, test = bin_levels(train, self.bits), bin_levels(test, self.bits)
        parts = (train[:num_train], train[num_train:], test)
        return Splits(name, *(Part(x) for x in parts), num_bins=2**self.bits)

    @abstractmethod
    def read(self, path: Path) -> Tensor:
        """Read the images of one file: uint8 ``[N, C, H, W]``.

        Raises:
            DataError: the file is not what its name promises.
        """
