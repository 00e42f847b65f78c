"""What the five tables share: where the release lies, how it is cut, scaled and checked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from contraflow.data.download import Remote, download
from contraflow.data.root import data_root
from contraflow.data.splits import Part, Splits
from contraflow.errors import DataError

RELEASE = Remote(
    "https://zenodo.org/records/1161203/files/data.tar.gz",
    "md5:9b9c9b0375315ad270eba4ce80c093ab",
    unpack=True,
)
"""Papamakarios 2018, "Preprocessed datasets for MAF experiments", Zenodo record 1161203, 857 MB."""

_CHECKED_ROWS = 2**16


def find_files(
    name: str,
    root: str | os.PathLike[str] | None,
    layouts: Sequence[tuple[str, ...]],
    *,
    fetch: bool,
) -> tuple[Path, ...]:
    """Return the files of the first layout that is complete, under the root or its ``data/``.

    Args:
        name: the source, for messages.
        root: data root; None takes the variable ``CONTRAFLOW_DATA``.
        layouts: sets of files, relative to the root; the first is that of the release.
        fetch: download and unpack the release unless its own files are there.

    Raises:
        DataError: no layout is complete, or the release cannot be fetched.
    """
    wanted = (
        f"Download {RELEASE.url} ({RELEASE.digest}, 857 MB) and unpack it into ROOT, which gives "
        f"{' and '.join(f'ROOT/data/{file}' for file in layouts[0])} (without data/ will do), or "
        "let download=True do that."
    )
    folder = data_root(root, wanted=wanted)
    if fetch and not _complete(folder, layouts[0]):
        download([RELEASE], folder)
    for layout in layouts:
        paths = _complete(folder, layout)
        if paths:
            return paths
    tried = ", nor ".join(
        " and ".join(str(place / file) for file in layout)
        for layout in layouts
        for place in _places(folder)
    )
    raise DataError(f"{name}: found neither {tried}. {wanted}")


def check_columns(path: Path, got: int, expected: int) -> None:
    """Refuse a table of another width.

    Raises:
        DataError: it has another number of columns.
    """
    if got != expected:
        raise DataError(
            f"{path}: got {got} columns, expected {expected}. Is this the released file? "
            f"Download {RELEASE.url} again."
        )


def check_finite(path: Path, rows: np.ndarray) -> None:
    """Refuse NaN and infinity in ``[N, D]``, block by block, so that a map is read only once.

    Raises:
        DataError: a value is not finite, or there is no row.
    """
    if len(rows) == 0:
        raise DataError(f"{path}: got no rows, expected at least one. Download it again.")
    for start in range(0, len(rows), _CHECKED_ROWS):
        bad = np.argwhere(~np.isfinite(rows[start : start + _CHECKED_ROWS]))
        if len(bad):
            row, column = bad[0]
            raise DataError(
                f"{path}: got {rows[start + row, column]} in row {start + row + 1}, column "
                f"{column + 1} (counted from 1), expected finite numbers. Download it again."
            )


def warn_of_rows(name: str, got: Sequence[int], expected: Sequence[int]) -> None:
    """Warn that a likelihood cannot be compared, if the parts have other sizes than published."""
    if tuple(got) != tuple(expected):
        sizes = (" / ".join(f"{count:,}" for count in counts) for counts in (got, expected))
        warnings.warn(
            "{}: got {} rows to train / validate / test, expected the published {}; likelihoods "
            "are not comparable with published ones.".format(name, *sizes),
            stacklevel=4,  # whoever called load()
        )


def cut_tenth(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows but the last tenth, rounded down, and that tenth.

    Raises:
        DataError: the tenth would be empty.
    """
    size = int(0.1 * len(rows))
    if size == 0:
        raise DataError(
            f"{path}: got {len(rows)} rows to take a tenth of, expected at least 10. "
            f"Is this the released file? Download {RELEASE.url} again."
        )
    return rows[:-size], rows[-size:]


def cut_from_end(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return training, validation and test rows: the last tenth tests, the tenth before validates.

    Raises:
        DataError: a part would be empty.
    """
    rest, test = cut_tenth(path, rows)
    return *cut_tenth(path, rest), test


def moments(path: Path, rows: np.ndarray, *, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation ``[D]`` of ``[N, D]``.

    Args:
        path: the file, for messages.
        rows: what to scale by.
        ddof: 0 divides by N (numpy's habit), 1 by N - 1 (pandas').

    Raises:
        DataError: a column is constant.
    """
    check_finite(path, rows)
    mean, std = rows.mean(0), rows.std(0, ddof=min(ddof, len(rows) - 1))
    constant = np.flatnonzero(rows.max(0) == rows.min(0))
    if len(constant):
        raise DataError(
            f"{path}: column {constant[0] + 1} (counted from 1) has one value alone, "
            f"{rows[0, constant[0]]:g}, expected columns that vary: this one cannot be "
            "standardised. Is this the released file?"
        )
    return mean, std


def as_splits(
    name: str,
    parts: Sequence[np.ndarray],
    *,
    columns: Sequence[str] | None = None,
    published: Sequence[int] | None = None,
) -> Splits:
    """Return float32 parts; unnamed columns are called x0, x1 and so on.

    Args:
        name: the source's class.
        parts: training, validation and test rows ``[N, D]``; float32 ones are not copied.
        columns: names of the D columns.
        published: sizes of the parts to warn about; None for data that cannot have them.
    """
    if columns is None:
        columns = [f"x{i}" for i in range(parts[0].shape[1])]
    if published is not None:
        warn_of_rows(name, [len(rows) for rows in parts], published)
    train, validation, test = (
        Part(torch.from_numpy(np.asarray(rows, dtype=np.float32))) for rows in parts
    )
    return Splits(name.lower(), train, validation, test, columns=tuple(columns))


def _places(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "data"  # as the archive unpacks


def _complete(folder: Path, layout: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the layout's files in the first place that has them all; else nothing."""
    for place in _places(folder):
        paths = tuple(place / file for file in layout)
        if all(path.is_file() for path in paths):
            return paths
    return ()
