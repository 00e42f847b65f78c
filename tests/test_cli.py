"""The command line, end to end on small runs: its files, its JSON, its exit codes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import contraflow as cf
from contraflow.cli import main
from contraflow.cli._config import instantiate, preset_names, preset_path
from contraflow.cli._train_options import read_options, train_parser

TINY = [
    "--model.transforms", "1", "--model.hidden_features", "[8]",
    "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1",
    "--optimisation.batch_size", "400",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the digits."""
    out = tmp_path_factory.mktemp("runs")
    words = ["train", "digits", "--out", str(out), "--name", "tiny", "--model.tail", "1", "--json"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*words, *TINY]) == 0
    (out / "tiny" / "printed.json").write_text(printed.getvalue())
    return out / "tiny"


def test_a_run_has_every_file_of_the_contract(run: Path) -> None:
    for name in ("config.yaml", "model.safetensors", "certificate.json", "metrics.csv",
                 "samples.png", "checkpoints/last.ckpt"):  # fmt: skip
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents*"))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["init_args"]["lipschitz"] == 0.98  # complete, defaults included
    assert settings["trainer"]["max_epochs"] == 1  # the override was kept


def test_train_json_is_all_that_train_prints_on_standard_output(run: Path) -> None:
    result = json.loads((run / "printed.json").read_text())
    assert result.pop("seconds") > 0
    assert result == {
        "run": str(run),
        "model": str(run / "model.safetensors"),
        "steps": 3,
        "epochs": 1,
        "interrupted": False,
        "certified": True,
    }
    assert "json" not in yaml.safe_load((run / "config.yaml").read_text())


