"""Where the public data sets lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from contraflow.errors import DataError

ROOT_VARIABLE = "CONTRAFLOW_DATA"


def data_root(root: str | os.PathLike[str] | None, *, wanted: str) -> Path:
    """Return the data root: the argument, else the variable ``CONTRAFLOW_DATA``.

    Args:
        root: a folder; None asks the environment.
        wanted: sentence that says what to download and where under the root to put it.

    Raises:
        DataError: neither is given, or the folder does not exist.
    """
    given = os.environ.get(ROOT_VARIABLE) or None if root is None else root
    if given is None:
        raise DataError(
            f"no data root: root is None and the variable {ROOT_VARIABLE} is not set. Give root "
            f"(--data-root), or set {ROOT_VARIABLE}. {wanted}"
        )
    path = Path(given).expanduser()
    if not path.is_dir():
        origin = "root" if root is not None else f"the variable {ROOT_VARIABLE}"
        raise DataError(f"{origin} names the folder {path}, which does not exist. {wanted}")
    return path
