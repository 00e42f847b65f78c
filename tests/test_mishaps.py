"""What can go wrong at the command line: one message, an exit code, and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from contraflow.cli import main
from contraflow.serialization import read_metadata

TINY = [
    "--model.transforms", "1", "--model.hidden_features", "[4]",
    "--optimisation.batch_size", "100", "--trainer.max_steps", "2",
]  # fmt: skip
ROWS = 200


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good files, bad files, and two runs: plain and conditional."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_tables()
        write_images()
        assert main(["train", "table", "--data.path", "t.csv", "--name", "plain", *TINY]) == 0
        given = ["--data.context_columns", "c", "--data.bounds", '{"b": [-9, 9]}']
        words = ["train", "table", "--data.path", "t.csv", "--name", "given", *given, *TINY]
        assert main(words) == 0
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def write_tables() -> None:
    frame: pd.DataFrame = pd.DataFrame(
        np.random.default_rng(0).normal(size=(ROWS, 3)).clip(-8, 8), columns=["a", "b", "c"]
    )
    frame.to_csv("t.csv", index=False)
    for what, value in {"nan": np.nan, "inf": np.inf}.items():
        bad = frame.copy()
        bad.loc[6, "b"] = value
        bad.to_csv(f"{what}.csv", index=False)
        bad.to_parquet(f"{what}.parquet")
        np.save(f"{what}.npy", bad.to_numpy())
        np.savez(f"{what}.npz", b=bad["b"], x=bad[["a", "c"]])
    text = frame.astype({"b": object})
    text.loc[6, "b"] = "hello"
    text.to_csv("text.csv", index=False)
    text.astype({"b": str}).to_parquet("text.parquet")
    np.save("text.npy", text.to_numpy(), allow_pickle=True)
    np.savez("text.npz", b=text["b"].to_numpy())
    frame.assign(b=1.0).to_csv("constant.csv", index=False)
    frame.assign(d=frame["a"]).to_csv("twin.csv", index=False)
    frame[:30].to_csv("few.csv", index=False)
    frame[:3].to_csv("three.csv", index=False)
    Path("ragged.csv").write_text("a,b\n1,2\n3\n5,6\n")
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("a,b\n")
    np.save("wide.npy", np.zeros((3, 7)))
    np.save("flat.npy", np.zeros(3))
    frame[:3].drop(columns=["a", "b"]).to_csv("c.csv", index=False)
    frame.drop(columns="c").to_csv("ab.csv", index=False)
    frame.loc[4, "b"] = 10
    frame.to_csv("outside.csv", index=False)


def write_images() -> None:
    rng = np.random.default_rng(0)
    odd: dict[str, Callable[[Path], object]] = {
        "good": lambda path: None,
        "size": lambda path: Image.new("RGB", (8, 9)).save(path),
        "alpha": lambda path: Image.new("RGBA", (8, 8)).save(path),
        "deep": lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path),
        "corrupt": lambda path: path.write_bytes(path.read_bytes()[:60]),
    }
    for name, spoil in odd.items():
        Path(name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(f"{name}/{i:02}.png")
        spoil(Path(name, "05.png"))
    Path("MNIST/raw").mkdir(parents=True)
    header = b"\0\0\x08\3" + b"".join(n.to_bytes(4, "big") for n in (9, 28, 28))
    for part in ("train", "t10k"):
        Path(f"MNIST/raw/{part}-images-idx3-ubyte").write_bytes(header + b"1" * 100)


def refusal(capsys: pytest.CaptureFixture) -> str:
    """Return the one line that is told, besides the summary of what was to be trained."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if " parameters; " not in line]
    assert len(lines) == 1, error
    assert lines[0].startswith("contraflow: "), error
    assert ".partial" not in lines[0]
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file but TensorBoard's, which begins a new one at each start."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path): path.read_bytes() for path in files}


def table(path: str, *more: str) -> list[str]:
    return ["table", "--data.path", path, *TINY, *more]


def option(name: str, value: str) -> list[str]:
    return table("t.csv", f"--{name}", value)


def images(path: str, *more: str) -> list[str]:
    data = ["--data", "ImageFolder", "--data.path", path, "--model.shape", "null"]
    return ["digits", *TINY, *data, "--model.num_bins", "null", *more]


