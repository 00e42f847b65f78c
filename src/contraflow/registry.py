"""Names for types, so that saved flows hold configurations instead of code.

A registered class follows one convention, scikit-learn's: every argument of its constructor
is kept as an attribute of the same name. Its configuration is then what it was built from,
and ``build`` can call nothing but the constructors that this table names. A class whose
constructor is a recipe offers a classmethod ``rebuild`` instead, with the same convention.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from contraflow._hints import misfit
from contraflow.errors import ConfigurationError, LoadError, in_brief, nearest

T = TypeVar("T", bound=type)

_TYPES: dict[str, type] = {}

_DEEPEST = 100  # levels of a configuration; ten scales of an image flow take forty


def register(cls: T) -> T:
    """Let configurations and saved flows name ``cls`` by its class name.

    Args:
        cls: a class whose constructor keeps each argument as an attribute of the same name.

    Raises:
        ConfigurationError: another class already has this name.

    Example:
        >>> @register
        ... class Halver:
        ...     def __init__(self, factor=0.5):
        ...         self.factor = factor
        >>> configuration(Halver())
        {'type': 'Halver', 'factor': 0.5}
        >>> build({"type": "Halver", "factor": 0.25}).factor
        0.25
    """
    known = _TYPES.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise ConfigurationError(
            f"a type named {cls.__name__!r} is registered already "
            f"({known.__module__}.{known.__qualname__}); choose another class name."
        )
    _TYPES[cls.__name__] = cls
    return cls


def is_registered(cls: type) -> bool:
    """Tell whether ``cls`` itself (not only its base) has a name here."""
    return _TYPES.get(cls.__name__) is cls


def registered_types() -> tuple[type, ...]:
    """Return every registered type, in the order of registration."""
    return tuple(_TYPES.values())


def configuration(value: Any) -> Any:
    """Return ``value`` as JSON data that ``build`` turns back into an equal object.

    Args:
        value: plain data, or an instance of a registered class; nested at will.

    Raises:
        ConfigurationError: a class is not registered, or does not keep an argument.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): configuration(item) for key, item in value.items()}
    if not isinstance(value, type) and is_registered(type(value)):
        return {"type": type(value).__name__, **_arguments(value)}
    if isinstance(value, list | tuple):
        return [configuration(item) for item in value]
    raise ConfigurationError(
        f"{type(value).__module__}.{type(value).__qualname__} cannot be written into a "
        "configuration; decorate the class with @contraflow.register."
    )


def _arguments(value: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(_constructor(type(value))).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            raise ConfigurationError(
                f"{type(value).__name__}.__init__ takes **{name}; a registered class names "
                "its arguments."
            )
        try:
            arguments[name] = configuration(getattr(value, name))
        except AttributeError:
            raise ConfigurationError(
                f"{type(value).__name__} does not keep its argument {name!r} as an attribute, "
                "so it cannot be saved; set self." + name + " in __init__."
            ) from None
    return arguments


def _constructor(cls: type) -> Callable[..., Any]:
    return getattr(cls, "rebuild", cls)


def build(config: Any, types: Iterable[type] = ()) -> Any:
    """Build the object that ``configuration`` described.

    Args:
        config: JSON data; a mapping with the key ``type`` names a registered class.
        types: further classes to know for this one call.

    Raises:
        LoadError: an unknown type or argument, or arguments that the constructor refuses.
    """
    check_plain(config)
    return _build(config, _TYPES | {cls.__name__: cls for cls in types})


def check_plain(config: Any) -> None:
    """Refuse data that no ``configuration`` ever was, before anything walks them recursively.

    Raises:
        LoadError: they are nested too deeply, or hold a number that is not finite.
    """
    level = [config]
    for _ in range(_DEEPEST):
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise LoadError("the configuration holds a number that is not finite; it is damaged.")
        nested = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in nested if not _is_leaf(items) for item in items]
        if not level:
            return
    raise LoadError(
        f"the configuration is nested more than {_DEEPEST} levels deep; expected a flow's."
    )


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _build(config: Any, known: dict[str, type]) -> Any:
    if isinstance(config, list):
        return tuple(_build(item, known) for item in config)
    if not isinstance(config, dict):
        return config
    if "type" not in config:
        return {key: _build(item, known) for key, item in config.items()}
    name = config["type"]
    if not isinstance(name, str) or name not in known:
        hint = nearest(name, known) if isinstance(name, str) and len(name) < 100 else ""
        raise LoadError(
            f"unknown type {reprlib.repr(name)}{hint or '.'} If it is yours, import it or pass "
            "load(path, types=[...])."
        )
    arguments = {key: _build(item, known) for key, item in config.items() if key != "type"}
    constructor = _constructor(known[name])
    parameters = inspect.signature(constructor).parameters
    unknown = [key for key in arguments if key not in parameters]
    if unknown:
        hint = nearest(unknown[0], list(parameters)) if len(unknown[0]) < 100 else ""
        raise LoadError(
            f"{name} takes no argument {reprlib.repr(unknown[0])}{hint or '.'} The file may come "
            "from another version."
        )
    wrong = misfit(constructor, arguments)
    if wrong is not None:
        key, hint = wrong
        expected = hint.__name__ if isinstance(hint, type) else hint
        raise LoadError(
            f"{name} refused its saved arguments: {key} is "
            f"{in_brief(reprlib.repr(arguments[key]), 120)}; expected {in_brief(expected, 120)}."
        )
    rest = [key for key, item in parameters.items() if item.kind is item.VAR_POSITIONAL]
    positional = arguments.pop(rest[0], ()) if rest else ()
    try:
        return constructor(*positional, **arguments)
    except LoadError:
        raise
    except Exception as error:  # a damaged or hostile file may hold arguments of any kind
        raise LoadError(f"{name} refused its saved arguments: {in_brief(error)}") from error
