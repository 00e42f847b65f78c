"""Does a value read from a file fit the annotation of the argument that it is meant for?

Only what JSON and registered types can express is judged; anything else passes, and the
constructor decides.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import nn

_PLAIN: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    type(None): (type(None),),
}


def misfit(constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the first argument that its annotation refuses, with the annotation.

    Args:
        constructor: a class or a function; one whose annotations cannot be read takes all.
        arguments: its arguments by name, those of ``*items`` as one sequence.

    Example:
        >>> def box(width: int, label: str = "", *parts: float): ...
        >>> misfit(box, {"width": 2, "label": "a", "parts": [1, 2.5]})
        >>> misfit(box, {"width": "2"})
        ('width', <class 'int'>)
    """
    hints = _hints_of(constructor)
    parameters = inspect.signature(constructor).parameters
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            hint = Sequence[hint]
        elif value is None and parameters[name].default is None:
            continue
        if not _fits(value, hint):
            return name, hint
    return None


@functools.cache
def _hints_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    function = constructor.__init__ if isinstance(constructor, type) else constructor
    try:
        return typing.get_type_hints(function)
    except Exception:  # names that exist for the type checker only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    hint = type(None) if hint is None else hint
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return value in (0, 1) if isinstance(value, int) else False
    if hint in _PLAIN:
        return isinstance(value, _PLAIN[hint]) and not isinstance(value, bool)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin in (Sequence, list, tuple):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and inner[-1:] != (...,):
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(item, inner[0]) for item in value)
    if not isinstance(hint, type):
        return True
    if issubclass(hint, nn.Module):  # a branch, say, may be anybody's module
        return isinstance(value, nn.Module)
    if is_dataclass(hint) or getattr(hint, "_is_runtime_protocol", False):
        return isinstance(value, hint)
    return True
