"""The ``contraflow`` command before contraflow is imported, which takes seconds.

Nothing heavy is imported here, so that Ctrl-C during those seconds ends in one line instead
of a traceback through somebody else's modules.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> int:
    """Import contraflow and run its command; returns the exit code."""
    # Runs last, after other modules' farewells: from then on Python would die of the signal.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        with quiet_interrupts():
            from contraflow.cli import main as run
        code = run(importing=quiet_interrupts)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _leave()
    # Threads that end and modules that say farewell answer Ctrl-C with a traceback, too.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    return code


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """While modules are imported, and nothing needs tidying, leave at once at Ctrl-C.

    An exception would not do: an import may catch it, or print it and go on. A process that
    was told to ignore Ctrl-C, for example by ``nohup``, goes on ignoring it.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _leave(*_: object) -> NoReturn:
    os.write(2, b"contraflow: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
