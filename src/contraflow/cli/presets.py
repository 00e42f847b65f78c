"""``contraflow presets``: what can be trained by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from contraflow.cli._config import preset_names, read_preset


def run(words: Sequence[str]) -> int:
    """List the presets; with ``--json`` as one list on standard output."""
    parser = ArgumentParser(prog="contraflow presets", description="List the presets.")
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output")
    options = parser.parse_args(list(words))
    entries = [describe(name) for name in preset_names()]
    if options.json:
        print(json.dumps(entries, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "flow", "data", "parameters", "description", box=None, pad_edge=False)
    for entry in entries:
        count = entry["parameters"]
        table.add_row(
            entry["name"],
            entry["flow"],
            entry["data"],
            "from the data" if count is None else f"{count:,}",
            entry["description"],
        )
    Console().print(table)
    return 0


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


def _count_parameters(model: dict[str, Any]) -> int | None:
    import torch

    import contraflow.flows

    arguments = model.get("init_args", {})
    if "features" not in arguments and "shape" not in arguments:
        return None  # the data decide
    with torch.device("meta"):
        flow = getattr(contraflow.flows, model["class_path"])(**arguments)
    return sum(parameter.numel() for parameter in flow.parameters())