BAD_DATA = {
    "missing file": (table("no.csv"), "no.csv: no such file"),
    "missing folder": (images("nowhere"), "nowhere: no such folder"),
    "missing column": (table("t.csv", "--data.columns", "a,bb"), "'bb'; did you mean 'b'"),
    "missing context": (table("t.csv", "--data.context_columns", "d"), "no column is called 'd'"),
    "constant": (table("constant.csv"), r"'b' \(1\): a constant has no density"),
    "ragged": (table("ragged.csv"), "1 row ragged, first line 3 with 1 field, expected 2"),
    "empty": (table("empty.csv"), "the file is empty"),
    "header alone": (table("header.csv"), "got no rows"),
    "three rows": (table("three.csv"), "too few rows: 3 give 3 to train on and 0 and 0"),
    "other size": (images("size"), "05.png: is 9 x 8, expected 8 x 8"),
    "transparent": (images("alpha"), "05.png: has transparent pixels"),
    "16 bits": (images("deep"), "05.png: has more than 8 bits a channel"),
    "corrupt image": (images("corrupt"), "05.png: cannot be read as an image"),
    "truncated idx": (["mnist", "--data-root", "."], "got 116 bytes, expected 7072"),
    "other levels": (
        images("good", "--model.num_bins", "17"),
        "num_bins 17; the data have 256 levels",
    ),
    "other shape": (images("good", "--model.shape", "[1,8,8]"), r"have the shape \[3, 8, 8\]"),
    "other width": (option("model.features", "7"), "--model.features 7; the data have 3 columns"),
    "no context": (option("model.context", "2"), "context 2; the data have 0 context columns"),
    **{
        f"{what} in {ending}": (table(f"{what}.{ending}"), f"row 7 .*column '{column}'")
        for what in ("nan", "inf")
        for ending, column in (("csv", "b"), ("parquet", "b"), ("npy", "column_1"), ("npz", "b"))
    },
    "text in csv": (table("text.csv"), "column 'b' holds text, first 'hello' in data row 7"),
    "text in parquet": (table("text.parquet"), "column 'b' holds values of type"),
    "text in npy": (table("text.npy"), "not a readable .npy file of numbers"),
    "text in npz": (table("text.npz"), "array 'b' has values of dtype object"),
}

BAD_OPTIONS = {
    "preset": (["digist"], "no preset 'digist'; did you mean 'digits'"),
    "of model": (option("model.hidden_feature", "[4]"), "mean '--model.hidden_features'"),
    "of optimisation": (option("optimisation.batchsize", "1"), "mean '--optimisation.batch_size'"),
    "max_time": (option("trainer.max_time", "3 minutes"), "expected|Expected .* DD:HH:MM:SS"),
    "accelerator": (option("trainer.accelerator", "tpu"), "trainer: .*accelerator=tpu"),
    "devices": (option("trainer.devices", "700"), "trainer: .*devices=700"),
    "seed": (option("seed", str(2**70)), "expected a number from 0 to"),
    "seed of the split": (option("data.seed", "-1"), "seed=-1; expected 0 or more"),
    "below a file": (option("out", "t.csv"), "t.csv/table: Not a directory"),
    **{
        f"{name} {value}": (option(name, value), message)
        for name, values, message in (
            ("model.lipschitz", ("1.0", "1.5", "-0.5"), r"expected a bound in \(0, 1\)"),
            ("model.lipschitz", ("nan",), "nan; expected a number"),
            ("optimisation.learning_rate", ("0", "-1"), "expected a number above 0"),
            ("optimisation.learning_rate", ("nan", "inf"), "expected a number"),
            ("optimisation.batch_size", ("0", "-3"), "expected a whole number of 1 or more"),
            ("optimisation.batch_size", ("1.5",), "expected an integer"),
            ("optimisation.beta2", ("1", "2"), r"expected a number in \[0, 1\)"),
            ("optimisation.weight_decay", ("-1",), "expected a number of 0 or more"),
            ("optimisation.initial_rows", ("0",), "expected a whole number of 2 or more"),
            ("model.hidden_features", ("[0]", "[8, -1]"), "expected whole numbers of 1 or more"),
            ("name", ("..", "a/../../b", "/tmp"), "expected the name of a folder inside"),
            ("trainer.check_val_every_n_epoch", ("0",), "=0; expected 1 or more"),
            ("trainer.accumulate_grad_batches", ("0",), "=0; expected 1 or more"),
            ("trainer.log_every_n_steps", ("0",), "=0; expected 1 or more"),
            ("trainer.val_check_interval", ("0", "1000"), "expected above 0 and at most 1,"),
        )
        for value in values
    },
}


