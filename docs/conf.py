"""Sphinx configuration: `make docs` builds these pages."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "contraflow"
author = "The contraflow contributors"
copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # pages hold text; code that must run is a doctest

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"contraflow {release}"


def escape_mathematics(app, what, name, obj, options, lines):
    """Let docstrings write |x - x*| and [*B, D] as a reader of the source would."""
    literal = False
    for i, line in enumerate(lines):
        if line.strip().startswith((">>>", "...")) or literal:
            literal = bool(line.strip())
            continue
        literal = line.rstrip().endswith("::")
        parts = line.split("``")  # every other part is a literal
        parts[::2] = [part.replace("|", r"\|").replace("*", r"\*") for part in parts[::2]]
        lines[i] = "``".join(parts)


def setup(app):
    # Before napoleon, which adds markup of its own.
    app.connect("autodoc-process-docstring", escape_mathematics, priority=400)
