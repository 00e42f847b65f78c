"""Where the public data sets lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from contraflow.errors import DataError

ROOT_VARIABLE = "CONTRAFLOW_DATA"


def data_root(root: str | os.PathLike[str] | None, *, wanted: str, make: bool = False) -> Path:
    """Return the data root: the argument, else the variable ``CONTRAFLOW_DATA``.

    Args:
        root: a folder; None asks the environment.
        wanted: sentence that says what to download and where under the root to put it.
        make: make the folder if it does not exist.

    Raises:
        DataError: neither is given, or the folder does not exist or cannot be made.
    """
    given = os.environ.get(ROOT_VARIABLE) or None if root is None else root
    if given is None:
        raise DataError(
            f"no data root: root is None and the variable {ROOT_VARIABLE} is not set. Give root "
            f"(--data-root), or set {ROOT_VARIABLE}. {wanted}"
        )
    path = Path(given).expanduser()
    origin = "root" if root is not None else f"the variable {ROOT_VARIABLE}"
    if make:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{origin} names the folder {path}, which cannot be made ({error.strerror})."
            ) from error
    if not path.is_dir():
        raise DataError(f"{origin} names the folder {path}, which does not exist. {wanted}")
    return path