@pytest.mark.parametrize("case", [*BAD_DATA, *BAD_OPTIONS])
def test_a_training_that_cannot_begin_is_refused_and_leaves_nothing(
    case: str, capsys: pytest.CaptureFixture
) -> None:
    words, message = {**BAD_DATA, **BAD_OPTIONS}[case]
    before = set(Path().rglob("*"))
    assert main(["train", *words, *([] if "--out" in words else ["--name", "new"])]) == 2
    assert re.search(message, told := refusal(capsys)), told
    assert set(Path().rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *option("trainer.accelerator", "gpu")]) == 2
    assert "accelerator=gpu" in refusal(capsys)


@pytest.mark.filterwarnings("default")  # the command prints it
def test_a_doubtful_table_is_trained_on_with_one_line_about_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for path, start in {
        "twin.csv": "contraflow: warning: twin.csv: 1 pair of columns",
        "few.csv": "contraflow: note: batches shrink from 100 rows to the 24",
    }.items():
        assert main(["train", *table(path, "--out", str(tmp_path), "--name", path)]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert [line.startswith(start) for line in lines if line.startswith("contraflow")] == [True]
        assert (tmp_path / path / "model.safetensors").is_file()


def test_a_refused_resume_leaves_the_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert main(["train", *table("t.csv", "--out", str(tmp_path), "--name", "run")]) == 0
    capsys.readouterr()
    before = contents(run)
    for name, value, message in (
        ("model.hidden_features", "[5]", "belongs to another model"),
        ("optimisation.batch_size", "0", "expected a whole number of 1 or more"),
        ("trainer.max_time", "soon", "DD:HH:MM:SS"),
        ("data.path", "no.csv", "no such file"),
        ("trainer.max_epochs", "0", "max_epochs=0"),
    ):
        words = ["train", "table", "--out", str(tmp_path), "--name", "run", "--resume"]
        assert main([*words, f"--{name}", value]) == 2
        assert message in refusal(capsys)
        assert contents(run) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        lambda path: path.write_bytes(b"hello" * 100),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"state_dict": {}}, path),
        lambda path: torch.save(torch.zeros(3), path),
    ],
    ids=["cut", "garbage", "empty", "foreign", "tensor"],
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree("runs/plain", tmp_path / "run")
    damage(run / "checkpoints/last.ckpt")
    before = contents(run)
    words = table("t.csv", "--out", str(tmp_path), "--name", "run", "--resume")
    assert main(["train", *words]) == 2
    assert re.search("last.ckpt: not a readable checkpoint .* Delete it", refusal(capsys))
    assert contents(run) == before


COMMANDS = {
    "evaluate": ["evaluate", "RUN"],
    "sample": ["sample", "RUN", "-n", "3"],
    "score": ["score", "RUN", "t.csv", "--out", "OUT/scores.csv"],
    "certify": ["certify", "RUN"],
    "report": ["report", "RUN"],
}


