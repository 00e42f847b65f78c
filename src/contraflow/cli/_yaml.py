"""YAML files of options: what is wrong with one is said in one line, with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from contraflow.errors import ConfigurationError


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a file of options as plain data.

    Raises:
        ConfigurationError: it is missing, no text, no YAML, or no mapping; the message names
            the line.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from None
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
