"""GAS: readings of chemical sensors in mixtures of ethylene and carbon monoxide."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contraflow.data.benchmarks._frame_pickle import read_frame
from contraflow.data.benchmarks._protocol import as_splits, cut_from_end, find_files, moments
from contraflow.data.splits import Source, Splits
from contraflow.errors import DataError

_DROPPED = ("Meth", "Eth", "Time")  # concentrations and time: not readings
_MOST_CORRELATED = 0.98
_ROWS = (852_174, 94_685, 105_206)


@dataclass(frozen=True)
class Gas(Source):
    """Chemical sensors, 8 columns: 852,174 / 94,685 / 105,206 rows.

    x is the published benchmark itself, float32: of every group of sensors that say nearly the
    same, one is kept, and all rows standardise it. So log-likelihoods in nats are directly
    comparable with published ones.

    The released file is a pickle. It is read by an unpickler that builds arrays of numbers and
    nothing else, so that a forged one cannot run code.

    Args:
        root: data root, with ``gas/ethylene_CO.pickle`` in it or in ``root/data``; None takes
            the variable ``CONTRAFLOW_DATA``.
        download: fetch the release (857 MB, all five tables) if the file is missing.

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057, appendix D; UCI repository, "Gas sensor array
        under dynamic gas mixtures".
    """

    root: str | os.PathLike[str] | None = None
    download: bool = False

    def load(self) -> Splits:
        """Read, thin out, standardise and split the columns.

        Raises:
            DataError: the file is missing, malformed, or not a pickled frame of numbers.
        """
        (path,) = find_files("Gas", self.root, [("gas/ethylene_CO.pickle",)], fetch=self.download)
        names, values = read_frame(path)
        missing = sorted(set(_DROPPED) - set(names))
        if missing:
            raise DataError(
                f"{path}: got the columns {', '.join(names)}, expected also {', '.join(missing)}. "
                "Is this the released file?"
            )
        kept = [i for i, name in enumerate(names) if name not in _DROPPED]
        rows = values[:, kept]
        mean, std = moments(path, rows, ddof=1)

        chosen = _thin_out(path, rows)
        rows = (rows[:, chosen] - mean[chosen]) / std[chosen]
        columns = [names[kept[i]] for i in chosen]
        return as_splits("Gas", cut_from_end(path, rows), columns=columns, published=_ROWS)


def _thin_out(path: Path, rows: np.ndarray) -> list[int]:
    """Return the columns left: while two correlate above 0.98, the first that does so goes."""
    if rows.shape[1] == 0:
        raise DataError(f"{path}: got no sensors, expected columns beside {', '.join(_DROPPED)}.")
    close = np.atleast_2d(np.corrcoef(rows, rowvar=False)) > _MOST_CORRELATED  # [D, D]
    np.fill_diagonal(close, False)
    left = list(range(len(close)))
    while True:
        crowded = close[np.ix_(left, left)].any(1)
        if not crowded.any():
            return left
        del left[int(crowded.argmax())]
