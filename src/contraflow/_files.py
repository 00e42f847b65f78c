"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; rename it once the block has succeeded.

    A full disk, an error or a kill leaves the earlier file as it was. After an error nothing
    of the new one is left.

    Example:
        >>> with written_beside(tmp_path / "a.txt") as partial:
        ...     _ = partial.write_text("whole")
        >>> [path.name for path in tmp_path.iterdir()]
        ['a.txt']
    """
    target = Path(target)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # some libraries write files for the owner alone
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
