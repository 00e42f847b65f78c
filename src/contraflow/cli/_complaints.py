"""jsonargparse's complaints in one line: which option, what arrived, what was expected."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module

from contraflow.errors import nearest

MISSING = "missing "  # how the complaint about an absent argument starts

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list, for example [0, 1]",
    "list": "a list, for example [64, 64]",
    "collections.abc.Sequence": "a list, for example [64, 64]",
    "dict": "a mapping",
    "collections.abc.Mapping": "a mapping, for example '{a: [0, 1]}'",
}


def explain(message: str, error: BaseException | None, known: Sequence[str], prog: str) -> str:
    """Return the essence of a complaint.

    jsonargparse nests one message for each class in which an option lies, each with every
    member of a union; the chain of causes has the same in order, the reason last.

    Args:
        message: what the parser says.
        error: the exception behind it.
        known: every option of the parser.
        prog: the command, for a pointer to its help.

    Example:
        >>> explain("unrecognized arguments: --nmae x", None, ["--name"], "contraflow train")
        "unknown option --nmae; did you mean '--name'?"
        >>> explain("argument --seed: expected one argument", None, [], "contraflow train")
        '--seed: expected a value'
    """
    texts = [message, *_causes(error)]
    reason = texts[-1]
    option = "--" + ".".join(_keys(texts))
    see = f"; see {prog} --help"
    if found := re.match(r"unrecognized arguments: (.*)", reason, re.DOTALL):
        return _superfluous(found[1], known) or f"unexpected argument {found[1]!r}{see}"
    if found := re.search(r"Option '(.+?)' is not accepted", reason):
        return _unknown(option, found[1], texts, known)
    if found := re.search(r"Group '(.+?)' does not accept option '(.+?)'", reason):
        name = f"--{found[1]}.{found[2]}"
        return f"unknown option {name}{_nearest_option(name, known)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", reason):
        return _no_class(option, found[1], message)
    if found := re.search(r"module '.+?' has no attribute '(.+?)'", reason):
        return _no_class(option, found[1], message)
    if found := re.search(r"required: (.*)|[Kk]ey \"(.+?)\" is required", reason):
        return f"{MISSING}{_missing(found[1] or found[2], texts, known)}{see}"
    if found := re.search(r"argument (\S+): ignored explicit argument '(.*)'", reason):
        return f"{found[1]} takes no value; got {found[2]!r}"
    if found := re.search(r"Expected an? (.+?)(?:\. Got value: (.*))?$", reason):
        got = found[2] or _given(message)
        return f"{option} {got}; expected {_in_words(found[1], message)}."
    text = re.sub(r"^argument ", "", reason).replace("expected one argument", "expected a value")
    return " ".join(re.sub(r"^Parser key \"(.+?)\"", r"--\1", text).split())


def subclasses(base: type) -> Iterator[type]:
    """Yield the classes that can be named where ``base`` is expected."""
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            yield cls
        yield from subclasses(cls)


def _causes(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        text = str(error).strip()
        if text:
            yield text
        error = error.__cause__


def _keys(texts: Iterable[str]) -> list[str]:
    """Return the path of an option, outermost name first."""
    keys: list[str] = []
    for text in texts:
        found = re.match(r"Parser key \"(.+?)\"", text)
        if found and found[1] not in keys[-1:]:
            keys.append(found[1])
    return keys


def _missing(names: str, texts: Sequence[str], known: Sequence[str]) -> str:
    """Return absent arguments as they are typed: options with dashes, others in capitals."""
    group = ".".join(_keys(texts))
    if group:
        return ", ".join(f"--{group}.{name}" for name in names.split(", "))
    typed = (f"--{name}" if f"--{name}" in known else name.upper() for name in names.split(", "))
    return ", ".join(typed)


def _superfluous(words: str, known: Sequence[str]) -> str | None:
    name = words.split()[0].split("=")[0]
    return f"unknown option {name}{_nearest_option(name, known)}" if name[0] == "-" else None


def _unknown(option: str, name: str, texts: Sequence[str], known: Sequence[str]) -> str:
    if option == "--":
        return f"unknown option --{name}{_nearest_option('--' + name, known)}"
    # The text that says where we are: in a class, or in an option that holds none.
    where = next(text for text in reversed(texts) if text.startswith(("Parser", "Problem")))
    cls = _class_named(r"Problem with given class_path '(.+?)'", where.splitlines()[0])
    if cls is None:
        return f"unknown option {option}.{name}: no class is chosen by {option}"
    choices = [f"{option}.{choice}" for choice in inspect.signature(cls).parameters]
    hint = _nearest_option(f"{option}.{name}", choices) or (
        f"; it takes {', '.join(choices)}" if choices else "; it takes none"
    )
    return f"unknown option {option}.{name} of {cls.__name__}{hint}"


def _nearest_option(name: str, known: Iterable[str]) -> str:
    """Return `nearest` among the options of the same group, whose prefix does not count."""
    group, dot, last = name.rpartition(".")
    lasts = [option.removeprefix(group + dot) for option in known if option.startswith(group + dot)]
    if not dot or not lasts:
        return nearest(name.partition(".")[0], known)
    return nearest(last, lasts).replace("mean '", f"mean '{group}.")


def _no_class(option: str, name: str, message: str) -> str:
    base = _class_named(r"Subtypes: \[<class '(.+?)'>", message)
    names = sorted({cls.__name__ for cls in subclasses(base)}) if base is not None else []
    expected = f"; expected one of {', '.join(names)}" if names else ""
    return f"{option}: no class {name!r}{nearest(name, names) or expected}"


def _class_named(pattern: str, message: str) -> type | None:
    """Return the innermost class that a message names."""
    paths = re.findall(pattern, message)
    if not paths:
        return None
    module, _, name = paths[-1].rpartition(".")
    return getattr(import_module(module), name, None)


def _given(message: str) -> str:
    found = re.findall(r"Given value: (?:NestedArg\(key='.*?', val='(.*)'\)|(.*))", message)
    return (found[0][0] or found[0][1]) if found else "is not valid"


def _in_words(kind: str, message: str) -> str:
    if kind.startswith("typing.Literal"):
        lists = re.findall(r"Expected a typing\.Literal\[(.*?)\]", message) or [kind[15:-1]]
        values = [value.strip("' ") for values in lists for value in values.split(",")]
        return f"one of {', '.join(dict.fromkeys(values))}"
    name = kind.removeprefix("<class '").removesuffix("'>")
    return _WORDS.get(name, name)
