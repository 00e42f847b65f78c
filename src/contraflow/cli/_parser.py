"""One parser for every command: help for a reader, errors in one line."""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import textwrap
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import jsonargparse

from contraflow.cli._complaints import explain
from contraflow.errors import ConfigurationError
from contraflow.solvers import Solver

# Solvers are frozen dataclasses, for which jsonargparse expects no subclasses unless told.
jsonargparse.set_parsing_settings(subclasses_enabled=[Solver])

WIDTH = 80  # columns; less on a narrower terminal, never more


class HelpFormatter(argparse.HelpFormatter):
    """Options with a placeholder instead of a type, and their default if they have one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=line_width())

    def _get_help_string(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        default = "" if action.nargs == 0 or not action.option_strings else show(action.default)
        return f"{text} (default: {default})" if default else text

    def _expand_help(self, action: argparse.Action) -> str:
        # Descriptions come from docstrings, where % is a percent sign.
        return self._get_help_string(action) or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return placeholder(action)
        # jsonargparse adds --list+ beside --list, to append: one name is enough.
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
        return names if action.nargs == 0 else f"{names} {placeholder(action)}".rstrip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap prose; leave indented lines, which are command lines, as they are."""
        if text.startswith("examples:"):
            return textwrap.indent(text, indent)
        return super()._fill_text(text, width, indent)


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser; a wrong call raises `ConfigurationError` with one line.

    Args:
        prog: the words that call it.
        exit_on_error: False for the parsers that jsonargparse derives from ours for the
            arguments of a class: it expects its own exceptions from those.
        **kwargs: as for ``jsonargparse.ArgumentParser``.
    """

    def __init__(self, *args: Any, exit_on_error: bool = True, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, exit_on_error=exit_on_error, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the complaint in one line.

        Raises:
            ConfigurationError: always, in a parser of ours.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        names = self._option_string_actions
        known = [name for name in names if len(name) > 2 and not name.endswith((".help", "+"))]
        raise ConfigurationError(explain(message, ex, known, self.prog)) from None

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and check what every command's ``--seed`` may be.

        Raises:
            ConfigurationError: the call is wrong.
        """
        options = super().parse_args(*args, **kwargs)
        seed = options.get("seed", 0)
        if not 0 <= seed < 2**63:
            raise ConfigurationError(f"--seed {seed}; expected a number from 0 to 2^63 - 1.")
        return options

    def show_only(self, names: Iterable[str] | None = None) -> None:
        """Leave the other options, and the helpers that jsonargparse adds, out of the help."""
        wanted = None if names is None else {"-h", *names}
        for action in self._actions:
            names = action.option_strings
            helper = any(name.endswith(".help") for name in names)
            if helper or (names and wanted is not None and not wanted & set(names)):
                action.help = argparse.SUPPRESS


def command_parser(
    name: str, description: str, *, arguments: str = "RUN", examples: Sequence[str] = ()
) -> Parser:
    """Return the parser of ``contraflow NAME``.

    Args:
        name: the command.
        description: one or two sentences.
        arguments: the positional arguments, as the usage shows them.
        examples: command lines after ``contraflow NAME``, shown at the end of the help.

    Example:
        >>> parser = command_parser("twice", "Double it.", arguments="N", examples=["3"])
        >>> print(parser.format_help())
        usage: contraflow twice N [options]
        <BLANKLINE>
        Double it.
        <BLANKLINE>
        options:
          -h, --help  show this help and exit
        <BLANKLINE>
        examples:
          contraflow twice 3
        <BLANKLINE>
    """
    usage = f"contraflow {name} {arguments} [options]".replace("  ", " ")
    lines = [f"  contraflow {name} {words}".rstrip() for words in examples]
    parser = Parser(
        prog=f"contraflow {name}",
        usage=usage,
        description=description,
        epilog="\n".join(["examples:", *lines]) if lines else None,
        add_help=False,
    )
    parser._positionals.title = "arguments"
    parser.add_argument("-h", "--help", action="help", help="show this help and exit")
    return parser


def line_width() -> int:
    """Return the columns that a line of ours may fill."""
    return min(WIDTH, shutil.get_terminal_size().columns)


def show(value: Any) -> str:
    """Return a value as it is written on the command line; nothing for none.

    Example:
        >>> show((64, 64)), show(True), show(None)
        ('[64, 64]', 'true', '')
    """
    if value is None or value in (argparse.SUPPRESS, "", (), []):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return str(value.get("class_path", json.dumps(dict(value), default=str)))
    return json.dumps(value, default=str)


def placeholder(action: argparse.Action) -> str:
    """Return what stands for an action's value: the metavar we gave, or a word for its type."""
    if isinstance(action.metavar, str) and action.metavar[:1] not in ("{", "["):
        return action.metavar  # the brackets are jsonargparse's own, derived from the type
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return _word(getattr(action, "_typehint", action.type))


def _word(hint: Any) -> str:
    """Return a word for a type; for a union, that of its first member."""
    if "os.PathLike" in str(hint):
        return "FILE"
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _word(next(member for member in get_args(hint) if member is not type(None)))
    if origin is Literal:
        return "|".join(str(value) for value in get_args(hint))
    words = {bool: "true|false", int: "N", float: "X", str: "TEXT"}
    if hint in words:
        return words[hint]
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        first = next(iter(get_args(hint)), str)
        return f"[{_word(first)},...]"
    if inspect.isclass(origin or hint) and issubclass(origin or hint, (Mapping, dict)):
        return "{...}"
    return "CLASS" if inspect.isclass(hint) else "VALUE"
