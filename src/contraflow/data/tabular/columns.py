"""What a pass over a table tells about its columns: spread, ends, twins, domains."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contraflow.data.tabular.file import count
from contraflow.domain import Domain
from contraflow.errors import DataError

_MOST_LEVELS = 256  # more whole numbers than these are taken for measurements
_KNOWN_INTERVALS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 100.0))
_SAMPLE = 2**16


class ColumnStatistics:
    """Statistics of all columns, updated piece by piece.

    Args:
        names: column names.

    Attributes:
        rows: rows seen.
        mean, std, low, high: of each column.
        at_low, at_high: rows that have the lowest and the highest value.
        sample: the first rows.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        size = len(self.names)
        self.rows = 0
        self.mean = np.zeros(size)
        self.low = np.full(size, math.inf)
        self.high = np.full(size, -math.inf)
        self.rounding = np.zeros(size)  # largest error of a value in float32
        self.whole = np.ones(size, bool)
        self.sample = np.empty((0, size))
        self.at_low = np.zeros(size, np.int64)
        self.at_high = np.zeros(size, np.int64)
        self._squares = np.zeros(size)
        self._digests = [hashlib.blake2b(digest_size=16) for _ in self.names]

    @property
    def std(self) -> np.ndarray:
        """Return standard deviations, ddof 0."""
        return np.sqrt(self._squares / max(self.rows, 1))

    def add(self, values: np.ndarray) -> np.ndarray:
        """Take in finite float64 ``[n, D]``; return them in float32."""
        total = self.rows + len(values)
        with np.errstate(over="ignore", invalid="ignore"):  # float32 is checked later
            mean = values.mean(0)
            delta = mean - self.mean
            # Chan, Golub and LeVeque 1979: two pieces' sums of squares.
            between = delta**2 * (self.rows * len(values) / total)
            self._squares += ((values - mean) ** 2).sum(0) + between
            self.mean += delta * (len(values) / total)
        for side, of_piece in (("low", values.min(0)), ("high", values.max(0))):
            self._count_end(side, of_piece, (values == of_piece).sum(0))
        self.whole &= (values == np.round(values)).all(0)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values.astype(np.float32)
            self.rounding = np.maximum(self.rounding, np.abs(rounded - values).max(0))
        for i, digest in enumerate(self._digests):
            digest.update(np.ascontiguousarray(values[:, i]).data)
        if len(self.sample) < _SAMPLE:
            self.sample = np.concatenate([self.sample, values[: _SAMPLE - len(self.sample)]])
        self.rows = total
        return rounded

    def _count_end(self, side: str, ends: np.ndarray, times: np.ndarray) -> None:
        known, counts = getattr(self, side), getattr(self, f"at_{side}")
        further = ends < known if side == "low" else ends > known
        counts[:] = np.where(further, times, counts + np.where(ends == known, times, 0))
        known[:] = np.where(further, ends, known)

    def check(self, path: object, modelled: Sequence[int]) -> None:
        """Refuse columns that no density can be fitted to, and warn of those that hardly can.

        Args:
            path: of the file, for messages.
            modelled: columns of x; the others are only conditioned on.

        Raises:
            DataError: a modelled column is constant, or would be blurred by float32.
        """
        self._check_float32(path)
        self._check_constant(path, set(modelled))
        self._check_twins(path, set(modelled))

    def _check_float32(self, path: object) -> None:
        varies = self.high > self.low
        blurred = ~np.isfinite(self.rounding) | ((self.rounding > 1e-3 * self.std) & varies)
        if blurred.any():
            i = int(blurred.argmax())
            raise DataError(
                f"{path}: float32 rounds column {self.names[i]!r} by up to {self.rounding[i]:.1e}, "
                f"against its standard deviation {self.std[i]:.1e}; expected at most a thousandth "
                "of it. Subtract an offset from the column, or change its unit."
            )

    def _check_constant(self, path: object, modelled: set[int]) -> None:
        constant = [i for i in range(len(self.names)) if not self.high[i] > self.low[i]]
        shown = ", ".join(f"{self.names[i]!r} ({self.low[i]:g})" for i in constant[:20])
        if modelled & set(constant):
            raise DataError(
                f"{path}: {count(len(constant), 'column')} with one value only, {shown}: a "
                "constant has no density. Leave the columns out with exclude."
            )
        if constant:
            warnings.warn(
                f"{path}: context columns with one value only, {shown}: nothing can be learned "
                "from them.",
                stacklevel=2,
            )

    def _check_twins(self, path: object, modelled: set[int]) -> None:
        pairs = [pair for pair in self._twins() if modelled & set(pair)]
        if pairs:
            shown = ", ".join(f"{self.names[i]!r} and {self.names[j]!r}" for i, j in pairs[:10])
            warnings.warn(
                f"{path}: {count(len(pairs), 'pair')} of columns where one is a linear function of "
                f"the other: {shown}. Together they have no density, and the likelihood will grow "
                "without bound: leave one of each pair out with exclude.",
                stacklevel=3,
            )

    def _twins(self) -> list[tuple[int, int]]:
        """Return pairs that are equal everywhere, or linear in each other as far as seen."""
        first: dict[bytes, int] = {}
        pairs = [
            (first[digest.digest()], i)
            for i, digest in enumerate(self._digests)
            if first.setdefault(digest.digest(), i) != i
        ]
        if len(self.sample) >= 10 and len(self.names) <= 1024:
            centred = self.sample - self.sample.mean(0)
            norms = np.sqrt((centred**2).sum(0))
            unit = centred / np.where(norms > 0, norms, 1.0)
            # One minus the correlation is half the squared distance: no digits are lost.
            for i in range(len(self.names)):
                for sign in (1.0, -1.0):
                    gap = ((unit[:, i : i + 1] - sign * unit[:, i + 1 :]) ** 2).sum(0) / 2
                    close = (gap < 1e-12) & (norms[i] > 0) & (norms[i + 1 :] > 0)
                    pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(close)]
        return sorted(set(pairs))


