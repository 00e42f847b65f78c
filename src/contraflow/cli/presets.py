"""``contraflow presets``: what can be trained by name."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from contraflow.cli._config import preset_names, read_preset
from contraflow.cli._parser import Parser, command_parser, line_width

_COLUMNS = ("name", "flow", "data", "parameters")


def run(words: Sequence[str]) -> int:
    """List the presets; with ``--json`` as one list on standard output."""
    options = parser().parse_args(list(words))
    entries = [describe(name) for name in preset_names()]
    print(json.dumps(entries, indent=2) if options.json else table(entries, line_width()))
    return 0


def parser() -> Parser:
    """Return the options of ``contraflow presets``."""
    parser = command_parser(
        "presets",
        "List the models that can be trained by name.",
        arguments="",
        examples=["", "--json | jq -r '.[].name'"],
    )
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output")
    return parser


def describe(name: str) -> dict[str, Any]:
    """Return one preset's line, without building weights."""
    preset = read_preset(name)
    return {
        "name": name,
        "flow": preset["model"]["class_path"],
        "data": preset["data"]["class_path"],
        "parameters": _count_parameters(preset["model"]),
        "reproduces": preset.get("reproduces"),
        "description": preset.get("description", ""),
    }


def table(entries: Sequence[dict[str, Any]], width: int) -> str:
    """Return one line of facts a preset, and below it what it is.

    Example:
        >>> entry = {"name": "a", "flow": "MAF", "data": "Table", "parameters": None}
        >>> print(table([entry | {"reproduces": None, "description": "Any table."}], 40))
        name  flow  data   parameters
        a     MAF   Table  from the data
              Any table.
    """
    rows: list[list[str]] = [list(_COLUMNS)]
    for entry in entries:
        count = entry["parameters"]
        known = "from the data" if count is None else f"{count:,}"
        rows.append([entry["name"], entry["flow"], entry["data"], known])
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    widths[-1] = 0  # no blanks at the end of a line
    lines = []
    for row, entry in zip(rows, [None, *entries], strict=True):
        cells = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        lines.append("  ".join(cells))
        if entry is not None:
            paper = f"Reproduces {entry['reproduces']}." if entry["reproduces"] else ""
            indent = " " * (widths[0] + 2)
            for text in filter(None, (entry["description"], paper)):
                lines += textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def _count_parameters(model: dict[str, Any]) -> int | None:
    import torch

    import contraflow.flows

    arguments = model.get("init_args", {})
    if "features" not in arguments and "shape" not in arguments:
        return None  # the data decide
    with torch.device("meta"):
        flow = getattr(contraflow.flows, model["class_path"])(**arguments)
    return sum(parameter.numel() for parameter in flow.parameters())
