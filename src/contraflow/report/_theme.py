"""Colours of the figures on light and on dark paper."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Colours of one figure, chosen to stay apart for colour-blind readers.

    Args:
        ink: titles and axis labels.
        muted: tick labels and remarks.
        rule: axes and grid lines.
        data: marks that stand for data.
        samples: marks that stand for the flow.
        on_samples: text on an area in the colour of samples.
        second: the second series of a plot.
        third: the third series of a plot.
        fourth: the fourth.
        failure: what is wrong: a bound of 1 or more, a value that is not finite.
    """

    ink: str
    muted: str
    rule: str
    data: str
    samples: str
    on_samples: str
    second: str
    third: str
    fourth: str
    failure: str


# Blue, vermillion, green and purple of Okabe and Ito (2008), lightened for dark paper.
LIGHT = Theme(
    ink="#1f2328",
    muted="#57606a",
    rule="#d0d7de",
    data="#858d96",
    samples="#0072b2",
    on_samples="#ffffff",
    second="#d55e00",
    third="#008a65",
    fourth="#a8518a",
    failure="#d55e00",
)
DARK = Theme(
    ink="#e6e8eb",
    muted="#a2abb5",
    rule="#3b434c",
    data="#8d96a0",
    samples="#56b4e9",
    on_samples="#10151a",
    second="#f0a35c",
    third="#3fc79a",
    fourth="#dd94c2",
    failure="#ff8a50",
)
