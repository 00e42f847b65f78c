"""Configurations: presets, YAML files and their overrides, parsed by jsonargparse."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, Namespace

import contraflow.data
import contraflow.flows  # noqa: F401 - makes the short class names known
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
    path = preset_path(name)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: no text ({error.reason}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigurationError(f"{path}{where}: not YAML: {problem}.") from None
    if not isinstance(settings, dict):
        found = "is empty" if settings is None else f"holds a {type(settings).__name__}"
        raise ConfigurationError(f"{path}: {found}; expected a mapping of options.")
    return settings


def yaml_line(path: Path, key: str) -> int | None:
    """Return the line of a YAML file on which a key stands first, counted from 1."""

    def search(node: yaml.Node | None) -> int | None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == key:
                    return name.start_mark.line + 1
                if (found := search(value)) is not None:
                    return found
        return None

    return search(yaml.compose(path.read_text(encoding="utf-8")))


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
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Source, "data")
    try:
        namespace = parser.parse_object({"data": config})
    except Exception as error:  # jsonargparse raises its own and argparse's types
        raise ConfigurationError(f"data: {error}") from error
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


def fit_model_to_data(model: Namespace, splits: Splits) -> None:
    """Fill in what the data decide and the configuration leaves open: shape, levels, context."""
    arguments = model.get("init_args")
    if arguments is None:
        return
    event = splits.event_shape
    if arguments.get("features") is None and arguments.get("shape") is None:
        if len(event) == 1:
            arguments["features"] = event[0]
        elif "shape" in arguments:
            arguments["shape"] = list(event)
    if "num_bins" in arguments and arguments["num_bins"] is None:
        arguments["num_bins"] = splits.num_bins
    if arguments.get("support", ...) is None and splits.support is not None:
        arguments["support"] = [asdict(domain) for domain in splits.support]
    if splits.context_features and not arguments.get("context"):
        arguments["context"] = splits.context_features
