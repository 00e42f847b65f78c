"""MINIBOONE: particle identification in a neutrino experiment."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from contraflow.data.benchmarks._protocol import (
    as_splits,
    check_columns,
    cut_from_end,
    cut_tenth,
    find_files,
    moments,
)
from contraflow.data.splits import Source, Splits
from contraflow.data.tabular import read_table

_COLUMNS = 43
_ROWS = (29_556, 3_284, 3_648)
_RELEASED = ("miniboone/data.npy",)
_WITHOUT_TRAINING = ("miniboone/val.npy", "miniboone/test.npy")


@dataclass(frozen=True)
class Miniboone(Source):
    """Electron neutrinos against muon neutrinos, 43 columns: 29,556 / 3,284 / 3,648 rows.

    x is the published benchmark itself, float32: the released rows, outliers and repetitive
    features already taken out, standardised on training and validation rows. So log-likelihoods
    in nats are directly comparable with published ones.

    Where only the published validation and test rows are at hand, already standardised as
    ``miniboone/val.npy`` and ``miniboone/test.npy``, the last tenth of the validation rows
    validates and the others train, with a warning: the test rows are the published ones, but a
    ninth of the training rows is not the published training, and a result must say so.

    Args:
        root: data root, with ``miniboone/data.npy`` in it or in ``root/data``; None takes the
            variable ``CONTRAFLOW_DATA``.
        download: fetch the release (857 MB, all five tables) if the file is missing.

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057, appendix D; UCI repository, "MiniBooNE
        particle identification".
    """

    root: str | os.PathLike[str] | None = None
    download: bool = False

    def load(self) -> Splits:
        """Read, split and standardise the rows.

        Raises:
            DataError: a file is missing or malformed.
        """
        layouts = [_RELEASED, _WITHOUT_TRAINING]
        paths = find_files("Miniboone", self.root, layouts, fetch=self.download)
        if len(paths) == 2:
            return _load_without_training(*paths)
        (path,) = paths
        _, rows = read_table(path)
        check_columns(path, rows.shape[1], _COLUMNS)
        parts = cut_from_end(path, rows)
        mean, std = moments(path, rows[: len(parts[0]) + len(parts[1])], ddof=0)
        return as_splits("Miniboone", [(part - mean) / std for part in parts], published=_ROWS)


def _load_without_training(val_path: Path, test_path: Path) -> Splits:
    (_, rest), (_, test) = read_table(val_path), read_table(test_path)
    for path, rows in ((val_path, rest), (test_path, test)):
        check_columns(path, rows.shape[1], _COLUMNS)
    train, validation = cut_tenth(val_path, rest)
    warnings.warn(
        f"Miniboone: the published training split is missing ({val_path.parent}/data.npy is not "
        f"there): {len(train):,} of the {len(rest):,} published validation rows train, the others "
        f"validate, and the {len(test):,} published rows test. A result must be reported as such.",
        stacklevel=3,
    )
    return as_splits("Miniboone", (train, validation, test))
