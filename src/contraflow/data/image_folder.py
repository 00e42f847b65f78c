"""Any folder of image files as a data source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from contraflow.data._pixels import ENDINGS, read_pixels
from contraflow.data.binning import bin_levels, check_bits
from contraflow.data.splits import Part, Source, Splits
from contraflow.data.store import RowStore, split_rows
from contraflow.errors import ConfigurationError, DataError

_PASSED_OVER = (".gif", ".tif", ".tiff", ".jp2", ".heic", ".heif", ".avif")


@dataclass(frozen=True)
class ImageFolder(Source):
    """The png, jpg, webp and bmp images below a folder, in the order of their paths.

    x is uint8 ``[N, C, H, W]``; beyond some hundred megabytes it lies in a mapped file, so the
    folder may be larger than memory.

    If the folder holds ``train`` and ``test``, these are the parts, and ``validation`` (or
    ``val``) is the third; without it the training images are split. A folder with none of the
    four names is split into all three. Splits are drawn image by image: images that belong
    together, such as frames of one film, should come in folders ``train`` and ``test``.

    Hidden files and folders, and files of other kinds, are passed over.

    Args:
        path: the folder.
        channels: 3 for colour, where grey files get three equal channels; 1 for grey, where a
            colour file is an error.
        size: ``(H, W)``, or one number for both. Images are cut to this shape, at their centre,
            and resized (bicubic, antialiased). None expects all images to have one size.
        fraction_validation: part of the images, rounded to the nearest image; unused if the
            folder has that part.
        fraction_test: the same for the test part.
        seed: seed of the split.
        bits: bits that are kept of each level, 1 to 8: x holds 0, ..., 2^bits - 1.

    Raises:
        ConfigurationError: an option is out of range.

    Example:
        >>> ImageFolder("faces", size=64).size
        (64, 64)
    """

    path: str | os.PathLike[str]
    channels: int = 3
    size: int | tuple[int, int] | None = None
    fraction_validation: float = 0.1
    fraction_test: float = 0.1
    seed: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        check_bits("ImageFolder", self.bits)
        if self.channels not in (1, 3):
            raise ConfigurationError(
                f"ImageFolder: got channels={self.channels}, expected 1 (grey) or 3 (colour)."
            )
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        if size is not None:
            size = tuple(size)
            if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
                raise ConfigurationError(
                    f"ImageFolder: got size={self.size}, expected one number or (H, W), in pixels."
                )
        object.__setattr__(self, "size", size)  # a tuple: comparable and hashable
        fractions = (self.fraction_validation, self.fraction_test)
        if not all(0 < fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
            raise ConfigurationError(
                f"ImageFolder: got fraction_validation={fractions[0]} and "
                f"fraction_test={fractions[1]}, expected both above 0 and their sum below 1."
            )

    def load(self) -> Splits:
        """Read the images.

        Raises:
            DataError: the folder or a part is missing or empty; a file cannot be read, is not an
                8-bit image of the channels asked for, or has another size than the others; or a
                split would leave a part without images.
        """
        base = Path(self.path).expanduser()
        if not base.is_dir():
            raise DataError(
                f"{base}: no such folder (looked for {base.absolute()}). Give the path of a "
                "folder of images."
            )
        parts = self._split(base)
        first = parts[0][0]
        shape = read_pixels(first, self.channels, self._height_width).shape
        x = [self._read(files, first, shape) for files in parts]
        return Splits(base.resolve().name, *(Part(rows) for rows in x), num_bins=2**self.bits)

    def _split(self, base: Path) -> tuple[list[Path], list[Path], list[Path]]:
        """Return the files of the training, validation and test parts."""
        there = [name for name in ("train", "validation", "val", "test") if (base / name).is_dir()]
        if not there:
            images = _find_images(base)
            validation, test, train = _draw(
                base, images, (self.fraction_validation, self.fraction_test), self.seed
            )
            return train, validation, test
        missing = {"train", "test"} - set(there)
        if missing or {"validation", "val"} <= set(there):
            raise DataError(
                f"{base}: got the folders {', '.join(there)}, expected train, test and at most one "
                "of validation and val. Rename them, or give other names to all of them to have "
                "the images split at random."
            )
        train, test = _find_images(base / "train"), _find_images(base / "test")
        if len(there) == 3:
            held_out = "val" if "val" in there else "validation"
            return train, _find_images(base / held_out), test
        validation, train = _draw(base / "train", train, (self.fraction_validation,), self.seed)
        return train, validation, test

    def _read(self, files: list[Path], first: Path, shape: tuple[int, ...]) -> Tensor:
        """Read one part, ``[N, C, H, W]``; all images have the shape of the first."""
        with RowStore(shape, np.uint8) as store:
            for file in files:
                pixels = read_pixels(file, self.channels, self._height_width)  # [C, H, W]
                if pixels.shape != shape:
                    raise DataError(
                        f"{file}: is {_size(pixels.shape)}, expected {_size(shape)} (height x "
                        f"width) like {first}. Give size= (--data.size) to cut and resize all "
                        "images."
                    )
                store.append(bin_levels(pixels, self.bits))
            return store.tensor()

    @property
    def _height_width(self) -> tuple[int, int] | None:
        assert not isinstance(self.size, int)  # __post_init__ made it a pair
        return self.size


def _find_images(base: Path) -> list[Path]:
    """Return the images below a folder, sorted by path, whatever order the disk lists them in."""
    found = list(_walk(base))
    images = [path for path in found if path.suffix.lower() in ENDINGS]
    others = sorted({path.suffix.lower() for path in found} - set(ENDINGS))
    if not images:
        got = f"{len(found)} files of types {', '.join(others)[:60]}" if found else "no files"
        raise DataError(
            f"{base}: got {got}, expected images ({', '.join(ENDINGS)}). Convert the images, or "
            "give the folder that holds them."
        )
    ignored = sum(path.suffix.lower() in _PASSED_OVER for path in found)
    if ignored:
        warnings.warn(
            f"{base}: {ignored} images of other kinds than {', '.join(ENDINGS)} are passed over; "
            "convert them if they belong to the data.",
            stacklevel=2,
        )
    return sorted(images, key=lambda path: path.relative_to(base).parts)


def _walk(base: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}).") from error

    for folder, below, names in os.walk(base, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _draw(
    base: Path, images: Sequence[Path], fractions: Sequence[float], seed: int
) -> list[list[Path]]:
    """Return a random part of the images for each fraction, and the rest; each in order."""
    counts = [round(fraction * len(images)) for fraction in fractions]
    counts.append(len(images) - sum(counts))
    if min(counts) < 1:
        parts = ", ".join(str(count) for count in counts)
        raise DataError(
            f"{base}: too few images: {len(images)} give parts of {parts} (held out, then for "
            "training), expected at least one in each. Add images, or raise the fractions."
        )
    labels = np.concatenate(split_rows(len(images), fractions, seed=seed))
    return [
        [images[i] for i in np.flatnonzero(labels == part).tolist()] for part in range(len(counts))
    ]


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[2]}"
