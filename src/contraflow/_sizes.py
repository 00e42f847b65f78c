"""Sizes that a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from contraflow.errors import ConfigurationError


def check_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of hidden layers as a tuple.

    Raises:
        ConfigurationError: one is not a whole number of 1 or more.

    Example:
        >>> check_widths("hidden_features", [128, 128])
        (128, 128)
    """
    wrong = [w for w in widths if isinstance(w, bool) or not isinstance(w, Integral) or w < 1]
    if wrong:
        raise ConfigurationError(
            f"{name}={list(widths)}; expected whole numbers of 1 or more, such as [128, 128]."
        )
    return tuple(int(w) for w in widths)