def test_sample_json_names_file_rows_and_columns(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "s.npy"
    assert main(["sample", str(run), "-n", "3", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "out": str(out),
        "rows": 3,
        "columns": None,
        "certified": True,
        "warning": None,
    }


def test_presets_json_names_every_preset_with_its_size(capsys: pytest.CaptureFixture) -> None:
    assert main(["presets", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == preset_names()
    for entry in entries:
        assert {"name", "flow", "data", "parameters", "reproduces"} <= entry.keys()
        assert hasattr(cf.flows, entry["flow"])
    counts = {entry["name"]: entry["parameters"] for entry in entries}
    assert counts["table"] is None
    flow = cf.flows.ResidualFlow(**_arguments("digits"))
    assert counts["digits"] == sum(p.numel() for p in flow.parameters())


def _arguments(preset: str) -> dict:
    from contraflow.cli._config import read_preset

    return read_preset(preset)["model"]["init_args"]


def test_evaluate_json_has_value_kind_and_errors(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), "--json", "--limit", "20", "--stderr", "0.05"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["unit"] == "bits_per_dim"
    assert result["kind"] == "lower_bound"
    assert result["n"] == 20
    assert 0 < result["stderr"] <= 0.05
    assert result["stderr_data"] > 0
    assert result["bias_bound"] == 0
    assert result["value_protocol"] == result["value"]
    assert result["round_trip_error"] < 1e-3
    assert result["round_trip_error_float64"] < 1e-10
    # The same number by hand, with noise of another seed: 6 standard errors of either draw.
    flow = cf.load(run / "model.safetensors")
    x = cf_data_rows(20)
    with torch.no_grad():
        draws = torch.stack([flow.log_prob(x) for _ in range(8)])
    by_hand = -draws.mean().item() / (64 * np.log(2))
    assert abs(by_hand - result["value"]) < 6 * result["stderr"] * np.sqrt(2)


def cf_data_rows(count: int) -> torch.Tensor:
    from contraflow.data import Digits

    x = Digits().load().test.x
    return x[torch.linspace(0, len(x) - 1, count).round().long()]


def test_certify_json_proves_each_block(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["certify", str(run), "--json"]) == 0
    text = capsys.readouterr().out
    result = json.loads(text)
    assert result["certified"] is True
    assert "Infinity" not in text
    bounds = [b["lipschitz"] for b in result["blocks"] if b["lipschitz"] is not None]
    assert len(bounds) == 1
    assert bounds[0] < 1


@pytest.mark.filterwarnings("default")  # the command prints it
def test_certify_of_a_flow_that_fails_says_so_and_exits_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "contraflow.lipschitz.PreparedChain.certified_bound", lambda self: 1.5, raising=True
    )
    assert main(["certify", str(run)]) == 1
    captured = capsys.readouterr()
    assert "NOT certified" in captured.out
    assert "warning: " in captured.err  # loading says so too, in one line
    assert captured.err.count("\n") == 1
    monkeypatch.undo()
    assert main(["certify", str(run)]) == 0  # leave a true certificate behind


@pytest.mark.parametrize("ending", ["npy", "csv", "parquet", "png"])
def test_sample_writes_every_format(
    run: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / f"samples.{ending}"
    assert main(["sample", str(run), "-n", "5", "--seed", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    if ending == "npy":
        values = np.load(out)
        assert values.shape == (5, 1, 8, 8)
        assert set(np.unique(values)) <= set(range(17))
        again = tmp_path / "again.npy"
        main(["sample", str(run), "-n", "5", "--seed", "1", "--out", str(again)])
        np.testing.assert_array_equal(values, np.load(again))
    else:
        assert out.stat().st_size > 100


def test_report_is_one_file_without_outside_references(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    text = out.read_text()
    for wanted in ("bits/dim", "lower bound", "Lip", "contraflow train digits"):
        assert wanted in text, wanted
    assert 'src="http' not in text


def test_a_table_with_context_columns_from_csv_to_conditional_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    c = rng.normal(size=(400, 1))
    rows = np.hstack([c + 0.1 * rng.normal(size=(400, 2)), c])
    table = tmp_path / "t.csv"
    np.savetxt(table, rows, delimiter=",", header="a,b,c", comments="")
    data = ["--data.path", str(table), "--data.columns", "a,b", "--data.context_columns", "c"]
    code = main(["train", "table", *data, "--out", str(tmp_path), "--name", "t", *TINY])
    assert code == 0
    given = tmp_path / "given.csv"
    given.write_text("c\n0.0\n1.0\n")
    out = tmp_path / "s.csv"
    code = main(["sample", str(tmp_path / "t"), "-n", "3", "--context", str(given),
                 "--out", str(out)])  # fmt: skip
    assert code == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "a,b"
    assert len(lines) == 1 + 3 * 2
    assert main(["evaluate", str(tmp_path / "t")]) == 0
    assert main(["report", str(tmp_path / "t")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "digist"], "did you mean 'digits'"),
        (["train"], "expected a preset's name"),
        (["train", "missing.yaml"], "no such file"),
        (["evaluate", "no-such-run"], "no such run folder"),
        (["train", "mnist"], "no data root"),
        (["train", "table", "--data.path", "missing.csv"], "missing.csv"),
        (["train", "digits", "--model.lipschitz", "1.0", "--name", "l1"], "expected a bound in"),
    ],
)
def test_a_wrong_call_exits_2_with_one_message_and_no_traceback(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTRAFLOW_DATA", raising=False)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_solver_is_chosen_and_set_on_the_command_line() -> None:
    """Mutant: a base class of solvers that the parser takes for a group of settings."""
    parser = train_parser()
    words = ["--model.solver", "Anderson", "--model.solver.memory", "3"]
    options = read_options(parser, preset_path("checkerboard"), words)
    flow = instantiate(parser, model=options.model)
    blocks = [part for part in flow.modules() if isinstance(part, cf.transforms.ResidualBlock)]
    assert {block.solver for block in blocks} == {cf.solvers.Anderson(memory=3)}


def test_a_finished_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["train", "digits", "--out", str(run.parent), "--name", "tiny", *TINY]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before


def test_a_divergent_run_exits_1_and_keeps_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", "digits", "--out", str(tmp_path), "--name", "bad", "--model.tail", "1"]
    wild = ["--optimisation.learning_rate", "1e30", "--optimisation.warmup_steps", "0"]
    code = main([*words, *TINY, *wild, "--trainer.max_epochs", "20"])
    assert code == 1
    assert "Lower the learning rate" in capsys.readouterr().err


def test_resume_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    words = ["train", "digits", "--out", str(tmp_path), "--name", "r", "--model.tail", "1", *TINY]
    assert main(words) == 0
    assert main([*words, "--resume", "--trainer.max_epochs", "2"]) == 0
    metadata = cf.serialization.read_metadata(tmp_path / "r" / "model.safetensors")["metadata"]
    assert metadata["steps"] == 6


def test_a_run_that_stops_before_its_first_validation_is_saved_all_the_same(tmp_path: Path) -> None:
    words = ["train", "digits", "--out", str(tmp_path), "--name", "s", "--model.tail", "1", *TINY]
    assert main([*words, "--trainer.max_steps", "2"]) == 0
    flow = cf.load(tmp_path / "s" / "model.safetensors")
    start = cf.flows.ResidualFlow(**{**_arguments("digits"), "tail": 1, "hidden_features": [8]})
    torch.manual_seed(0)
    assert not torch.equal(next(flow.parameters()), next(start.parameters()))
