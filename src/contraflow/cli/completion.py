"""``contraflow completion``: a script that completes commands, presets and options."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import shtab

from contraflow.cli import COMMANDS
from contraflow.cli._complaints import subclasses
from contraflow.cli._config import preset_names
from contraflow.cli._parser import Parser, command_parser, placeholder
from contraflow.cli._train_options import train_parser
from contraflow.data import Source
from contraflow.flow import Flow

SHELLS = ("bash", "zsh", "tcsh")
_SKIPPED = {"self", "transform", "base", "event_shape", "log_det"}


def run(words: Sequence[str]) -> int:
    """Print the script of one shell."""
    options = parser().parse_args(list(words))
    print(shtab.complete(tree(), options.shell))
    return 0


def parser() -> Parser:
    """Return the options of ``contraflow completion``."""
    parser = command_parser(
        "completion",
        "Print a script that completes commands, presets, options, run folders and files. It "
        "starts no Python when a key is pressed; writing it takes seconds, so keep it in a file "
        "rather than in the shell's start-up, and write it anew after an update.",
        arguments="|".join(SHELLS),
        examples=[
            "bash > \\\n      ~/.local/share/bash-completion/completions/contraflow",
            "zsh > ~/.zfunc/_contraflow    # a folder of $fpath",
        ],
    )
    parser.epilog = f'{parser.epilog}\n  eval "$(contraflow completion bash)"  # this shell only'
    parser.add_argument("shell", choices=SHELLS, help="whose script")
    return parser


def tree() -> argparse.ArgumentParser:
    """Return one plain parser with the options of all commands, for shtab to read."""
    root = argparse.ArgumentParser(prog="contraflow", description="Normalizing flows.")
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "train":
            source: Any = command.add_argument("preset", help="a preset or a YAML file")
            source.complete = _presets()
            for option, help in _class_options():
                command.add_argument(option, help=help)
            options = train_parser()
        else:
            options = importlib.import_module(f"contraflow.cli.{name}").parser()
        for action in options._actions:
            _copy(action, command)
    return root


def _copy(action: argparse.Action, command: argparse.ArgumentParser) -> None:
    names = [name for name in action.option_strings if not name.endswith((".help", "+"))]
    if action.dest == "help" or (action.option_strings and not names):
        return
    help = " ".join((action.help or "").split()).replace("%", "%%")
    if action.nargs == 0:
        command.add_argument(*names, action="store_true", help=help)
        return
    word = placeholder(action)
    copied: Any
    if names:
        copied = command.add_argument(*names, help=help)
    else:
        copied = command.add_argument(action.dest, nargs=action.nargs, help=help)  # pyright: ignore
    if action.choices is not None:
        copied.choices = list(action.choices)
    elif word in ("RUN", "DIR"):
        copied.complete = shtab.DIRECTORY
    elif word.startswith("FILE"):
        copied.complete = shtab.FILE
    elif word == "true|false":
        copied.choices = ["true", "false"]


def _class_options() -> Iterator[tuple[str, str]]:
    """Yield ``--model.ARG`` and ``--data.ARG`` of all flows and data sets."""
    for group, base in (("model", Flow), ("data", Source)):
        classes: dict[str, list[str]] = {}
        for cls in subclasses(base):
            for argument in inspect.signature(cls).parameters:
                if argument not in _SKIPPED:
                    classes.setdefault(argument, []).append(cls.__name__)
        for argument, names in sorted(classes.items()):
            yield f"--{group}.{argument}", f"of {', '.join(sorted(names))}"


def _presets() -> dict[str, Any]:
    """Return how each shell completes a preset's name or a YAML file."""
    names = " ".join(preset_names())
    function = "_contraflow_presets_or_files"
    script = (
        f'{function}() {{\n  compgen -W "{names}" -- "$1"\n'
        '  compgen -f -X "!*.yaml" -- "$1"\n  compgen -d -- "$1"\n}\n'
    )
    return {
        "bash": function,
        "zsh": f"({names})",
        "tcsh": f"({names})",
        "preamble": {"bash": script},
    }
