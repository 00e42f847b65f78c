"""Numbers as a reader expects them: rounded to their error, never silently missing."""

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "\u2212"
_TIMES = "\u00d7"


def number(entry: object, digits: int = 4) -> str:
    """Return ``entry`` with ``digits`` significant digits; what is no number is said plainly.

    Example:
        >>> number(0.25), number(3.1e-7, 2), number(float("nan")), number(None)
        ('0.25', '3.1\u00d710⁻⁷', 'NaN (not a number)', 'not given')
    """
    if entry is None:
        return "not given"
    if isinstance(entry, bool) or not isinstance(entry, (int, float)):
        return str(entry)
    if math.isnan(entry):
        return "NaN (not a number)"
    if math.isinf(entry):
        return "infinite" if entry > 0 else f"{_MINUS}infinite"
    if isinstance(entry, int):
        return f"{entry:,}".replace(",", "\u202f").replace("-", _MINUS)
    if entry == 0 or 1e-3 <= abs(entry) < 1e6:
        shown = f"{entry:.{digits}g}"
        return (f"{float(shown):.0f}" if "e+" in shown else shown).replace("-", _MINUS)
    mantissa, exponent = f"{entry:.{digits - 1}e}".split("e")
    power = str(int(exponent)).translate(_SUPERSCRIPTS)
    return f"{mantissa}{_TIMES}10{power}".replace("-", _MINUS)


def bound(entry: object, digits: int = 4) -> str:
    """Return an upper bound, rounded up: a bound may loosen, never tighten.

    A bound below 1 gets as many digits as it takes to stay below 1.

    Example:
        >>> bound(0.92698), bound(0.999996), bound(1.5114e12, 3)
        ('0.9270', '0.999996', '1.52\u00d710¹²')
    """
    value = finite(entry)
    if value is None or value <= 0 or isinstance(entry, int):
        return number(entry, digits)
    exact = Decimal(repr(value))
    for places in range(digits - 1, 18):
        step = Decimal(1).scaleb(exact.adjusted() - places)
        rounded = float(exact.quantize(step, rounding=ROUND_CEILING))
        if value >= 1.0 or rounded < 1.0:
            digits = places + 1
            fixed = f"{rounded:#.{digits}g}".rstrip(".")  # zeros kept, to align in a column
            return fixed if 1e-3 <= rounded < 10**digits else number(rounded, digits)
    return repr(value)


def rounded_to(value: object, *errors: object) -> str:
    """Return ``value`` to two digits of its largest error, or to six digits without one.

    Example:
        >>> rounded_to(3.28413, 0.0121, 0.0002), rounded_to(3.28413, None)
        ('3.284', '3.28413')
    """
    known = [error for error in map(finite, errors) if error]
    size = finite(value)
    if size is None or not known or isinstance(value, int):
        return number(value, 6)
    decimals = min(max(1 - math.floor(math.log10(max(known))), 0), 8)
    return f"{size:.{decimals}f}".replace("-", _MINUS)


def finite(entry: object) -> float | None:
    """Return ``entry`` as a float if it is a finite number, else ``None``."""
    if isinstance(entry, bool) or not isinstance(entry, (int, float)):
        return None
    return float(entry) if math.isfinite(entry) else None


def text(table: Mapping[str, object], key: str, default: str = "not given") -> str:
    """Return the entry ``key`` as text, ``default`` where it is absent or null."""
    entry = table.get(key)
    return default if entry is None else str(entry)
