"""``contraflow score`` and ``sample``: every format, every piece, every mishap."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import contraflow as cf
from contraflow.cli import main, score
from contraflow.data import read_table

TINY = [
    "--model.transforms", "1", "--model.hidden_features", "[4]", "--optimisation.batch_size",
    "400", "--trainer.max_steps", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Five columns: free, positive, ordinal, a context and a weight."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=500)
    return pd.DataFrame({
        "free": c + 0.1 * rng.normal(size=500),
        "positive": np.exp(rng.normal(size=500)),
        "level": rng.integers(1, 6, 500).astype(float),
        "c": c,
        "w": rng.uniform(0, 2, 500),
    })  # fmt: skip


@pytest.fixture(scope="module")
def plain(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the two continuous columns."""
    return train(table[["free", "c"]], tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def mixed(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run with bounded and ordinal columns and weights."""
    options = ["--data.context_columns", "c", "--data.weight_column", "w"]
    return train(table, tmp_path_factory.mktemp("mixed"), *options)


def train(frame: Any, folder: Path, *options: str) -> Path:
    frame.to_parquet(folder / "t.parquet")
    words = ["train", "table", "--data.path", str(folder / "t.parquet"), "--out", str(folder)]
    assert main([*words, "--name", "run", *options, *TINY]) == 0
    return folder / "run"


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
@pytest.mark.parametrize("source", ["csv", "parquet", "npy", "npz"])
def test_scores_are_log_prob_in_every_format(
    plain: Path, table: pd.DataFrame, tmp_path: Path, source: str, ending: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(score, "_NUMBERS", 2 * 64)  # pieces of 64 rows
    given, out = tmp_path / f"x.{source}", tmp_path / f"scores.{ending}"
    frame = table[["free", "c"]]
    write(frame if source in ("npy", "npz") else frame[["c", "free"]], given)  # found by name
    assert main(["score", str(plain), str(given), "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    x = torch.tensor(frame.to_numpy()).float()
    with torch.no_grad():
        expected = cf.load(plain / "model.safetensors").log_prob(x).double().numpy()
    if ending == "npy":
        found = np.load(out)
    else:
        frame = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        assert list(frame.columns) == ["log_prob", "kind"]
        assert set(frame["kind"]) == {"exact"}
        found = frame["log_prob"].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert summary["rows"] == 500
    assert summary["kind"] == "exact"
    assert summary["mean"] == pytest.approx(expected.mean(), rel=1e-5)


def write(frame: Any, path: Path) -> None:
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case ".npy":
            np.save(path, frame.to_numpy())
        case ".npz":
            np.savez_compressed(path, x=frame.to_numpy())


def test_scores_go_to_standard_output(
    plain: Path, table: pd.DataFrame, tmp_path: Path, capfdbinary: pytest.CaptureFixture
) -> None:
    write(table, tmp_path / "x.csv")
    assert main(["score", str(plain), str(tmp_path / "x.csv")]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert lines[0] == "log_prob,kind"
    assert len(lines) == 501


def test_context_in_the_file_beside_it_or_one_for_all(
    mixed: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    write(table, tmp_path / "all.parquet")
    write(table[["free", "positive", "level"]], tmp_path / "x.csv")
    write(table[["c"]], tmp_path / "c.csv")
    write(table[["c"]][:1], tmp_path / "one.csv")
    words = ["score", str(mixed)]
    found = {}
    for name, more in {
        "same": ["all.parquet"], "beside": ["x.csv", "--context", "c.csv"],
        "one": ["x.csv", "--context", "one.csv"],
    }.items():  # fmt: skip
        paths = [str(tmp_path / w) if w[0] != "-" else w for w in more]
        assert main([*words, *paths, "--out", str(tmp_path / f"{name}.npy")]) == 0
        found[name] = np.load(tmp_path / f"{name}.npy")
    assert found["same"].shape == (500, 2)  # value and its standard error
    np.testing.assert_array_equal(found["same"], found["beside"])
    assert not np.array_equal(found["same"], found["one"])
    gap, error = found["same"][0] - found["one"][0], found["same"][0, 1] + found["one"][0, 1]
    assert abs(gap[0]) < 6 * error
    assert (found["same"][:, 1] > 0).all()  # dequantised: a lower bound, with error


MISHAPS = {
    "no context": (["x.csv"], "no column is called 'c'"),
    "too little context": (["x.csv", "--context", "few.csv"], "rows of context"),
    "too much context": (["few_x.csv", "--context", "c.csv"], "rows of context"),
    "not a level": (
        ["half.csv", "--context", "c.csv"],
        "row 3 .*column 'level': got 2.5, .* outside the support {1, ..., 5}",
    ),
    "negative": (
        ["negative.csv", "--context", "c.csv"],
        "row 5 .*column 'positive': got -1, .* outside the support",
    ),
    "missing": (["nan.csv", "--context", "c.csv"], "data row 7 .*column 'free'"),
    "no file": (["nothing.csv", "--context", "c.csv"], "no such file"),
    "wrong ending": (["x.csv", "--context", "c.csv", "--out", "scores.txt"], "name ending in .csv"),
    "wrong error": (["x.csv", "--context", "c.csv", "--stderr", "0"], "error above 0"),
}


@pytest.mark.parametrize("case", MISHAPS)
def test_mishaps_are_told_and_leave_no_file(
    case: str, mixed: Path, table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x = table[["free", "positive", "level"]]
    write(x, tmp_path / "x.csv")
    write(x[:20], tmp_path / "few_x.csv")
    write(table[["c"]], tmp_path / "c.csv")
    write(table[["c"]][:20], tmp_path / "few.csv")
    for name, row, column, value in (
        ("half", 2, "level", 2.5), ("negative", 4, "positive", -1.0), ("nan", 6, "free", np.nan)
    ):  # fmt: skip
        changed = x.copy()
        changed.loc[row, column] = value
        write(changed, tmp_path / f"{name}.csv")
    words, message = MISHAPS[case]
    paths = [str(tmp_path / word) if "." in word and word[0].isalpha() else word for word in words]
    before = set(tmp_path.iterdir())
    if "--out" not in words:
        paths += ["--out", str(tmp_path / "out.csv")]
    assert main(["score", str(mixed), *paths]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert set(tmp_path.iterdir()) == before


def test_outside_gives_minus_infinity_when_asked(
    mixed: Path, table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changed = table.copy()
    changed.loc[4, "positive"] = -1.0
    write(changed, tmp_path / "x.csv")
    out = tmp_path / "s.csv"
    words = ["score", str(mixed), str(tmp_path / "x.csv"), "--out", str(out), "--outside"]
    assert main(words) == 0
    assert "1 rows outside the support" in capsys.readouterr().err
    scores = pd.read_csv(out)["log_prob"].to_numpy()
    assert np.flatnonzero(np.isinf(scores)).tolist() == [4]


def test_context_for_an_unconditional_model_is_refused(
    plain: Path, table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write(table, tmp_path / "x.csv")
    words = ["score", str(plain), str(tmp_path / "x.csv"), "--context", str(tmp_path / "x.csv")]
    assert main(words) == 2
    assert "unconditional" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_samples_have_the_columns_and_the_supports_of_the_data(
    mixed: Path, table: pd.DataFrame, tmp_path: Path, ending: str
) -> None:
    write(table[["c"]][:3], tmp_path / "c.csv")
    out = tmp_path / f"s.{ending}"
    words = ["sample", str(mixed), "-n", "7", "--context", str(tmp_path / "c.csv")]
    assert main([*words, "--out", str(out)]) == 0
    names, rows = read_table(out)
    assert rows.shape == (21, 3)
    if ending != "npy":
        assert names == ("free", "positive", "level")
    assert (rows[:, 1] > -1e-2).all()
    assert set(rows[:, 2]) <= {1.0, 2.0, 3.0, 4.0, 5.0}


def test_samples_do_not_depend_on_the_pieces(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("few", 10), ("many", 50)):
        monkeypatch.setattr("contraflow.cli.sample._CHUNK", 10)
        words = ["sample", str(plain), "-n", str(count), "--out", str(tmp_path / f"{name}.npy")]
        assert main(words) == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "many.npy")[:10], np.load(tmp_path / "few.npy")
    )


def test_images_are_scored_from_npy_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["train", "digits", "--out", str(tmp_path), "--name", "d", "--model.tail", "1"]
    assert main([*words, "--model.hidden_features", "[4]", "--trainer.max_steps", "2"]) == 0
    x = np.random.default_rng(0).integers(0, 17, (6, 1, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "flat.npy", x.reshape(6, 64))
    for name in ("x", "flat"):
        words = ["score", str(tmp_path / "d"), str(tmp_path / f"{name}.npy"), "--max-draws", "4"]
        assert main([*words, "--out", str(tmp_path / f"{name}.out.npy")]) == 0
    scores = [np.load(tmp_path / f"{name}.out.npy") for name in ("x", "flat")]
    np.testing.assert_allclose(*scores, rtol=1e-4)
    np.save(tmp_path / "wrong.npy", x[:, :, :4])
    capsys.readouterr()
    assert main(["score", str(tmp_path / "d"), str(tmp_path / "wrong.npy")]) == 2
    assert "expected numbers of shape (1, 8, 8)" in capsys.readouterr().err
    np.save(tmp_path / "range.npy", x + 10)
    assert main(["score", str(tmp_path / "d"), str(tmp_path / "range.npy")]) == 2
    assert "outside the support" in capsys.readouterr().err
