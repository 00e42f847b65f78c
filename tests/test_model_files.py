"""Hostile model files: a thousand seeded mutations are refused with ``LoadError``, or load whole.

Mutation n is a function of n alone: ``mutation(n)`` gives its bytes again.
"""

from __future__ import annotations

import builtins
import copy
import functools
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

import contraflow as cf
from contraflow import _hints, lipschitz, registry, serialization
from contraflow.cli import main
from contraflow.errors import ContraflowError, LoadError
from contraflow.serialization import read_metadata
from contraflow.transforms import Autoregressive, RationalQuadratic

MUTATIONS = 1000
MOST_SECONDS = 2.0  # of one mutation, processor time; the slowest took 0.1
MOST_BYTES = 2**29  # that the whole fuzz may add to the resident set; it took 20 MB

# --- files to start from ------------------------------------------------------------------


def _residual() -> cf.Flow:
    roulette = cf.logdet.Roulette()
    return cf.flows.ResidualFlow(
        2, context=3, transforms=1, hidden_features=(8, 8), marginals=4, log_det=roulette
    )


def _image() -> cf.Flow:
    return cf.flows.InvertibleResNet(
        shape=(1, 4, 4), num_bins=5, scales=2, transforms=1, hidden_channels=(4, 4)
    )


def _table() -> cf.Flow:
    support = [cf.Domain(), cf.Domain(low=0.0), cf.Domain(0, 9, integer=True)]
    return cf.flows.MAF(3, transforms=1, hidden_features=(8,), support=support)


def _splines() -> cf.Flow:
    parts = cf.Inverse(Autoregressive(2, RationalQuadratic(4), (8,), order=(1, 0)))
    coupling = cf.flows.RealNVP(2, transforms=1, hidden_features=(8,)).transform
    base = cf.distributions.DiagonalNormal(2)
    return cf.Flow(cf.Sequential(parts, coupling), base, event_shape=(2,))


FLOWS: dict[str, Callable[[], cf.Flow]] = {
    "residual": _residual,
    "image": _image,
    "table": _table,
    "splines": _splines,
}


@functools.cache
def saved(name: str) -> bytes:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        FLOWS[name]().save(path)
        return path.read_bytes()


@functools.cache
def parts_of(name: str) -> tuple[str, dict[str, Tensor]]:
    """Return a saved flow's header, as JSON, and its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        path.write_bytes(saved(name))
        header, tensors = serialization._read(path)
    return json.dumps(header), tensors


# --- mutations ----------------------------------------------------------------------------


class Trap:
    """Nobody registered it: building one means that a name in a file was looked up."""

    sprung = False

    def __init__(self, *args: object, **options: object) -> None:
        Trap.sprung = True


_DEEP = {"@deep@": 10_000, "@deeper than _build@": 600}  # stand for lists of so many levels
_VALUES: tuple[Any, ...] = (
    10**9, 2**63, 10**30, 10**400, -1, 0, 1, 3, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf,
    -math.inf, True, False, None, "", "two", "os.system", "__class__", *_DEEP, [], [0], [10**9],
    [2**63] * 3, [1] * 20_000, list(range(5_000)), {}, {"type": "Trap"}, {"type": "Exact"},
    {"type": "Picard"}, {"type": "StandardNormal", "features": 2},
)  # fmt: skip
_NAMES = (
    "Trap", "tests.test_model_files.Trap", "os.system", "__class__", "builtins.eval", "Module",
    "contraflow.flow.Flow", "x" * 100_000, "", "Standardize",
)  # fmt: skip
_DTYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.int64,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def mutation(number: int) -> bytes:
    """Return the mutated file of this number: a third are damaged bytes, the rest is rebuilt."""
    source = random.Random(number)
    name = source.choice(list(FLOWS))
    return damaged(source, saved(name)) if source.random() < 1 / 3 else rebuilt(source, name)


def damaged(source: random.Random, data: bytes) -> bytes:
    """Flip, insert, delete and cut at random places."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8))):
        if not changed:  # cut away
            break
        # Half of the places in the header, which is the smaller part.
        at = source.randrange(len(changed) if source.random() < 0.5 else min(2000, len(changed)))
        match source.randrange(4):
            case 0:
                changed[at] ^= 1 << source.randrange(8)
            case 1:
                changed[at:at] = source.randbytes(source.randrange(1, 9))
            case 2:
                del changed[at : at + source.randrange(1, 9)]
            case _:
                del changed[at + 1 :]
    return bytes(changed)


