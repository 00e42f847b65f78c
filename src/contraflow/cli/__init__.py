"""The command line: ``contraflow COMMAND``."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from contraflow._version import __version__
from contraflow.errors import (
    ContraflowError,
    ConvergenceError,
    DivergenceError,
    nearest,
)

COMMANDS = {
    "presets": "list the models that can be trained by name",
    "train": "train a preset, a YAML file or a table",
    "evaluate": "likelihood of held-out data, with kind and errors",
    "sample": "draw samples into a picture or a table",
    "score": "log-densities of a file's rows, streamed",
    "certify": "prove the Lipschitz bound of every block",
    "report": "write report.html",
    "completion": "print a script that completes these words in your shell",
}

_WRONG_PLACE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip

_USAGE = (
    "usage: contraflow COMMAND [options]\n\n"
    "Normalizing flows with certified invertibility.\n\ncommands:\n"
    + "".join(f"  {name:<12}{text}\n" for name, text in COMMANDS.items())
    + "\ncontraflow COMMAND --help shows the options of one.\n"
)


def main(
    arguments: Sequence[str] | None = None,
    importing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> int:
    """Run one command.

    Args:
        arguments: the words after ``contraflow``; those of the process if not given.
        importing: entered while the command's modules are imported, which takes seconds.

    Returns:
        0 for success, 2 for a wrong call or bad input, 1 for a failed run, 130 when
        interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"contraflow {__version__}")
        return 0
    command = words.pop(0)
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS) or "; see contraflow --help"
        return _complain(f"no command {command!r}{hint}", 2)
    try:
        # A command imports what it needs and no more: certify does not wait for Lightning.
        with importing():
            module = importlib.import_module(f"contraflow.cli.{command}")
        with _plain_warnings():
            return module.run(words)
    except SystemExit as stop:  # jsonargparse, after it printed a help or a configuration
        return stop.code if isinstance(stop.code, int) else 0
    except (ConvergenceError, DivergenceError) as error:
        return _complain(str(error), 1)
    except ContraflowError as error:
        return _complain(str(error), 2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("contraflow"):
            raise
        return _complain(
            f"the command {command!r} needs the package {error.name!r}; install the extra: "
            "pip install 'contraflow[train]'.",
            2,
        )
    except BrokenPipeError:  # contraflow presets | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A place that cannot be written to is a wrong call, a full disk a failed run.
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _complain(what, 2 if error.errno in _WRONG_PLACE else 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print a warning as one line, without the place in our code that gave it."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"contraflow: warning: {message}", file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


def _complain(message: str, code: int) -> int:
    print(f"contraflow: {message}", file=sys.stderr)
    return code