def call(command: str, run: Path) -> int:
    words = [w.replace("RUN", str(run)).replace("OUT", str(run)) for w in COMMANDS[command]]
    return main(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_without_a_model_says_how_to_go_on(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree("runs/plain", tmp_path / "run")
    (run / "model.safetensors").unlink()
    before = contents(run)
    assert call(command, run) == 2
    assert "holds no model.safetensors" in (told := refusal(capsys))
    assert "--resume" in told
    assert contents(run) == before


CONFIGURATIONS: dict[str, tuple[Callable[[str], bytes | None], str]] = {
    "missing": (lambda text: None, "config.yaml: cannot be read"),
    "no YAML": (lambda text: b"a: [1", "config.yaml:1: not YAML"),
    "no text": (lambda text: b"\xff\xfe\0", "config.yaml: no text"),
    "list": (lambda text: b"[1, 2]", "holds a list; expected a mapping"),
    "no data": (lambda text: b"seed: 0", "config.yaml: missing --data"),
    "no class": (lambda text: text.replace("Table", "Tabel").encode(), "did you mean 'Table'"),
    "no data file": (lambda text: text.replace("t.csv", "gone.csv").encode(), "gone.csv: no such"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_damaged_configuration_stops_only_what_needs_the_data(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change, message = CONFIGURATIONS[case]
    run = shutil.copytree("runs/plain", tmp_path / "run")
    changed = change((run / "config.yaml").read_text())
    (run / "config.yaml").unlink()
    if changed is not None:
        (run / "config.yaml").write_bytes(changed)
    assert call("evaluate", run) == 2
    assert message in refusal(capsys)
    for command in ("sample", "score", "certify"):
        assert call(command, run) == 0, command


def test_a_report_does_without_configuration_and_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree("runs/plain", tmp_path / "run")
    (run / "config.yaml").unlink()
    (run / "metrics.csv").unlink()
    assert call("report", run) == 0
    assert "config.yaml: cannot be read" in refusal(capsys)
    assert "No reconstruction was computed" in (run / "report.html").read_text()


@pytest.mark.parametrize("damage", [b"epoch,step\n1,hello\n", b"\xff\0\1"])
def test_a_report_does_without_damaged_curves_and_evaluation(
    damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree("runs/plain", tmp_path / "run")
    (run / "metrics.csv").write_bytes(damage)
    (run / "evaluation.json").write_bytes(damage)
    assert call("report", run) == 0
    assert "metrics.csv: damaged" in refusal(capsys)
    assert (
        "round trip" in (run / "report.html").read_text().lower()
    )  # the likelihood, computed anew
    assert call("evaluate", run) == 0
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["model"] == read_metadata(run / "model.safetensors")["digest"]


def test_several_runs_of_which_one_has_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree("runs/plain", tmp_path / "run")
    (run / "model.safetensors").unlink()
    out = tmp_path / "comparison.html"
    assert main(["report", "runs/plain", str(run), "--out", str(out)]) == 2
    assert f"{run}: holds no model.safetensors" in refusal(capsys)
    assert not out.exists()


WRONG_CALLS = {
    "no samples": ("sample runs/plain -n 0", "-n 0; expected 1 or more"),
    "fewer samples": ("sample runs/plain -n -5", "-n -5; expected 1 or more"),
    "too many for a picture": (
        "sample runs/plain -n 99999 --out OUT.png",
        "99,999 samples",
    ),
    "ending": ("sample runs/plain --out OUT.txt", "name ending in .png, .csv"),
    "no context": ("sample runs/given", "--context FILE with 1 columns: c"),
    "superfluous": ("sample runs/plain --context c.csv", "unconditional; leave the option out"),
    "wide context": ("sample runs/given --context wide.npy", "got 7 columns, expected 1"),
    "flat context": ("sample runs/given --context flat.npy", "expected [N, D]"),
    "score no context": ("score runs/given ab.csv", "no column is called 'c'"),
    "score few": ("score runs/given ab.csv --context c.csv", "3 rows of context for 200"),
    "score superfluous": ("score runs/plain t.csv --context c.csv", "unconditional"),
    "score wide": ("score runs/plain wide.npy", "got 7 columns, expected 3"),
    "score outside": ("score runs/given outside.csv", "row 5 (counted from 1), column 'b': got 10"),
    "score itself": ("score runs/plain t.csv --out t.csv", "is the file that is read"),
    "score stderr": ("score runs/plain t.csv --stderr -1", "expected an error above 0"),
    "score seed": ("score runs/plain t.csv --seed -1", "--seed -1; expected a number from 0"),
    "split": ("evaluate runs/plain --split tset", "expected one of train, validation, test"),
    "limit": ("evaluate runs/plain --limit 0", "--limit 0; expected 1 row or more"),
    "stderr": ("evaluate runs/plain --stderr -1", "expected an error above 0"),
    "option": ("evaluate runs/plain --splt test", "did you mean '--split'"),
    "no run": ("evaluate runs/plian", "did you mean 'runs/plain'"),
    "file for a run": ("evaluate t.csv", "t.csv: is a file; expected the folder of a run"),
    "report folder": ("report runs/plain --out no/r.html", "no: no such folder; make it"),
    "score folder": ("score runs/plain t.csv --out no/s.npy", "no: no such folder; make it"),
    **{
        f"sample folder {ending}": (f"sample runs/plain --out no/s.{ending}", "no: no such folder")
        for ending in ("csv", "npy", "parquet", "png")
    },
    "sample below": ("sample runs/plain --out t.csv/s.csv", "t.csv/s.csv: Not a directory"),
    "score below": ("score runs/plain t.csv --out t.csv/s.csv", "t.csv/s.csv: Not a directory"),
    "report below": ("report runs/plain --out t.csv/r.html", "t.csv/r.html: Not a directory"),
    "report on a folder": ("report runs/plain --out good", "name ending in .html"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_about_a_run_is_refused_and_changes_nothing(
    case: str, home: Path, capsys: pytest.CaptureFixture
) -> None:
    words, message = WRONG_CALLS[case]
    before = contents(home)
    assert main(words.split()) == 2
    assert message in refusal(capsys)
    assert contents(home) == before


def test_outside_the_support_is_minus_infinity_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "scores.npy"
    assert main(["score", "runs/given", "outside.csv", "--out", str(out), "--outside"]) == 0
    assert np.flatnonzero(np.load(out) == -np.inf).tolist() == [4]
