"""The frame of a page and its small parts: figures, tiles, tables, what is missing."""

import html
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from contraflow.report._canvas import NARROW, WIDTH, data_uri
from contraflow.report._stylesheet import STYLESHEET
from contraflow.report._text import number, text
from contraflow.report._theme import DARK, LIGHT, Theme

_DARK = "screen and (prefers-color-scheme: dark)"
_SMALL = "(max-width: 34rem)"

# No address but data: may load, so a hostile name cannot fetch anything either.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_UNITS = {"bits_per_dim": "bits/dim", "nats": "nats"}


def frame(title: str, head: str, sections: Iterable[tuple[str, str]], *, wide: bool = False) -> str:
    """Return a whole document.

    Args:
        title: heading; escaped here.
        head: markup between the heading and the sections.
        sections: heading and markup of each; a section without markup is left out.
        wide: leave room for a table of many columns.
    """
    body = "\n".join(
        f'<section id="{heading.split()[0].lower()}">\n<h2>{heading}</h2>\n{part}\n</section>'
        for heading, part in sections
        if part
    )
    title = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title} · contraflow report</title>
<style>{STYLESHEET}</style>
</head>
<body>
<main{' class="wide"' if wide else ""}>
<p class="eyebrow">contraflow report</p>
<h1>{title}</h1>
{head}
{body}
<footer>Figures and numbers are part of this file; it loads nothing else.</footer>
</main>
</body>
</html>
"""


def tile(label: str, figure: str, note: str, mood: str = "") -> str:
    """Return one tile; ``figure`` is markup, the other texts are escaped here."""
    note = html.escape(note).replace("\n", "<br>")
    return (
        f'<div class="{mood}"><dt>{html.escape(label)}</dt>'
        f'<dd class="figure">{figure}</dd><dd class="note">{note}</dd></div>\n'
    )


def missing(what: str, command: str, reason: str | None = None) -> str:
    """Say what is not there, why if that is known, and which command adds it."""
    commands = dict.fromkeys((command, "contraflow report RUN"))
    steps = ", then ".join(f"<code>{html.escape(each)}</code>" for each in commands)
    why = f" {html.escape(reason)}" if reason else ""
    return f'<p class="missing">{html.escape(what)}{why} To add this part: {steps}.</p>'


def unit_of(evaluation: Mapping[str, object]) -> str:
    """Return the unit of an evaluation as it is written."""
    unit = text(evaluation, "unit", "unit not given")
    return _UNITS.get(unit, unit)


def picture(
    draw: Callable[[Theme, float], Figure],
    description: str,
    caption: str,
    *,
    width: float = WIDTH,
    themed: bool = True,
) -> str:
    """Return a figure drawn anew for dark screens and for narrow ones.

    Args:
        draw: the drawing, in the colours of a theme and at a width in inches.
        description: text for readers who do not see the image.
        caption: text below the figure.
        width: width in inches; a figure as wide as a telephone is not drawn anew for it.
        themed: the drawing depends on the theme.
    """
    light = draw(LIGHT, width)
    pixels = [round(inches * 96) for inches in light.get_size_inches()]
    drawings: list[tuple[str, Theme, float]] = []
    if width > NARROW:
        if themed:
            drawings.append((f"{_DARK} and {_SMALL}", DARK, NARROW))
        drawings.append((f"screen and {_SMALL}", LIGHT, NARROW))
    if themed:
        drawings.append((_DARK, DARK, width))
    sources = "".join(
        f'<source media="{media}" srcset="{data_uri(draw(theme, inches))}">'
        for media, theme, inches in drawings
    )
    return (
        f'<figure><picture>{sources}<img alt="{html.escape(description)}" width="{pixels[0]}" '
        f'height="{pixels[1]}" src="{data_uri(light)}"></picture>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, texts: Container[str] = ()
) -> str:
    """Return a table: numbers to 4 digits, to the right, but ``texts`` to the left."""
    kinds = ["" if name in texts else "number" for name in columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{html.escape(name)}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}">{html.escape(number(entry))}</td>'
            for entry, kind in zip(row, kinds, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )
