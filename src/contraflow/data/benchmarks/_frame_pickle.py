"""Read a pickled pandas frame of numbers without running anything that the pickle names.

A pickle is a program: it may call whatever it can import. The released GAS table is a pickle of
an old pandas under Python 2, which today's pandas need not read and nobody should read freely.
Here every class and function of pandas and numpy that such a frame names (and of pyarrow, which
holds the column names of pandas 3) is replaced by a stub that notes what it was given; whatever
else is named is refused. Arrays and frame are then put together from the notes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from contraflow.errors import DataError

_NUMPY = ("dtype", "ndarray", "_reconstruct", "_frombuffer")
_OFFSETS = {"string": np.int32, "large_string": np.int64}  # of pyarrow's two string types
_MOST_COLUMNS = 100_000  # of a range, which a forged pickle may make endless


def read_frame(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Read the column names and the numbers of a pickled ``pandas.DataFrame``.

    Frames of pandas 0.15 to 3 are understood, at every pickle protocol.

    Args:
        path: the pickle.

    Returns:
        The D names, and float64 values ``[N, D]``.

    Raises:
        DataError: the file cannot be read, names a type that is not admitted, or holds something
            else than a frame of numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            frame = _Unpickler(path, file).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle fails in any way its opcodes can
        raise DataError(
            f"{path}: is not a readable pickle ({type(error).__name__}: {error}). "
            "Download it again."
        ) from error
    try:
        axes, blocks = _open_manager(frame)
        names = _labels(axes[0])
        return names, _fill(names, blocks)
    except (_NotAFrame, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: the pickle does not hold a frame of numbers as pandas writes it ({error}). "
            "Is this the released file?"
        ) from error


# What the pickle may do ------------------------------------------------------------------------


class _Noted:
    """What an object of pandas or numpy would have been: its name, arguments and state."""

    name = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Noted:
        noted = super().__new__(cls)
        noted.args, noted.state = args, {}
        return noted

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """An unpickler that finds stubs, and the few functions of ``_admitted``.

    Args:
        path: the file, for messages.
        file: the open file.
    """

    def __init__(self, path: Path, file: Any) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 wrote an array's bytes as text
        self._path = path
        self._admitted = _admitted()

    def find_class(self, module: str, name: str) -> Any:
        package = module.split(".")[0]
        if package in ("pandas", "pyarrow") or (package == "numpy" and name in _NUMPY):
            return type("_Noted", (_Noted,), {"name": name})
        if (module, name) in self._admitted:
            return self._admitted[module, name]
        raise DataError(
            f"{self._path}: the pickle asks for {module}.{name}, expected arrays, slices and "
            "pandas' own classes alone; nothing was run. Do not trust this file: download the "
            "released one."
        )


def _admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    """Return what a pickle may call, made anew: a pickle can leave marks on a function."""

    def encode(text: str, encoding: str) -> bytes:  # bytes, up to protocol 2
        if encoding != "latin1":
            raise ValueError(f"encoding {encoding!r}")
        return text.encode("latin1")

    def make_bytearray(content: bytes) -> bytes:
        if not isinstance(content, bytes):  # a number would be a length
            raise TypeError("bytearray of something else than bytes")
        return content

    def reconstruct(kind: Any, *_: Any) -> _Noted:  # new objects, up to protocol 1
        if not (isinstance(kind, type) and issubclass(kind, _Noted)):
            raise TypeError("copyreg._reconstructor of another type than pandas' own")
        return kind()

    class Object:
        """``object`` is only named, as the base of what is reconstructed."""

    admitted: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): encode}
    for builtins, copyreg in (("builtins", "copyreg"), ("__builtin__", "copy_reg")):
        admitted[builtins, "slice"] = slice
        admitted[builtins, "bytearray"] = make_bytearray
        admitted[builtins, "object"] = Object
        admitted[copyreg, "_reconstructor"] = reconstruct
    return admitted


# What the notes mean ---------------------------------------------------------------------------


class _NotAFrame(Exception):
    """The noted objects do not make up a frame."""


def _open_manager(frame: Any) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return the axes (columns first) and the blocks, as pairs of values and places."""
    if not isinstance(frame, _Noted) or frame.name != "DataFrame":
        raise _NotAFrame(f"got {_kind(frame)}, expected DataFrame")
    manager = frame.state["_mgr" if "_mgr" in frame.state else "_data"]
    if isinstance(manager.state, tuple):  # up to pandas 1.2: all in the state
        written = manager.state[3]["0.14.1"]
        pairs = [(block["values"], block["mgr_locs"]) for block in written["blocks"]]
        return written["axes"], pairs
    blocks, axes = manager.args  # later: blocks and axes are arguments
    return axes, [(block.args[0], block.args[1]) for block in blocks]


