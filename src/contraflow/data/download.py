"""Public files fetched from their homes when asked for, believed only if their hash is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contraflow.errors import DataError


@dataclass(frozen=True)
class Remote:
    """A public file.

    Args:
        url: where it lies.
        digest: ``md5:…`` or ``sha256:…`` of its bytes.
        name: file name to store it under; None for the last part of the address.
        unpack: whether it is a ``.tar.gz`` or ``.zip`` to be unpacked beside itself.
    """

    url: str
    digest: str
    name: str | None = None
    unpack: bool = False

    @property
    def file_name(self) -> str:
        """Return the name that the file is stored under."""
        return self.name or self.url.rsplit("/", 1)[-1]


def download(remotes: list[Remote], folder: Path) -> None:
    """Fetch files into a folder, with progress on standard error; those there already stay.

    Each file is written beside its name, checked, and renamed: an interrupted download leaves
    nothing under the final name.

    Args:
        remotes: what to fetch.
        folder: where to; made if it is missing.

    Raises:
        DataError: a file cannot be fetched, or is not the published one; or pooch is missing.
    """
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"download: files are fetched by pooch, which cannot be imported ({error}). Install "
            "it: pip install pooch."
        ) from error
    for remote in remotes:
        processor = None
        if remote.unpack:
            archive = pooch.Unzip if remote.file_name.endswith(".zip") else pooch.Untar
            processor = archive(extract_dir=".")
        try:
            pooch.retrieve(
                remote.url,
                known_hash=remote.digest,
                fname=remote.file_name,
                path=folder,
                processor=processor,
                progressbar=_show_progress(),
            )
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, a hash's ValueError
            raise DataError(
                f"{remote.url}: could not be fetched into {folder} ({error}). Check the network, "
                f"or put the file there yourself ({remote.digest})."
            ) from error


def _show_progress() -> bool:
    import sys

    return sys.stderr.isatty()