def rebuilt(source: random.Random, name: str) -> bytes:
    """Write a whole safetensors file of a mutated header and mutated tensors, mostly signed."""
    text, tensors = parts_of(name)
    header, tensors = json.loads(text), dict(tensors)
    for _ in range(source.choice((1, 1, 2))):
        source.choice((_mutate_argument, _mutate_argument, _mutate_type, _mutate_tensor))(
            source, header["configuration"], tensors
        )
    signed = source.random() < 0.8
    text = json.dumps(header["configuration"])
    for word, depth in _DEEP.items():
        text = text.replace(f'"{word}"', "[" * depth + "]" * depth)
    if signed:
        try:
            header["digest"] = serialization._digest(json.loads(text), tensors)
        except RecursionError:
            pass
    elif source.random() < 0.5:
        key = source.choice(("format", "digest", "metadata", "certificate", "version"))
        header[key] = source.choice(("1", 0, -1, 2, 1.5, True, None, [1], {}, 10**30))
    header["configuration"] = "@configuration@"
    text = json.dumps(header).replace('"@configuration@"', text)
    return tensors_to_bytes(tensors, {"contraflow": text})


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of JSON data."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _mutate_argument(source: random.Random, config: Any, tensors: dict[str, Tensor]) -> None:
    container, key = source.choice([*_places(config)])
    match source.randrange(6):
        case 0 if isinstance(container, dict):
            container[source.choice(("__class__", "self", "feature", "x" * 1000))] = container[key]
        case 1 if isinstance(container, dict):
            del container[key]
        case 2:
            container[key] = copy.deepcopy(source.choice([*_places(config)])[0])
        case _:
            container[key] = copy.deepcopy(source.choice(_VALUES))


def _mutate_type(source: random.Random, config: Any, tensors: dict[str, Tensor]) -> None:
    types = [*_NAMES, *(cls.__name__ for cls in registry.registered_types())]
    named = [container for container, key in _places(config) if key == "type"]
    source.choice(named or [{}])["type"] = source.choice(types)


def _mutate_tensor(source: random.Random, config: Any, tensors: dict[str, Tensor]) -> None:
    name = source.choice([*tensors])
    tensor = tensors[name]
    match source.randrange(7):
        case 0:
            del tensors[name]
        case 1:
            tensors[source.choice(("more", "__class__", name + "."))] = torch.zeros(3)
        case 2:
            tensors[name] = tensor.new_zeros(source.choice(((0,), (1,), (0, 3), (2, 2), ())))
        case 3 | 4:
            dtype = source.choice(_DTYPES)
            chosen = [name] if source.random() < 0.7 else [*tensors]
            tensors |= {name: tensors[name].to(dtype) for name in chosen}
        case 5:
            tensors[name] = tensor.reshape(-1).clone()
        case _:
            bad = source.choice((math.nan, math.inf, -1.0, 0.0, 1e30))
            tensors[name] = torch.full_like(tensor.double(), bad).to(tensor.dtype)


# --- the rule -----------------------------------------------------------------------------


