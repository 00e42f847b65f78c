"""HEPMASS: simulated particle collisions."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contraflow.data.benchmarks._protocol import (
    as_splits,
    check_finite,
    cut_tenth,
    find_files,
    moments,
)
from contraflow.data.splits import Source, Splits
from contraflow.errors import DataError

_MOST_REPEATED = 5
_ROWS = (315_123, 35_013, 174_987)


@dataclass(frozen=True)
class Hepmass(Source):
    """Signal events at mass 1000, 21 columns: 315,123 / 35,013 / 174,987 rows.

    x is the published benchmark itself, float32: rows of class 1, standardised on the training
    file with its validation rows still in it, without the features that take few values. So
    log-likelihoods in nats are directly comparable with published ones.

    Args:
        root: data root, with ``hepmass/1000_train.csv`` and ``hepmass/1000_test.csv`` in it or in
            ``root/data``; None takes the variable ``CONTRAFLOW_DATA``.
        download: fetch the release (857 MB, all five tables) if the files are missing.

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057, appendix D; UCI repository, "HEPMASS".
    """

    root: str | os.PathLike[str] | None = None
    download: bool = False

    def load(self) -> Splits:
        """Read the signal events, standardise, drop repetitive features and split.

        Raises:
            DataError: a file is missing or malformed.
        """
        files = ("hepmass/1000_train.csv", "hepmass/1000_test.csv")
        train_path, test_path = find_files("Hepmass", self.root, [files], fetch=self.download)
        names, train = _read_signal(train_path)
        test_names, test = _read_signal(test_path)
        if len(test_names) not in (len(names), len(names) + 1):
            raise DataError(
                f"{test_path}: got {len(test_names)} features, expected the {len(names)} of "
                f"{train_path.name}, and at most one stray last column. Download it again."
            )
        test = test[:, : len(names)]
        check_finite(test_path, test)

        mean, std = moments(train_path, train, ddof=1)
        train, test = (train - mean) / std, (test - mean) / std
        # Published so: only the smallest value of each feature is counted.
        left = np.flatnonzero((train == train.min(0)).sum(0) <= _MOST_REPEATED)
        if len(left) == 0:
            raise DataError(
                f"{train_path}: every feature repeats its smallest value more than "
                f"{_MOST_REPEATED} times, expected real-valued features. Is this the released file?"
            )
        train, validation = cut_tenth(train_path, train[:, left])
        columns = [names[i] for i in left]
        parts = (train, validation, test[:, left])
        return as_splits("Hepmass", parts, columns=columns, published=_ROWS)


def _read_signal(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of the features and the rows of class 1, float64 ``[N, D]``."""
    try:
        import pandas as pd
    except ImportError as error:
        raise DataError(
            f"{path}: CSV files are read by pandas, which cannot be imported ({error}). "
            "Install it: pip install pandas."
        ) from error
    try:
        with warnings.catch_warnings():
            # A row may be one field longer than the header, which index_col=False cuts off.
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            frame = pd.read_csv(path, index_col=False, dtype=np.float64)
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise DataError(
            f"{path}: cannot be read as CSV of numbers ({error}). Download it again."
        ) from error
    if frame.shape[1] < 2:
        raise DataError(
            f"{path}: got {frame.shape[1]} columns, expected a label and features. "
            "Download it again."
        )
    values = frame.to_numpy()
    signal = values[values[:, 0] == 1, 1:]
    if len(signal) == 0:
        raise DataError(
            f"{path}: got no row of class 1 in {len(values)} rows, expected the label in the first "
            "column. Is this the released file?"
        )
    return [str(name) for name in frame.columns[1:]], signal
