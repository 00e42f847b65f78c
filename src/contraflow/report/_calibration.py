"""The calibration of a flow: curves around zero, and what they say."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contraflow.evaluation import Calibration
from contraflow.report import _canvas
from contraflow.report._canvas import WIDTH
from contraflow.report._points import column_names
from contraflow.report._text import number
from contraflow.report._theme import LIGHT, Theme

_MOST_CURVES = 64
_GRID = np.linspace(0.0, 1.0, 401)

_SPREADS = {
    "narrow": (
        "The radial curve leaves it below: held-out rows lie farther out in latent space than the "
        "base, so the flow is too narrow (under-dispersed)."
    ),
    "wide": (
        "The radial curve leaves it above: held-out rows lie closer to the latent centre than the "
        "base, so the flow is too wide (over-dispersed)."
    ),
    "light tails": (
        "The radial curve goes to both sides of zero: held-out rows lie too often near the latent "
        "centre and too often far out, so the flow's tails are too light for its width."
    ),
    "heavy tails": (
        "The radial curve goes to both sides of zero: held-out rows lie too rarely near the latent "
        "centre and too rarely far out, so the flow's radii vary too much."
    ),
}


def calibration_plot(
    calibration: Calibration, *, width: float = WIDTH, theme: Theme = LIGHT
) -> Figure:
    """Draw the empirical distribution function of u, less u, of every latent coordinate.

    Args:
        calibration: what ``contraflow.evaluation.calibrate`` returned.
        width: width in inches.
        theme: colours.
    """
    u = calibration.u.numpy()  # [N, D+1]
    size, band = u.shape[1] - 1, calibration.band
    figure = _canvas.blank(width, 3.2)
    axes = figure.add_subplot()
    _canvas.dress(axes, theme, x="u", y="F̂(u) − u")
    label = f"{100 * (1 - calibration.level):.3g}% band, all {size + 1} curves together"
    axes.axhspan(-band, band, color=theme.rule, alpha=0.5, linewidth=0, label=label)
    axes.axhline(0.0, color=theme.muted, linewidth=0.8)
    worst = calibration.worst
    for column in np.unique(np.linspace(0, size - 1, min(size, _MOST_CURVES)).round()):
        if column != worst:
            axes.plot(_GRID, _excess(u[:, int(column)]), color=theme.data, linewidth=0.7, alpha=0.6)
    shown = [
        (_excess(u[:, worst]), theme.second, 1.5, f"worst coordinate, {coordinate(calibration)}"),
        (_excess(u[:, -1]), theme.samples, 2.2, "radius"),
    ]
    for curve, colour, weight, name in shown:
        axes.plot(_GRID, curve, color=colour, linewidth=weight, label=name)
    reach = float(calibration.distance.max())
    axes.set_ylim(-1.15 * max(reach, 1.3 * band), 1.15 * max(reach, 1.3 * band))
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _canvas.legend(axes, theme, columns=3 if width > 6 else 1)
    return figure


def _excess(u: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(u), _GRID, "right") / len(u) - _GRID


def coordinate(calibration: Calibration) -> str:
    """Return the name of the worst latent coordinate, counted from 1."""
    size = calibration.u.shape[1] - 1
    return column_names(None, size, "z")[calibration.worst]


def reading(calibration: Calibration) -> str:
    """Return what the curves say, and no more.

    Example:
        >>> import torch
        >>> from contraflow.evaluation import calibrate
        >>> from contraflow.flow import Flow
        >>> from contraflow.transforms import Standardise
        >>> wide = 2 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        >>> text = reading(calibrate(Flow(Standardise(2), event_shape=(2,)), wide))
        >>> "the flow is too narrow (under-dispersed)" in text
        True
    """
    size = calibration.u.shape[1] - 1
    rows = number(len(calibration.u))
    level = number(100 * calibration.level, 3)
    outside = int((calibration.distance[:-1] > calibration.band).sum())
    radial = bool(calibration.distance[-1] > calibration.band)
    if not calibration.rejected:
        verdict = (
            f"All {size + 1} curves stay inside the band: {rows} held-out rows show no fault of "
            "this kind. That is no proof: dependence between latent coordinates shows in the "
            "radius alone, and more rows would see smaller faults."
        )
    else:
        several = f"{outside} of {size} coordinate{'s' * (size > 1)}"
        who = "The radius leaves" if not outside else f"{several} leave{'s' * (outside == 1)}"
        if outside and radial:
            who = f"{several} and the radius leave"
        verdict = (
            f"{who} the band, which happens to a correct flow in at most {level}% of all test sets."
        )
    if radial:
        verdict += f" {_SPREADS[calibration.radial_spread]}"
    worst, chance = calibration.distance[:-1].max().item(), calibration.p_value[:-1].min().item()
    shown = f"p = {number(chance, 2)}" if chance > 1e-300 else "p below 10⁻³⁰⁰"
    return (
        f"{verdict} Worst coordinate: {coordinate(calibration)}, distance {number(worst, 2)} "
        f"({shown} alone, before correcting for having looked at {size + 1}); the band is "
        f"±\u00a0{number(calibration.band, 2)}."
    )
