"""POWER: electricity used by one household, minute by minute."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from contraflow.data.benchmarks._protocol import (
    as_splits,
    check_columns,
    cut_from_end,
    find_files,
    moments,
)
from contraflow.data.splits import Source, Splits
from contraflow.data.tabular import read_table

_SUB_METERS = ("sub_metering_1", "sub_metering_2", "sub_metering_3")
_COLUMNS = ("global_active_power", "voltage", *_SUB_METERS, "time")
_FILE_COLUMNS = 8  # the above, with reactive power after the first and intensity after voltage
_ROWS = (1_659_917, 184_435, 204_928)


@dataclass(frozen=True)
class Power(Source):
    """Household electricity, 6 columns: 1,659,917 / 184,435 / 204,928 rows.

    x is the published benchmark itself, float32: rows shuffled, uniform noise below the meters'
    resolution added, standardised on training and validation rows. So log-likelihoods in nats
    are directly comparable with published ones.

    Args:
        root: data root, with ``power/data.npy`` in it or in ``root/data``; None takes the
            variable ``CONTRAFLOW_DATA``.
        download: fetch the release (857 MB, all five tables) if the file is missing.

    Reference:
        Papamakarios et al. 2017, arXiv:1705.07057, appendix D; UCI repository, "Individual
        household electric power consumption".
    """

    root: str | os.PathLike[str] | None = None
    download: bool = False

    def load(self) -> Splits:
        """Read, shuffle, blur, split and standardise the rows.

        Raises:
            DataError: the file is missing or malformed.
        """
        (path,) = find_files("Power", self.root, [("power/data.npy",)], fetch=self.download)
        _, raw = read_table(path)
        check_columns(path, raw.shape[1], _FILE_COLUMNS)

        # The published noise: one generator, and its draws in exactly this order.
        generator = np.random.RandomState(42)
        rows = raw[generator.permutation(len(raw))]  # draws what shuffling the rows draws
        rows = np.delete(rows, (1, 3), axis=1)  # [N, 6]
        rows[:, 1:2] += 0.01 * generator.rand(len(rows), 1)  # voltage
        rows[:, 0:1] += 0.001 * generator.rand(len(rows), 1)  # active power
        rows[:, 2:5] += generator.rand(len(rows), 3)  # sub-meters; time has no noise

        parts = cut_from_end(path, rows)
        mean, std = moments(path, rows[: len(parts[0]) + len(parts[1])], ddof=0)
        scaled = [(part - mean) / std for part in parts]
        return as_splits("Power", scaled, columns=_COLUMNS, published=_ROWS)
