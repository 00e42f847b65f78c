"""A bare figure in the colours of a theme, and its way into a page or a file.

Everything is set on the figure itself: matplotlib's global settings are neither
read for style nor written.
"""

import base64
import io
import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure

from contraflow.report._theme import Theme

WIDTH = 7.4  # inches; the column of the page
NARROW = 4.1  # inches; a telephone
DPI = 192  # two device pixels for each CSS pixel
_MOST_VECTOR_MARKS = 1500  # beyond it an SVG is larger than the PNG and slower to draw
_UNIQUE_ID = re.compile(r"\b[a-z][0-9a-f]{10}\b")


def blank(width: float, height: float, *, fitted: bool = True) -> Figure:
    """Return an empty figure, ``width`` by ``height`` in inches of 96 CSS pixels.

    Its margins fit the labels unless the caller sets them and says ``fitted=False``.
    """
    layout = "constrained" if fitted else None
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="none")


def pixels(height: int, width: int) -> tuple[Figure, Axes]:
    """Return a figure of exactly ``height`` by ``width`` pixels, filled by one frameless axes."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    return figure, axes


def short(name: str, length: int = 16) -> str:
    """Return ``name``, its middle left out where it is longer than ``length``.

    Example:
        >>> short("transforms.0.branch", 11)
        'trans…ranch'
    """
    if len(name) <= length:
        return name.replace("$", r"\$")  # matplotlib would set $…$ as mathematics
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}".replace("$", r"\$")


def dress(axes: Axes, theme: Theme, *, x: str = "", y: str = "", title: str = "") -> None:
    """Label ``axes`` and reduce its frame to the two lines that carry ticks."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.rule)
        spine.set_linewidth(0.8)
    axes.tick_params(
        colors=theme.rule, labelcolor=theme.muted, labelsize=8.5, length=3, width=0.8, which="major"
    )
    axes.tick_params(length=0, which="minor")
    axes.set_xlabel(x, color=theme.ink, fontsize=9.5)
    axes.set_ylabel(y, color=theme.ink, fontsize=9.5)
    if title:
        axes.set_title(title, color=theme.ink, fontsize=10, loc="left", pad=8)


def legend(axes: Axes, theme: Theme, *, columns: int = 3) -> None:
    """Put a frameless legend above the left end of ``axes``."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.4,
    )


def best_format(figure: Figure) -> str:
    """Return ``svg`` for a drawing of few marks, ``png`` for images and clouds of points."""
    marks = 0
    for axes in figure.axes:
        if axes.images or any(isinstance(mesh, QuadMesh) for mesh in axes.collections):
            return "png"
        marks += sum(
            len(cloud.get_offsets())  # pyright: ignore[reportArgumentType]
            for cloud in axes.collections
            if isinstance(cloud, PathCollection)
        )
        marks += sum(len(line.get_xdata()) for line in axes.lines)  # pyright: ignore[reportArgumentType]
    return "png" if marks > _MOST_VECTOR_MARKS else "svg"


def encode(figure: Figure, file_format: str) -> bytes:
    """Return the figure as the bytes of a file on a transparent ground.

    Equal figures give equal bytes: dates and matplotlib's random ids are taken out.
    """
    # The canvases are called by name: ``savefig`` would draw everything twice.
    if file_format != "svg":
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()
    drawing = io.StringIO()
    FigureCanvasSVG(figure).print_svg(drawing, metadata={"Date": None, "Creator": None})
    names: dict[str, str] = {}
    text = _UNIQUE_ID.sub(
        lambda match: names.setdefault(match[0], f"id{len(names)}"), drawing.getvalue()
    )
    return text.encode()


def data_uri(figure: Figure) -> str:
    """Return the figure as a ``data:`` address, in the format that suits it."""
    file_format = best_format(figure)
    kind = "image/svg+xml" if file_format == "svg" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(encode(figure, file_format)).decode()}"


def write_png(figure: Figure, path: str | Path) -> None:
    """Write the figure to ``path`` as a PNG on white paper."""
    figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
