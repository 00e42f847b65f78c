"""What the command line says: help that fits 80 columns, one line for a wrong call."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contraflow.cli import COMMANDS, main
from contraflow.cli._config import preset_names
from contraflow.cli.presets import describe, table

HELPS = [
    *([name, "--help"] for name in COMMANDS),
    ["train", "--help", "all"],
    *(["train", preset, "--help"] for preset in preset_names()),
    ["train", "digits", "--help-all"],
]


def help_of(words: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_fits_80_columns_and_ends_with_examples(
    words: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(words, capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert f"\nexamples:\n  contraflow {words[0]}" in text
    for soup in ("Union[", "null}", "CLASS_PATH", "type:", "==SUPPRESS==", "``", "| null"):
        assert soup not in text, soup
    assert len(re.findall(r"^  --seed", text, re.MULTILINE)) <= 1


def test_the_short_help_of_train_is_a_page_and_says_where_the_rest_is(
    capsys: pytest.CaptureFixture,
) -> None:
    short = help_of(["train", "--help"], capsys)
    complete = help_of(["train", "--help", "all"], capsys)
    assert len(short.splitlines()) < 70 < len(complete.splitlines())
    assert "--trainer.accumulate_grad_batches" not in short
    assert "--trainer.accumulate_grad_batches" in complete
    assert "contraflow train --help all" in short
    assert "contraflow train PRESET --help" in short


def test_the_help_of_a_preset_has_the_arguments_and_values_of_its_own_classes(
    capsys: pytest.CaptureFixture,
) -> None:
    digits = help_of(["train", "digits", "--help"], capsys)
    assert re.search(r"--model.marginals N .*?\(default: 32\)", digits, re.DOTALL)
    assert re.search(r"--model.hidden_channels \[N,...\]\s+widths", digits)
    assert re.search(r"--optimisation.batch_size N\s+rows a batch \(default: 128\)", digits)
    assert "\n  --data.path" not in digits
    assert "--data.path FILE" in help_of(["train", "table", "--help"], capsys)
    other = help_of(["train", "table", "--model", "RealNVP", "--help"], capsys)
    assert "widths of the conditioners" in other
    assert "--model.lipschitz" not in other


def test_help_lists_every_command(capsys: pytest.CaptureFixture) -> None:
    text = help_of(["--help"], capsys)
    assert all(re.search(rf"^  {command} ", text, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "no command 'trian'; did you mean 'train'?"),
        ("train digist", "did you mean 'digits'?"),
        ("train digits --nmae x", "unknown option --nmae; did you mean '--name'?"),
        ("train digits --trainer.max_tim 1", "did you mean '--trainer.max_time'?"),
        ("train digits --optimisation.batchsize 3", "did you mean '--optimisation.batch_size'?"),
        (
            "train digits --model.lipshitz 1",
            "--model.lipshitz of ResidualFlow; did you mean '--model.lipschitz'?",
        ),
        ("train digits --model RealNVP --model.lipschitz 1", "of RealNVP; it takes --model.f"),
        ("train digits --model RezidualFlow", "did you mean 'ResidualFlow'?"),
        ("train digits --data Tabel", "did you mean 'Table'?"),
        ("train digits --seed abc", "--seed abc; expected an integer."),
        ("train digits --seed", "--seed: expected a value"),
        ("train digits --model.transforms two", "--model.transforms two; expected an integer."),
        ("train digits --model.mixing maybe", "--model.mixing maybe; expected true or false."),
        ("train digits --model.shape 3", "--model.shape 3; expected a list"),
        ("train digits --trainer.max_epochs ten", "--trainer.max_epochs ten; expected an integer"),
        ("train digits --trainer.precision 12", "--trainer.precision 12; expected one of 64, 32"),
        ("train digits --resume=3", "--resume takes no value; got '3'"),
        ("train digits extra", "unexpected argument 'extra'; see contraflow train --help"),
        ("train table", "missing --data.path; see"),
        ("evaluate", "missing RUN; see contraflow evaluate --help"),
        ("evaluate a b", "unexpected argument 'b'"),
        ("evaluate a --limt 3", "unknown option --limt; did you mean '--limit'?"),
        ("sample a -n two", "--number two; expected an integer."),
        ("completion fish", "invalid choice: 'fish'"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("contraflow: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


GOOD = "model:\n  class_path: ResidualFlow\ndata:\n  class_path: Digits\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1\n  x: {", "p.yaml:2: not YAML: expected ',' or ']'"),
        ("", "p.yaml: is empty; expected a mapping"),
        ("- 1\n", "p.yaml: holds a list; expected a mapping"),
        ("\udcff", "p.yaml: no text"),
        (GOOD + "optimizer: 3\n", "p.yaml:5: unknown key optimizer"),
        (GOOD + "optimisation:\n  batchsize: 3\n", "p.yaml:6: unknown key optimisation.batchsize"),
        (GOOD + "seed: abc\n", "p.yaml:5: seed abc; expected an integer."),
        (GOOD.replace("Res", "Rez"), "p.yaml:1: model: no class 'RezidualFlow'; did you mean"),
        (
            GOOD.replace("data:", "  init_args: {lipshitz: 1}\ndata:"),
            "p.yaml:3: unknown key model.lipshitz of ResidualFlow; did you mean",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert main(["train", "p.yaml", "--name", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"contraflow: {message}")
    assert error.count("\n") == 1


def test_a_wrong_option_is_not_blamed_on_a_good_file(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "table", "--seed", "x"]) == 2
    assert "yaml" not in capsys.readouterr().err


def test_presets_are_a_table_of_80_columns() -> None:
    entries = [describe(name) | {"reproduces": "a table " * 20} for name in preset_names()]
    lines = table(entries, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[0] != " "] == ["name", *preset_names()]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion script of bash."""
    path = tmp_path_factory.mktemp("completion") / "contraflow.bash"
    command = [sys.executable, "-m", "contraflow", "completion", "bash"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tr", {"train"}),
        ("train di", {"digits"}),
        ("train digits --trainer.max_t", {"--trainer.max_time"}),
        ("train digits --model.hidden_f", {"--model.hidden_features"}),
        ("evaluate run --s", {"--split", "--stderr", "--seed"}),
        ("evaluate ru", {"runs"}),
        ("completion z", {"zsh"}),
        ("train min", {"mine.yaml", "miniboone"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "rubbish.txt").touch()
    (tmp_path / "mine.yaml").touch()
    function = re.search(r"^complete .*-F (\S+) contraflow", script.read_text(), re.MULTILINE)
    assert function is not None
    listed = ["contraflow", *words.split()]
    call = (
        f"source {script}; COMP_WORDS=({' '.join(listed)}); COMP_CWORD={len(listed) - 1}; "
        f'{function[1]} contraflow {listed[-1]} {listed[-2]}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", call], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert set(done.stdout.split()) == expected


def test_an_interrupt_during_start_up_leaves_no_traceback() -> None:
    rng = random.Random(0)
    program = (
        "import sys, contraflow_command as command; print('started', flush=True); "
        "sys.argv = ['contraflow', 'presets']; sys.exit(command.main())"
    )
    codes = []
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell lets what it starts in the background ignore Ctrl-C, us for example.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0.02, 5))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert error in ("contraflow: interrupted\n", ""), error
        assert (process.returncode, error) in ((130, "contraflow: interrupted\n"), (0, ""))
    assert 130 in codes


def test_version_and_help_do_not_import_lightning() -> None:
    program = (
        "import sys; from contraflow.cli import main; main(['--help']); main(['--version']); "
        "sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
