"""hypothesis feeds ``contraflow score`` files of any shape, type and text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

import contraflow as cf
from contraflow.cli import main

EXAMPLES = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a flow over a free, a positive and an ordinal column."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    support = [cf.Domain(), cf.Domain(low=0), cf.Domain(1, 5, integer=True)]
    flow = cf.flows.MAF(3, transforms=1, hidden_features=(4,), support=support)
    flow.initialise_from(torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [3.0, 5.0, 1.0]]))
    flow.save(folder / "model.safetensors", metadata={"columns": ["a", "b", "c"]})
    return folder


def score(run: Path, path: Path, capsys: pytest.CaptureFixture, *words: str) -> None:
    """Score a file; whatever it holds, the end is orderly."""
    out = path.with_name("out.npy")
    out.unlink(missing_ok=True)
    capsys.readouterr()
    code = main(["score", str(run), str(path), "--out", str(out), "--max-draws", "4", *words])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert [p.name for p in path.parent.glob("*.partial")] == []
    if code == 0:
        scores = np.load(out)
        assert scores.shape[1:] == (2,)
        assert not np.isnan(scores[:, 0]).any()
        assert np.isfinite(scores[:, 0]).all() or "--outside" in words
    else:
        assert code == 2, (code, error)
        assert error.startswith("contraflow: ")
        assert not out.exists()


DTYPES = st.one_of(
    st_np.floating_dtypes(endianness="?"),
    st_np.integer_dtypes(endianness="?"),
    st_np.unsigned_integer_dtypes(),
    st_np.boolean_dtypes(),
    st_np.complex_number_dtypes(),
    st_np.unicode_string_dtypes(max_len=3),
    st_np.datetime64_dtypes(),
)
SHAPES = st.one_of(
    st_np.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    st.tuples(st.integers(0, 5), st.just(3)),
)
PLAUSIBLE = st_np.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.just(3)),
    elements=st.one_of(
        st.sampled_from([1.0, 2.0, 5.0, 6.0, -1.0, 0.0, -0.0, 2.5, np.nan, np.inf, 1e300, 1e-320]),
        st.floats(width=64),
    ),
)


@EXAMPLES
@given(array=st.one_of(PLAUSIBLE, st_np.arrays(DTYPES, SHAPES)), outside=st.booleans())
def test_any_array(
    array: Any, outside: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    np.save(tmp_path / "x.npy", array)
    score(run, tmp_path / "x.npy", capsys, *["--outside"] * outside)


@EXAMPLES
@given(
    arrays=st.dictionaries(
        st.sampled_from(["a", "b", "c", "x"]), st.one_of(PLAUSIBLE, st_np.arrays(DTYPES, SHAPES)),
        max_size=3,
    )
)  # fmt: skip
def test_any_archive(
    arrays: dict[str, Any], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    score(run, tmp_path / "x.npz", capsys, "--outside")


CELLS = st.one_of(
    st.sampled_from(["1", "2.5", "", " 3 ", "nan", "inf", "-1e400", "oslo", '"1"', "1;2", "0x10"]),
    st.floats().map(repr),
    st.text(max_size=4),
)


@EXAMPLES
@given(
    header=st.one_of(st.just(["a", "b", "c"]), st.lists(CELLS, max_size=4)),
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=4),
    end=st.sampled_from(["\n", "\r\n", "\r", ""]),
)
def test_any_text(
    header: list[str],
    rows: list[list[str]],
    end: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    text = end.join(",".join(row) for row in [header, *rows]) + end
    (tmp_path / "x.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    score(run, tmp_path / "x.csv", capsys, "--outside")


@EXAMPLES
@given(data=st.binary(max_size=300), ending=st.sampled_from(["csv", "npy", "npz", "parquet"]))
def test_any_bytes(
    data: bytes, ending: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(data)
    score(run, path, capsys)


@EXAMPLES
@given(
    ending=st.sampled_from(["npy", "npz", "parquet"]),
    at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.floats(0, 1),
)  # fmt: skip
def test_any_damage(
    ending: str,
    at: float,
    byte: int,
    cut: float,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    buffer, rows = io.BytesIO(), np.array([[0.5, 1.0, 2.0], [1.5, 3.0, 4.0]])
    if ending == "npy":
        np.save(buffer, rows)
    elif ending == "npz":
        np.savez_compressed(buffer, a=rows[:, 0], b=rows[:, 1], c=rows[:, 2])
    else:
        import pandas as pd

        pd.DataFrame(rows, columns=pd.Index(["a", "b", "c"])).to_parquet(buffer)
    damaged = bytearray(buffer.getvalue())
    damaged[int(at * (len(damaged) - 1))] = byte
    if cut < 0.3:
        del damaged[int(cut / 0.3 * len(damaged)) :]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(bytes(damaged))
    score(run, path, capsys, "--outside")