def _labels(index: Any) -> tuple[str, ...]:
    """Return the labels of a noted index, as text."""
    _, attributes = index.args  # of _new_Index
    if "data" in attributes:
        labels = _entries(attributes["data"])
    else:  # a RangeIndex
        labels = range(*(int(attributes[key] or 0) for key in ("start", "stop", "step")))
        labels = list(labels[:_MOST_COLUMNS])
    for label in labels:
        if not isinstance(label, str | int | float):
            raise _NotAFrame(f"got a column named by {_kind(label)}, expected text")
    return tuple(str(label) for label in labels)


def _entries(data: _Noted) -> list[Any]:
    """Return the entries of a noted array: numpy's, or pandas' strings in one of two forms."""
    if data.name in _NUMPY:
        return list(_array(data))
    if isinstance(data.state, tuple):  # strings kept as objects: dtype, array, attributes
        (array,) = (part for part in data.state if _kind(part) == "_reconstruct")
        return list(_array(array))
    strings = data.state["_pa_array"]
    chunks = strings.args[0] if strings.name == "chunked_array" else [strings]
    return [text for chunk in chunks for text in _arrow_strings(*chunk.args[0])]


def _arrow_strings(
    kind: Any, length: int, nulls: int, offset: int, buffers: Any, *_: Any
) -> list[str]:
    """Decode an array of strings from its buffers: null mask, offsets, text."""
    if nulls:
        raise _NotAFrame("a column has no name")
    offsets, text = (buffer.args[0] for buffer in buffers[1:])
    ends = np.frombuffer(offsets, _OFFSETS[kind.args[0]])[offset : offset + length + 1]
    return [bytes(text[a:b]).decode() for a, b in pairwise(ends)]


def _array(noted: _Noted) -> np.ndarray | list[Any]:
    """Return a noted array of numbers, or the list that one of objects was written as."""
    if noted.name == "_frombuffer":  # protocol 5
        content, dtype, shape, order = noted.args[:4]
    else:
        _, shape, dtype, is_fortran, content = noted.state
        order = "F" if is_fortran else "C"
    if isinstance(content, list):
        return content
    if isinstance(content, str):
        content = content.encode("latin1")
    plain = np.dtype(str(dtype.args[0]))
    if plain.kind not in "biuf":
        raise _NotAFrame(f"got values of dtype {plain}, expected numbers")
    return np.frombuffer(content, plain.newbyteorder(dtype.state[1])).reshape(shape, order=order)


def _fill(names: tuple[str, ...], blocks: list[tuple[Any, Any]]) -> np.ndarray:
    """Put the blocks ``[columns, N]`` in their places of one float64 ``[N, D]``."""
    columns: dict[int, np.ndarray] = {}
    for noted, places in blocks:
        values = _array(noted) if _kind(noted) in _NUMPY else noted
        if not isinstance(values, np.ndarray) or values.ndim != 2:
            raise _NotAFrame(f"got a column of {_kind(noted)}, expected plain numbers")
        is_span = isinstance(places, slice)
        at = range(len(names))[places] if is_span else [int(place) for place in _array(places)]
        columns.update(zip(at, values, strict=True))
    lengths = {len(column) for column in columns.values()}
    if sorted(columns) != list(range(len(names))) or len(lengths) != 1:
        raise _NotAFrame(
            f"got the columns {sorted(columns)} of lengths {sorted(lengths)}, expected one of "
            f"each of {len(names)} names"
        )
    table = np.empty((lengths.pop(), len(names)))
    for place, column in columns.items():
        table[:, place] = column
    return table


def _kind(thing: Any) -> str:
    return thing.name if isinstance(thing, _Noted) else type(thing).__name__
