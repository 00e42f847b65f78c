"""What a report shows, and how the metrics of a run are read."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contraflow.evaluation import Calibration

Density = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Grid ``xs`` ``[X]``, ``ys`` ``[Y]`` and ``log_density`` ``[Y, X]`` in nats."""


@dataclass(frozen=True, eq=False)
class Stages:
    """Points of the plane on their way through a flow, data first, latent last.

    Args:
        names: titles of the S stages.
        points: ``[S, N, 2]``, the same rows at every stage.
        circles: ``[S, R, P, 2]``, closed curves: the latent circles of radius 1 ... R carried
            back to the data; None where they were not.
        rays: ``[S, K, P, 2]``, the rays from the latent origin likewise.
        blocks: which parts of the flow the stages follow, in words.
    """

    names: Sequence[str]
    points: np.ndarray
    circles: np.ndarray | None = None
    rays: np.ndarray | None = None
    blocks: str = ""


@dataclass(frozen=True, eq=False)
class Picked:
    """Rows that stand out, and what is known of each.

    Args:
        title: what they are.
        note: how they were picked.
        values: ``[K, *event]``.
        facts: name to K numbers, in the order of the rows.
        context: ``[K, M]``, what the rows were conditioned on.
    """

    title: str
    note: str
    values: np.ndarray
    facts: Mapping[str, Sequence[float]]
    context: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class ReportContents:
    """Everything that a report shows; ``None`` marks a part that was not computed.

    Args:
        title: heading of the report, usually the name of the run.
        command: command line that produced the run.
        configuration: complete configuration as YAML text.
        environment: versions and hardware, name to value.
        metrics: rows of the training log, as ``read_metrics`` returns them.
        evaluation: the object of ``contraflow evaluate --json``.
        certificate: the object of ``contraflow certify --json``.
        data: held-out examples ``[N, *event]`` in the data's own units.
        samples: samples of the flow ``[N, *event]``, same units.
        reconstructions: ``inverse(forward(x))`` of the first rows of ``data``.
        columns: names of the ``D`` columns of a table.
        context_columns: names of the columns of the context.
        conditional: each sample was drawn at the context of a held-out row.
        density: log-density in nats on a grid, for flows over the plane.
        stages: points on their way through a flow over the plane.
        calibration: held-out rows in latent space against the base.
        picked: the slowest samples, the least likely samples and rows.
        flow: name of the recipe.
        data_set: name of the data.
        data_options: every option that changes the data, to tell whether two sets are the same.
        parameters: how many the flow has.
        steps: training steps.
        train_seconds: time that training took.
        missing: heading of a section to the reason why it is not complete.

    Raises:
        ValueError: the arrays disagree in shape, or the names in number.

    Example:
        >>> import numpy as np
        >>> ReportContents(title="moons", samples=np.zeros((8, 2))).event_shape
        (2,)
    """

    title: str
    command: str = ""
    configuration: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, float]] = ()
    evaluation: Mapping[str, object] | None = None
    certificate: Mapping[str, object] | None = None
    data: np.ndarray | None = None
    samples: np.ndarray | None = None
    reconstructions: np.ndarray | None = None
    columns: Sequence[str] | None = None
    context_columns: Sequence[str] | None = None
    conditional: bool = False
    density: Density | None = None
    stages: Stages | None = None
    calibration: Calibration | None = None
    picked: Sequence[Picked] = ()
    flow: str = ""
    data_set: str = ""
    data_options: str = ""
    parameters: int | None = None
    steps: int | None = None
    train_seconds: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse arrays that disagree."""
        shapes = {
            name: array.shape[1:]
            for name, array in (
                ("data", self.data),
                ("samples", self.samples),
                ("reconstructions", self.reconstructions),
            )
            if array is not None
        }
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"ReportContents: got event shapes {shapes}; expected one shape. "
                "Give data, samples and reconstructions in the data's own layout."
            )
        if self.reconstructions is not None:
            rows = 0 if self.data is None else len(self.data)
            if rows < len(self.reconstructions):
                raise ValueError(
                    f"ReportContents: got {len(self.reconstructions)} reconstructions of {rows} "
                    "rows of data. Give the rows that were reconstructed as the first of data."
                )
        if self.columns is not None and shapes:
            event = next(iter(shapes.values()))
            if event != (len(self.columns),):
                raise ValueError(
                    f"ReportContents: got {len(self.columns)} column names for events of shape "
                    f"{event}. Give one name for each column of a table."
                )
        if self.density is not None:
            xs, ys, log_density = self.density
            if log_density.shape != (len(ys), len(xs)):
                raise ValueError(
                    f"ReportContents: got log_density of shape {log_density.shape}; expected "
                    f"[len(ys), len(xs)] = {(len(ys), len(xs))}. Transpose it?"
                )

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """Shape of one example, or ``None`` where no array was given."""
        for array in (self.data, self.samples):
            if array is not None:
                return array.shape[1:]
        return None


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    r"""Read a ``metrics.csv``; a cell that was not logged is absent from its row.

    Args:
        path: file with one header line, as Lightning's ``CSVLogger`` writes it.

    Returns:
        One dictionary a row, column name to number; ``nan`` and ``inf`` are kept.

    Raises:
        ValueError: a cell is not a number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "metrics.csv"
        ...     _ = file.write_text("epoch,step,train/loss,val/loss\n0,49,2.5,\n0,99,,2.25\n")
        ...     read_metrics(file)[1]
        {'epoch': 0.0, 'step': 99.0, 'val/loss': 2.25}
    """
    rows: list[dict[str, float]] = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        for cells in reader:
            row: dict[str, float] = {}
            for name, cell in cells.items():
                if not name or not cell:
                    continue
                try:
                    row[name] = float(cell)
                except ValueError:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: got {cell!r} in column {name!r}; "
                        "expected a number or an empty cell."
                    ) from None
            rows.append(row)
    return rows
