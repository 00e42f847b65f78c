"""One image file as 8-bit pixels, or an error that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contraflow.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that are read. A gif has a palette of its own and may move; a tiff may hold anything."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


def read_pixels(path: Path, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """Read an image, turned upright as its camera says.

    A grey image fills three channels, a palette is looked up, and an opaque alpha channel is
    left out: none of these changes what is seen. What would have to be guessed is an error.

    Args:
        path: the file.
        channels: 3 or 1.
        size: ``(H, W)``: cut to this shape, at the centre, and resized; None leaves the size.

    Returns:
        uint8 ``[C, H, W]``.

    Raises:
        DataError: the file is no image or is damaged; has more than 8 bits a channel,
            transparent pixels, several frames or a colour space other than RGB; or has colours
            although ``channels`` is 1.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            f"{path}: images are read by Pillow, which cannot be imported ({error}). "
            "Install it: pip install pillow."
        ) from error
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check(path, image)
            upright = ImageOps.exif_transpose(image)
    except DataError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to spell
        raise DataError(
            f"{path}: cannot be read as an image ({type(error).__name__}: {error}). Repair it, "
            "or take it out of the folder."
        ) from error
    opaque = _without_alpha(path, upright)
    flat = _to_grey(path, opaque) if channels == 1 else opaque.convert("RGB")
    if size is not None:
        height, width = size
        flat = ImageOps.fit(flat, (width, height), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(flat).reshape(flat.height, flat.width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check(path: Path, image: Image) -> None:
    """Refuse an opened, undecoded image whose pixels would have to be guessed."""
    # MPO: a camera's JPEG with previews behind the picture.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise DataError(f"{path}: has several frames, expected one. Extract the frames first.")
    # Pillow would drop the lower byte of 16-bit colours without a word.
    deep = any("16" in str(tile[-1]) for tile in getattr(image, "tile", []))
    if deep or image.mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: has more than 8 bits a channel, expected 8. Choose a range of levels and "
            "convert it first."
        )
    if image.mode not in _MODES:
        raise DataError(
            f"{path}: has the mode {image.mode}, expected grey or RGB. Convert it to RGB first."
        )


def _without_alpha(path: Path, image: Image) -> Image:
    """Return the image as L or RGB; alpha must be opaque everywhere."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image)[..., 3]
        if alpha.min() < 255:
            raise DataError(
                f"{path}: has transparent pixels ({(alpha < 255).mean():.1%} of them), expected an "
                "opaque image. Lay it over a background first."
            )
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_grey(path: Path, image: Image) -> Image:
    """Return the image as L; colour images are welcome if no pixel has a colour."""
    if image.mode == "L":
        return image
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    if not np.array_equal(red, green) or not np.array_equal(green, blue):
        raise DataError(
            f"{path}: has colours, but channels=1. Give channels=3 (--data.channels 3), or "
            "convert the files to grey first: there are several ways, and ours might not be yours."
        )
    return image.getchannel(0)
