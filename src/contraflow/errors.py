"""Errors that say what failed, what arrived, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ContraflowError(Exception):
    """Base of every error that contraflow raises on purpose."""


class DataError(ContraflowError, ValueError):
    """A data set is missing, malformed, or holds values that no density can be fitted to."""


class ShapeError(ContraflowError, ValueError):
    """A tensor's shape does not fit the module that received it."""


class DtypeError(ContraflowError, TypeError):
    """A tensor's dtype differs from the module's."""


class NotContractiveError(ContraflowError, ValueError):
    """A branch's Lipschitz bound is 1 or more, so ``id + g`` need not be invertible."""


class ConvergenceError(ContraflowError, RuntimeError):
    """An iteration missed its tolerance.

    Args:
        message: what failed, what was expected, what to do.
        solution: the whole unconverged answer, per-row ``converged`` mask included, so
            that a caller can inspect it; it never leaves as a bare tensor.

    Example:
        >>> error = ConvergenceError("Picard: 1 of 2 rows missed atol=1e-05.", solution="kept")
        >>> str(error), error.solution
        ('Picard: 1 of 2 rows missed atol=1e-05.', 'kept')
    """

    def __init__(self, message: str, *, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class ConfigurationError(ContraflowError, ValueError):
    """An option, a preset's name or a combination of choices is not valid."""


class SupportError(ContraflowError, ValueError):
    """A value lies outside the set on which a transform or a density is defined."""


class DivergenceError(ContraflowError, RuntimeError):
    """Training produced a NaN or an infinity, or its loss ran away."""


class LoadError(ContraflowError, ValueError):
    """A saved flow cannot be read back: damaged, foreign, or from another version."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice closest to ``name``, else ``""``.

    Upper and lower case count as equal. The text is meant to be appended to the part of a
    message that says which name was not found.

    Example:
        >>> nearest("checkerbord", ["rings", "checkerboard"])
        "; did you mean 'checkerboard'?"
        >>> nearest("zzz", ["rings", "checkerboard"])
        ''
    """
    by_folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=1)
    return f"; did you mean {by_folded[found[0]]!r}?" if found else ""


def in_brief(error: object, most: int = 300) -> str:
    r"""Return an error's text in one line of at most ``most`` characters.

    Example:
        >>> in_brief(ValueError("first\n  second"))
        'first second'
        >>> in_brief("x" * 9, most=4)
        'xxx…'
    """
    text = " ".join(str(error)[: 4 * most].split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
