"""The options of ``contraflow train``: how they are declared, read and explained."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from contraflow.cli._complaints import MISSING, subclasses
from contraflow.cli._config import add_model_and_data, read_preset
from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._yaml import yaml_line
from contraflow.data import Source
from contraflow.errors import ConfigurationError, nearest
from contraflow.flow import Flow
from contraflow.tasks import LipschitzSchedule, Optimisation

_OURS: set[str | int] = {  # arguments of Trainer that the run's folder decides
    "logger", "callbacks", "default_root_dir", "fast_dev_run", "barebones", "enable_checkpointing",
    "use_distributed_sampler",
}  # fmt: skip
_TRAINER = {  # the few that matter, in our words
    "max_time": ("DD:HH:MM:SS", "stop after this time"),
    "max_epochs": ("N", "stop after N passes over the data"),
    "max_steps": ("N", "stop after N optimiser steps; -1 for no limit"),
    "accelerator": ("NAME", "cpu, gpu, or auto"),
    "devices": ("N", "how many devices"),
    "precision": ("NAME", "32-true, 64-true, bf16-mixed, ..."),
}
_SHORT = {"-h", "--name", "--out", "--resume", "--seed", "--data-root", "--json",
          "--checkpoint-every", "--model", "--data",
          "--optimisation.learning_rate", "--optimisation.batch_size", "--optimisation.ema_decay",
          "--optimisation.patience",
          *(f"--trainer.{name}" for name in _TRAINER)}  # fmt: skip
_OF_CLASSES = ("--model.", "--data.")
_EXAMPLES = (
    "digits --trainer.max_time 00:00:03:00",
    "digits --name wide --model.hidden_features '[256, 256]'",
    "table --data.path t.csv --data.columns a,b",
    "checkerboard --data.name moons --optimisation.batch_size 1000",
    "digits --name wide --resume",
)


def train_parser() -> Parser:
    """Return the parser of every option; ``--model.ARG`` depends on the class that is named."""
    parser = _run_options()
    add_model_and_data(parser)
    shown = _action(parser, "--print_config")
    shown.metavar, shown.help = "", "print the complete configuration and exit"
    for group, base in (("model", Flow), ("data", Source)):
        _entitle(parser, group, group, f"--{group}.ARG VALUE sets an argument of that class; "
                 "contraflow train PRESET --help lists them.")  # fmt: skip
        _action(parser, f"--{group}").help = f"one of {_names(base)} (default: the preset's)"
    _training_options(parser)
    return parser


def read_options(parser: Parser, source: Path, words: Sequence[str]) -> Any:
    """Read a YAML file and the options that override it.

    Raises:
        ConfigurationError: either is wrong; the message names the file and its line if the
            file is.
    """
    read_preset(str(source))
    try:
        return parser.parse_args(["--config", str(source), *words])
    except ConfigurationError as error:
        try:
            parser.parse_args(["--config", str(source)])
        except ConfigurationError as alone:  # without the options: is the file wrong already?
            if not str(alone).startswith(MISSING):  # which the options may give
                raise _blame(source, alone) from None
        raise error from None


def optimisation_of(options: Namespace) -> Optimisation:
    """Return the settings of a training from its group of options.

    Raises:
        ConfigurationError: a setting is out of range.
        NotContractiveError: a bound of the schedule is not in (0, 1).
    """
    settings = dict(vars(options))
    schedule = settings.get("lipschitz_schedule")
    if schedule is not None:
        settings["lipschitz_schedule"] = LipschitzSchedule(**vars(schedule))
    return Optimisation(**settings)


def is_help(words: Sequence[str]) -> bool:
    """Tell whether the words ask for help."""
    return bool({"-h", "--help", "--help-all"} & set(words))


def value_of(words: Sequence[str], option: str) -> str | None:
    """Return the value that the words give to an option."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def train_help(words: Sequence[str]) -> str:
    """Return the help that the words ask for.

    Args:
        words: ``--help`` alone for the options that matter; with ``all`` for every one; with
            a preset's name for the arguments of its own classes, or of those that ``--model``
            and ``--data`` name.
    """
    complete = "all" in words or "--help-all" in words
    preset = next((word for word in words if word not in ("-h", "--help", "all")), "--help-all")
    if preset.startswith("-"):
        parser, shown = train_parser(), _SHORT
        more = {"contraflow train PRESET --help": "the arguments of its model and data"}
        command = "contraflow train"
    else:
        parser = _preset_parser(preset, words)
        own = [name for name in parser._option_string_actions if name.startswith(_OF_CLASSES)]
        shown = _SHORT.union(own)
        more = {"contraflow presets": "what can be trained"}
        command = f"contraflow train {preset}"
    if not complete:
        more = {f"{command} --help all": "every option", **more}
    parser.show_only(None if complete else shown)
    lines = [f"  {command:<37} {text}\n" for command, text in more.items()]
    return f"{parser.format_help()}\nmore:\n{''.join(lines)}"