@dataclass(frozen=True)
class Supports:
    """Which domain each column has.

    Args:
        bounds: declared ends, name to ``(low, high)``; None for no end.
        ordinal: names of columns of whole numbers, to be dequantised.
        find: look for domains of the other columns in the data.
    """

    bounds: dict[str, tuple[float | None, float | None]]
    ordinal: tuple[str, ...]
    find: bool

    def domains(
        self, path: object, statistics: ColumnStatistics, columns: Sequence[int]
    ) -> tuple[Domain, ...] | None:
        """Return a domain for each of the columns; None if all are the real line.

        Raises:
            DataError: data lie outside declared bounds, or an ordinal column is not of whole
                numbers.
        """
        domains = tuple(self._domain(path, statistics, i) for i in columns)
        return None if all(domain.unbounded for domain in domains) else domains

    def _domain(self, path: object, statistics: ColumnStatistics, i: int) -> Domain:
        name = statistics.names[i]
        low, high = float(statistics.low[i]), float(statistics.high[i])
        if name in self.bounds:
            declared = self.bounds[name]
            for end, value, outside in zip(
                declared, (low, high), (low < _or(declared[0], -math.inf),
                                        high > _or(declared[1], math.inf)), strict=True
            ):  # fmt: skip
                if outside:
                    raise DataError(
                        f"{path}: column {name!r} reaches {value:g}, beyond its declared end "
                        f"{end:g}. Correct the data, or the bounds."
                    )
            if name in self.ordinal:
                low, high = _or(declared[0], low), _or(declared[1], high)
                return self._levels(path, statistics, i, low, high)
            return _opened(declared, low, high, float(statistics.std[i]))
        if name in self.ordinal:
            return self._levels(path, statistics, i, low, high)
        return _found(statistics, i) if self.find else Domain()

    def _levels(
        self, path: object, statistics: ColumnStatistics, i: int, low: float, high: float
    ) -> Domain:
        if not statistics.whole[i] or low != int(low) or high != int(high):
            raise DataError(
                f"{path}: column {statistics.names[i]!r} is declared ordinal but holds values that "
                "are not whole numbers. Number its levels 0, 1, 2, or leave it out of ordinal."
            )
        return Domain(low, high, integer=True)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _opened(ends: tuple[float | None, float | None], low: float, high: float, std: float) -> Domain:
    """Return the open interval; an end that the data touch moves out by a thousandth of the std."""
    lower, upper = ends
    if lower is not None and low - lower < 1e-6 * std:
        lower -= 1e-3 * std
    if upper is not None and upper - high < 1e-6 * std:
        upper += 1e-3 * std
    return Domain(lower, upper)


def _found(statistics: ColumnStatistics, i: int) -> Domain:
    """Judge a column by its values: few whole numbers, a known interval, or a heap above 0."""
    low, high, std = (float(a[i]) for a in (statistics.low, statistics.high, statistics.std))
    levels = high - low + 1
    if statistics.whole[i] and levels <= _MOST_LEVELS and statistics.rows >= 4 * levels:
        return Domain(low, high, integer=True)
    for ends in _KNOWN_INTERVALS:
        edge = 0.02 * (ends[1] - ends[0])
        if ends[0] <= low < ends[0] + edge and ends[1] - edge < high <= ends[1]:
            return _opened(ends, low, high, std)
    if low >= 0 and len(statistics.sample) >= 100:
        near = (statistics.sample[:, i] < 0.1 * std).mean()
        if near >= 0.01:
            return _opened((0.0, None), low, high, std)
    return Domain()


def warn_of_atoms(
    path: object, statistics: ColumnStatistics, columns: Sequence[int], domains: Sequence[Domain]
) -> None:
    """Warn where many rows share the lowest or the highest value of a continuous column."""
    heaps = []
    for i, domain in zip(columns, domains, strict=True):
        for value, times in (
            (statistics.low[i], statistics.at_low[i]),
            (statistics.high[i], statistics.at_high[i]),
        ):
            if not domain.integer and times > max(10, 0.01 * statistics.rows):
                share = times / statistics.rows
                heaps.append((share, f"{share:.0%} at {value:g} in {statistics.names[i]!r}"))
    if heaps:
        shown = [text for _, text in sorted(heaps, reverse=True)]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        warnings.warn(
            f"{path}: many rows share one value of a column that is modelled as continuous: "
            f"{', '.join(shown[:3])}{more}. A density can grow without bound there, and its "
            "likelihood says little. If such a column holds levels, name it in ordinal.",
            stacklevel=3,
        )
