"""Configurations: presets, YAML files and their overrides, parsed by jsonargparse."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

import contraflow.data
import contraflow.flows  # noqa: F401 - makes the short class names known
from contraflow.cli._parser import Parser
from contraflow.cli._yaml import read_yaml
from contraflow.data import Source, Splits
from contraflow.errors import ConfigurationError, ContraflowError, nearest
from contraflow.flow import Flow

PRESETS = Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Return the YAML file of a preset, or the file itself if ``name`` is one.

    Raises:
        ConfigurationError: neither exists.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigurationError(f"{name}: no such file.")
        return Path(name)
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"no preset {name!r}{nearest(name, preset_names()) or '.'} Known: "
            f"{', '.join(preset_names())}. Or name a YAML file."
        )
    return path


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset as plain data.

    Raises:
        ConfigurationError: it is no text, no YAML, or no mapping; the message names the line.
    """
    return read_yaml(preset_path(name))


def add_model_and_data(parser: ArgumentParser) -> None:
    """Add the options that name the flow and its data."""
    from_file = jsonargparse.ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
    parser.add_argument("--config", metavar="FILE", action=from_file, help="more options, in YAML")
    parser.add_argument("--description", type=str, default="", help="what the run is")
    parser.add_argument(
        "--reproduces", type=str | None, default=None, help="row of a paper's table, if any"
    )
    parser.add_subclass_arguments(
        Flow,
        "model",
        skip={"transform", "base", "event_shape"},
        required=True,
        metavar="CLASS",
        help="the flow",
    )
    parser.add_subclass_arguments(Source, "data", required=True, metavar="CLASS", help="the data")


def data_source(config: Any, data_root: str | None = None) -> Source:
    """Build the data source of a configuration.

    Raises:
        ConfigurationError: the configuration is not valid.
    """
    parser = Parser(prog="contraflow train")
    parser.add_subclass_arguments(Source, "data", required=True)
    namespace = parser.parse_object({"data": config})
    set_data_root(namespace, data_root)
    return instantiate(parser, data=namespace.data)


def instantiate(parser: ArgumentParser, **group: Any) -> Any:
    """Build the one object that a group of options describes."""
    (name,) = group
    try:
        return parser.instantiate(Namespace(**group))[name]
    except ValueError as error:
        # jsonargparse wraps what a constructor raises; our own message is the one to show.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ContraflowError):
            cause = cause.__cause__ or cause.__context__
        raise cause or ConfigurationError(f"{name}: {error}") from None


def set_data_root(namespace: Namespace, data_root: str | None) -> None:
    """Put ``--data-root`` where the data source expects it."""
    arguments = namespace.data.get("init_args")
    if data_root is None or arguments is None:
        return
    if "root" in arguments:
        arguments["root"] = os.fspath(data_root)


def make_paths_absolute(namespace: Namespace) -> None:
    """Let a run find its data from any folder."""
    arguments = namespace.data.get("init_args") or {}
    for name in ("path", "validation_path", "test_path", "root"):
        if arguments.get(name):
            arguments[name] = os.path.abspath(os.path.expanduser(arguments[name]))


def fit_model_to_data(model: Namespace, splits: Splits) -> None:
    """Fill in what the data decide and the configuration leaves open: shape, levels, context.

    Raises:
        ConfigurationError: the configuration says otherwise than the data.
    """
    arguments = model.get("init_args")
    if arguments is None:
        return
    event, context = list(splits.event_shape), splits.context_features
    if len(event) == 3 and "shape" not in arguments:
        raise ConfigurationError(
            f"--model {model.class_path.rpartition('.')[2]}: models vectors; the data are images "
            f"of shape {tuple(event)}. Choose a flow that takes shape."
        )
    flat = len(event) == 1
    _refuse(arguments, "features", event[0] if flat else None, "the data have {} columns")
    _refuse(arguments, "shape", None if flat else event, "the data have the shape {}")
    _refuse(arguments, "num_bins", splits.num_bins, "the data have {} levels")
    _refuse(arguments, "context", context, "the data have {} context columns")
    if arguments.get("features") is None and arguments.get("shape") is None:
        if flat:
            arguments["features"] = event[0]
        elif "shape" in arguments:
            arguments["shape"] = event
    if "num_bins" in arguments and arguments["num_bins"] is None:
        arguments["num_bins"] = splits.num_bins
    if arguments.get("support", ...) is None and splits.support is not None:
        arguments["support"] = [asdict(domain) for domain in splits.support]
    if context and not arguments.get("context"):
        arguments["context"] = context


def _refuse(arguments: Namespace, name: str, expected: Any, of_data: str) -> None:
    """Refuse an argument that is set otherwise than the data decide, where they do."""
    given = arguments.get(name)
    given = list(given) if isinstance(given, tuple) else given
    if given and expected is not None and given != expected:
        raise ConfigurationError(
            f"--model.{name} {given}; {of_data.format(expected)}. Leave the option out, or set it "
            "to null, to take what the data have."
        )