def _run_options(source: str = "PRESET|FILE.yaml") -> Parser:
    parser = command_parser(
        "train",
        "Train a flow, prove its bounds and write everything to OUT/NAME. Options override "
        "those of the preset or of the YAML file.",
        arguments=source,
        examples=_EXAMPLES,
    )
    run = parser.add_argument_group("run")
    run.add_argument("--name", type=str | None, help="name of the run; the preset's if not given")
    run.add_argument("--out", metavar="DIR", type=str, default="runs", help="folder of all runs")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--seed", type=int, default=0, help="seed of everything random")
    run.add_argument("--data-root", metavar="DIR", type=str | None, help="folder of data sets")
    run.add_argument(
        "--checkpoint-every", type=float, default=60.0, help="seconds between two checkpoints"
    )
    run.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _training_options(parser: Parser) -> None:
    import lightning.pytorch as pl

    parser.add_class_arguments(Optimisation, "optimisation")
    parser.add_class_arguments(pl.Trainer, "trainer", skip=_OURS, instantiate=False)
    _entitle(parser, "optimisation", "optimisation")
    _entitle(parser, "trainer", "trainer (of Lightning)")
    for action in parser._actions:
        name = action.dest.removeprefix("trainer.")
        if name in _TRAINER and name != action.dest:
            action.metavar, action.help = _TRAINER[name]
        elif name != action.dest or action.dest.startswith("optimisation."):
            action.help = _plain(action.help or "", first_sentence=name != action.dest)
        elif action.dest in ("optimisation", "trainer"):
            action.help = argparse.SUPPRESS  # a file for the group: --config does the same


def _preset_parser(preset: str, words: Sequence[str]) -> Parser:
    """Return a parser, for its help alone, with the arguments of the preset's classes."""
    settings = read_preset(preset)
    parser = _run_options(preset)
    for group, base in (("model", Flow), ("data", Source)):
        chosen = settings.get(group) or {}
        name = value_of(words, f"--{group}") or chosen.get("class_path", "")
        cls = _class(name, base, f"--{group}")
        skip: set[str | int] = {"transform", "base", "event_shape", "log_det"}
        names = skip & set(inspect.signature(cls).parameters)
        parser.add_class_arguments(cls, group, skip=names, instantiate=False)
        _entitle(parser, group, f"{group} {cls.__name__}", _summary(cls))
        if f"--{group}" not in parser._option_string_actions:  # a class without arguments
            _group(parser, group).add_argument(f"--{group}")
        if name == chosen.get("class_path"):
            _set_defaults(parser, group, chosen.get("init_args") or {})
        for action in parser._actions:
            if action.dest.startswith(f"{group}."):
                action.help = _plain(action.help or "")
            elif action.dest == group:
                action.metavar, action.help = "CLASS", f"another one of {_names(base)}"
    _training_options(parser)
    for group in ("optimisation", "trainer"):
        _set_defaults(parser, group, settings.get(group) or {})
    return parser


def _blame(source: Path, error: ConfigurationError) -> ConfigurationError:
    """Say that the file is wrong, and where."""
    text = re.sub(r"--(?=\w)", "", str(error)).replace("unknown option", "unknown key")
    key = re.match(r"(?:unknown key )?([\w.]+)", text)
    line = yaml_line(source, key[1].rpartition(".")[2]) if key is not None else None
    where = f"{source}:{line}" if line is not None else str(source)
    return ConfigurationError(f"{where}: {text}")


def _class(name: str, base: type, option: str) -> type:
    known = {cls.__name__: cls for cls in subclasses(base)}
    found = known.get(name.rpartition(".")[2])
    if found is None:
        raise ConfigurationError(f"{option}: no class {name!r}{nearest(name, known)}")
    return found


def _names(base: type) -> str:
    return ", ".join(sorted({cls.__name__ for cls in subclasses(base)}))


def _action(parser: Parser, option: str) -> argparse.Action:
    return parser._option_string_actions[option]


def _group(parser: Parser, name: str) -> Any:
    assert parser.groups is not None
    return parser.groups[name]


def _entitle(parser: Parser, group: str, title: str, description: str | None = None) -> None:
    _group(parser, group).title, _group(parser, group).description = title, description


def _set_defaults(parser: Parser, group: str, values: dict[str, Any]) -> None:
    for action in parser._actions:
        if action.dest.startswith(f"{group}.") and action.dest[len(group) + 1 :] in values:
            action.default = values[action.dest[len(group) + 1 :]]


def _summary(cls: type) -> str:
    return _plain((inspect.getdoc(cls) or "").split("\n\n")[0])


def _plain(text: str, *, first_sentence: bool = False) -> str:
    """Return a docstring's words as a terminal shows them."""
    text = re.sub(r":\w+:`~?(.*?)`", r"\1", " ".join(text.split()))
    text = text.replace("`", "")
    if first_sentence:
        text = re.split(r"(?<=[^.]{3}[.])\s|\s*Defaults?:", text)[0]
    return re.sub(r"\bNone\b", "null", text).rstrip(".")
