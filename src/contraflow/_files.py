"""Files that are whole or not there at all."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def written_beside(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; rename it once the block has succeeded.

    A full disk, an error or a kill leaves the earlier file as it was. After an error nothing
    of the new one is left.

    Raises:
        OSError: the file cannot be written; ``filename`` is the target's, or the missing folder's.

    Example:
        >>> with written_beside(tmp_path / "a.txt") as partial:
        ...     _ = partial.write_text("whole")
        >>> [path.name for path in tmp_path.iterdir()]
        ['a.txt']
    """
    target = Path(target)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    if not target.parent.exists():
        what = "no such folder; make it, or name another"
        raise FileNotFoundError(errno.ENOENT, what, os.fspath(target.parent))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(target))
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # some libraries write files for the owner alone
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, target)
    except OSError as error:
        # A write that fails names no file, and nobody knows the one beside.
        if error.filename in (os.fspath(partial), partial) or (
            error.filename is None and error.errno in _FULL
        ):
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        raise
    finally:
        with suppress(OSError):  # what went wrong before is what counts
            partial.unlink(missing_ok=True)
