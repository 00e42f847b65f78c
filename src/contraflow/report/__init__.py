"""Plots and the self-contained HTML report of a run; needs matplotlib."""

from contraflow.report.contents import Density, ReportContents, read_metrics
from contraflow.report.html import render_report
from contraflow.report.plots import (
    DARK,
    LIGHT,
    Theme,
    image_grid,
    image_value_range,
    lipschitz_bars,
    plane,
    reconstruction_errors,
    reconstruction_strip,
    samples_figure,
    save_samples,
    table_plot,
    training_curves,
)

__all__ = [
    "DARK",
    "LIGHT",
    "Density",
    "ReportContents",
    "Theme",
    "image_grid",
    "image_value_range",
    "lipschitz_bars",
    "plane",
    "read_metrics",
    "reconstruction_errors",
    "reconstruction_strip",
    "render_report",
    "samples_figure",
    "save_samples",
    "table_plot",
    "training_curves",
]