def outcome(path: Path) -> str:
    """Load a file; return "refused" or "loaded", and assert what either must mean."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*NOT certified")
            flow = cf.load(path)
    except LoadError as error:
        flow = None
        text = str(error)
        assert text.startswith(f"{path}: "), text
        assert len(text) < 1000, text
        assert "\n" not in text, text
    try:
        assert isinstance(read_metadata(path)["metadata"], dict)
    except LoadError:
        assert flow is None, "read_metadata refuses what load takes"
    assert time.process_time() - start < MOST_SECONDS
    if flow is None:
        return "refused"
    assert_usable(flow)
    return "loaded"


def assert_usable(flow: cf.Flow) -> None:
    """A flow that was loaded prints, saves, and gives a density or one of our errors."""
    assert not flow.training
    assert repr(flow)
    assert registry.configuration(flow)
    torch.manual_seed(0)
    normal = torch.randn(2, *flow.event_shape).to(flow._like().dtype)
    x = flow.transform.domain.place(normal)
    context = x.new_zeros(2, flow.context) if flow.context else None
    try:
        log_prob = flow.log_prob(x, context)
    except ContraflowError:
        return
    assert log_prob.shape == (2,)
    assert not log_prob.isnan().any()


def fuzz(numbers: Iterable[int], path: Path) -> Counter[str]:
    """Load the files of these numbers; name the first that breaks the rule."""
    found: Counter[str] = Counter()
    for number in numbers:
        path.write_bytes(mutation(number))
        try:
            found[outcome(path)] += 1
        except Exception as error:
            raise AssertionError(f"mutation({number}): {type(error).__name__}: {error}") from error
    return found


@contextmanager
def nothing_executes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if anything of a file is run: traps, commands, code."""

    def forbidden(*args: object, **options: object) -> None:
        raise AssertionError(f"executed {args}")

    def of_modules(real: Callable[..., Any]) -> Callable[..., Any]:
        def execute(source: Any, *args: Any) -> Any:
            # typing reads our constructors' annotations, importlib what torch imports late.
            caller = sys._getframe(1).f_globals["__name__"]
            assert caller in ("typing", "importlib._bootstrap"), f"{caller} executed {source}"
            return real(source, *args)

        return execute

    with monkeypatch.context() as patch:
        patch.setattr(os, "system", forbidden)
        patch.setattr(subprocess, "Popen", forbidden)
        patch.setattr(builtins, "exec", of_modules(exec))
        patch.setattr(builtins, "eval", of_modules(eval))
        yield
    assert not Trap.sprung


def warm(path: Path) -> None:
    """Load every whole file once: torch imports half of itself at the first meta tensor."""
    for name in FLOWS:
        path.write_bytes(saved(name))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*NOT certified")
            assert_usable(cf.load(path))


def test_a_thousand_mutations_are_refused_or_load_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 1,000, some 30 change nothing that matters (a strategy, a limit, a weight)."""
    path = tmp_path / "flow.safetensors"
    warm(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with nothing_executes(monkeypatch):
        found = fuzz(range(MUTATIONS), path)
    assert found["refused"] > 0.9 * MUTATIONS
    assert found["loaded"] >= 10  # signed and still a flow: the rule for these was looked at
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_BYTES


_IN_LITTLE_MEMORY = """
    import resource, sys
    from pathlib import Path
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    sys.path.insert(0, sys.argv[1])
    import test_model_files as files
    path = Path(sys.argv[2])
    files.warm(path)
    print(sum(files.fuzz(range(2000, 2100), path).values()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory")
def test_mutations_need_no_memory(tmp_path: Path) -> None:
    """A hundred more in a process of 4 GB, which must not die."""
    code = "\n".join(line.strip() for line in _IN_LITTLE_MEMORY.splitlines())
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path / "flow.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "100"), done.stderr[-2000:]


def _no_check(*args: object) -> None:
    return None


MUTANTS: dict[str, tuple[Any, str]] = {
    "shapes are not compared": (serialization, "_check_tensors"),
    "the digest is not compared": (serialization, "_check_digest"),
    "types of arguments are not checked": (registry, "misfit"),
    "depth is not checked": (registry, "check_plain"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_fuzz_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A loader that lacks one of its checks breaks the rule within the thousand."""
    monkeypatch.setattr(*MUTANTS[name], _no_check)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own: hypothesis raises it in the tests before
    try:
        with pytest.raises(AssertionError, match=r"mutation\(\d+\)"):
            fuzz(range(MUTATIONS), tmp_path / "flow.safetensors")
    finally:
        sys.setrecursionlimit(limit)


# --- single holes, each with its message --------------------------------------------------


def changed(path: Path, name: str, change: Callable[[Any, dict[str, Tensor]], None]) -> Path:
    """Write a saved flow with a change of its header and tensors, signed."""
    text, tensors = parts_of(name)
    header, tensors = json.loads(text), dict(tensors)
    change(header, tensors)
    header["digest"] = serialization._digest(header["configuration"], tensors)
    path.write_bytes(tensors_to_bytes(tensors, {"contraflow": json.dumps(header)}))
    return path


@pytest.mark.parametrize("number", ["1", 1.0, 1.5, True, None, [1], 0, -1, 2, 10**30])
def test_other_formats_are_refused(tmp_path: Path, number: object) -> None:
    """Mutant: ``format <= 1``, which takes 0, True and 0.5."""
    path = changed(tmp_path / "f", "table", lambda header, _: header.update(format=number))
    for read in (cf.load, read_metadata):
        with pytest.raises(LoadError, match=r"reads format 1\..*(newer contraflow|damaged)"):
            read(path)


@pytest.mark.parametrize(
    ("name", "tensor", "value", "words"),
    [
        ("residual", "transform._parts.3.permutation", [1, 1], "permutation"),
        ("residual", "transform._parts.3.sign", [1.0, 0.5], "signs"),
        ("residual", "transform._parts.0.std", [1.0, 0.0], "deviations"),
        ("residual", "transform._parts.2.shift", [0.0, math.nan], "not finite"),
        ("residual", "transform._parts.2.shift", [0, 1], "int64"),
        ("splines", "base.mean", [1.0, math.inf], "not finite"),
    ],
)
def test_tensors_that_no_flow_writes_are_refused(
    tmp_path: Path, name: str, tensor: str, value: list[Any], words: str
) -> None:
    """Validly signed; each would give an index error, a NaN or a density that is none."""

    def change(header: Any, tensors: dict[str, Tensor]) -> None:
        assert tensor in tensors
        tensors[tensor] = torch.tensor(value)

    with pytest.raises(LoadError, match=words):
        cf.load(changed(tmp_path / "f", name, change))


def test_masks_that_see_too_much_are_refused(tmp_path: Path) -> None:
    """A feature that sees itself gives a wrong log-determinant without any sign of it."""

    def change(header: Any, tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith(".mask"):
                tensors[name] = torch.ones_like(tensors[name])

    with pytest.raises(LoadError, match="masks"):
        cf.load(changed(tmp_path / "f", "table", change))


def test_a_list_of_widths_costs_no_more_than_the_file_holds(tmp_path: Path) -> None:
    """100,000 layers would take 20 s and half a gigabyte. Mutant: no budget of steps."""

    def change(header: Any, tensors: dict[str, Tensor]) -> None:
        parts = header["configuration"]["transform"]["transforms"]
        parts[-1]["hidden_features"] = [1] * 100_000

    path = changed(tmp_path / "f", "table", change)
    start = time.process_time()
    with pytest.raises(LoadError, match="more tensors than the file holds"):
        cf.load(path)
    assert time.process_time() - start < MOST_SECONDS


def test_the_size_of_an_image_costs_nothing(tmp_path: Path) -> None:
    """Kernels do not tell how large the image is: 10^9 x 10^9 pixels fit a file of 10 kB, and
    the certificate's grid must not have that many points. Mutant: the full grid."""
    side = 10**9
    block = lipschitz.ConvBranch((1, 4, 4), (4, 4), lipschitz=0.9)
    transform = cf.Sequential(
        cf.transforms.ResidualBlock(block), cf.transforms.Reshape((1, 4, 4), (16,))
    )
    flow = cf.Flow(transform, event_shape=(1, 4, 4))
    flow.save(tmp_path / "f")
    header, tensors = serialization._read(tmp_path / "f")
    text = json.dumps(header["configuration"])
    text = re.sub(r"\[1, 4, 4\]", f"[1, {side}, {side}]", text)
    text = re.sub(r"\b16\b", str(side * side), text)
    header["configuration"] = json.loads(text)
    header["digest"] = serialization._digest(header["configuration"], tensors)
    path = tmp_path / "g"
    path.write_bytes(tensors_to_bytes(tensors, {"contraflow": json.dumps(header)}))
    start = time.process_time()
    flow = cf.load(path)
    assert flow.event_shape == (1, side, side)
    assert cf.certify(flow).certified
    assert time.process_time() - start < MOST_SECONDS


def test_the_command_line_complains_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line on standard error, nothing on standard output."""
    model = tmp_path / "model.safetensors"
    complained = 0
    for number in range(3000, 3060):
        model.write_bytes(mutation(number))
        code = main(["certify", str(tmp_path)])
        out, err = capsys.readouterr()
        if code == 2:
            complained += 1
            assert err.startswith("contraflow: "), (number, err)
            assert err.count("\n") == 1, (number, err)
            assert out == ""
        assert code in (0, 1, 2), number
    assert complained > 40


def test_hints_that_cannot_be_read_refuse_nothing() -> None:
    """A user's class may be annotated with names that only a type checker knows."""

    class Odd:
        def __init__(self, size: Unknown = 3) -> None:  # noqa: F821  # pyright: ignore
            self.size = size

    assert _hints.misfit(Odd, {"size": "anything"}) is None
