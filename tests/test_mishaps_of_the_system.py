"""Full disks, interrupts, locks and permissions: commands in processes of their own."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

import contraflow as cf
import contraflow_command
from contraflow.cli import main
from contraflow.tasks.checkpoints import read_checkpoint

NOBODY = 65534
TRAIN = [
    "train", "checkerboard", "--checkpoint-every", "0", "--data.num_train", "600",
    "--data.num_validation", "50", "--data.num_test", "50", "--model.transforms", "1",
    "--model.hidden_features", "[8]", "--optimisation.batch_size", "64",
    "--trainer.max_time", "null", "--trainer.max_epochs", "3",
    "--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1",
]  # fmt: skip


@dataclass
class Child:
    """A forked process that runs the command as a shell would start it.

    Args:
        words: the arguments.
        prepare: called in the process first.
    """

    words: list[str]
    prepare: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.output, write = os.pipe()  # a limit on files does not hold for pipes
        # An interrupt waits until the command takes it; before, it would meet pytest's code.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(write, 1)
            os.dup2(write, 2)
            self._run()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.close(write)

    def _run(self) -> NoReturn:
        code = 99
        try:
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            torch.set_num_threads(1)
            warnings.simplefilter("default")  # pytest makes errors of them
            sys.argv = ["contraflow", *self.words]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.prepare()
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                code = contraflow_command.main()
            except KeyboardInterrupt:  # before the first line of the command
                code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """Return the exit code, and what was printed."""
        with os.fdopen(self.output) as file:
            text = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert "Traceback" not in text, text
        return code, text


def run(words: list[str], prepare: Callable[[], object] = lambda: None) -> tuple[int, str]:
    return Child(words, prepare).wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run; in this process, so that its children need import nothing."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*TRAIN, "--out", str(out), "--name", "run"]) == 0
    return out / "run"


def words_of(folder: Path, *more: str) -> list[str]:
    """Return the words that train the same into another folder."""
    return [*TRAIN, "--out", str(folder.parent), "--name", folder.name, *more]


def assert_as_undisturbed(folder: Path, whole: Path) -> None:
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    expected = cf.load(whole / "model.safetensors").state_dict()
    for name, value in cf.load(folder / "model.safetensors").state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not list(folder.rglob("*.partial"))


def told(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("contraflow: ")]


def full_disk(size: int) -> Callable[[], None]:
    """Let no file grow beyond a number of bytes, which fails like a full disk."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return prepare


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("size", "name"),
    [(0, "config.yaml"), (1500, "best.ckpt|last.ckpt"), (40_000, "samples.png")],
)
def test_a_training_on_a_full_disk_fails_and_can_be_resumed(
    size: int, name: str, whole: Path, tmp_path: Path
) -> None:
    words = words_of(tmp_path / "run")
    code, text = run(words, full_disk(size))
    assert code == 1, text
    *warned, last = told(text)
    assert re.search(f"run/.*({name}): File too large", last), text
    assert all("no more events for TensorBoard" in line for line in warned)
    assert len(warned) <= 1
    assert not list(tmp_path.rglob("*.partial"))
    assert run([*words, "--resume"])[0] == 0
    assert_as_undisturbed(tmp_path / "run", whole)


def test_a_disk_that_fills_up_later_keeps_the_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(words_of(folder, "--trainer.max_steps", "10"))[0] == 0
    names = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "model.safetensors", "samples.png")
    kept = {name: (folder / name).read_bytes() for name in names}
    words = words_of(folder, "--resume", "--trainer.max_steps", "-1")
    code, text = run(words, full_disk(8000))
    assert code == 1, text
    assert re.search("ckpt: File too large", told(text)[-1])
    assert kept == {name: (folder / name).read_bytes() for name in names}
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 10
    assert run(words)[0] == 0
    assert_as_undisturbed(folder, whole)


OUTPUTS = {
    "report": "report RUN --out OUT/r.html",
    "sample png": "sample RUN -n 999 --out OUT/s.png",
    **{
        f"{command} {ending}": f"{words} --out OUT/s.{ending}"
        for command, words in (("sample", "sample RUN -n 999"), ("score", "score RUN OUT/x.npy"))
        for ending in ("csv", "npy", "parquet")
    },
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_finds_no_room_leaves_nothing(
    case: str, whole: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((999, 2)))
    words = OUTPUTS[case].replace("RUN", str(whole)).replace("OUT", str(tmp_path)).split()
    Path(words[-1]).write_text("earlier")
    before = contents(tmp_path)
    code, text = run(words, full_disk(300))
    assert code == 1, text
    assert f"contraflow: {words[-1]}: File too large" in text
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "name", "result"),
    [("evaluate", "evaluation.json", "nats, exact"), ("certify", "certificate.json", "Lip(f)")],
)
def test_a_result_that_cannot_be_kept_is_printed(
    command: str, name: str, result: str, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    before = contents(folder)
    code, text = run([command, str(folder)], full_disk(100))
    assert code == 0, text
    assert result in text
    assert told(text) == [f"contraflow: warning: {folder}/{name}: not kept: File too large."]
    assert contents(folder) == before


def test_an_interrupt_at_any_moment_loses_nothing(whole: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    assert run(words_of(tmp_path / "timed"))[0] == 0
    seconds = time.monotonic() - start
    rng = random.Random(0)
    codes = []
    for i in range(12):
        folder = tmp_path / str(i)
        child = Child(words_of(folder))
        time.sleep(seconds * (i + rng.random()) / 12)
        child.send(signal.SIGINT)
        code, text = child.wait()
        codes.append(code)
        assert code in (0, 130), text
        assert code == 0 or "interrupted" in text or "stopping after this step" in text, text
        assert run(words_of(folder, "--resume"))[0] == 0
        assert_as_undisturbed(folder, whole)
    assert codes.count(130) >= 6


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    child = Child(words_of(tmp_path / "run", "--trainer.max_epochs", "100000"))
    wait_for(tmp_path / "run/checkpoints/last.ckpt")
    child.send(signal.SIGINT)
    time.sleep(0.001)
    child.send(signal.SIGINT)
    code, text = child.wait()
    assert code == 130, text
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] > 0


def test_a_termination_leaves_a_run_that_goes_on(whole: Path, tmp_path: Path) -> None:
    child = Child(words_of(tmp_path / "run"))
    wait_for(tmp_path / "run/checkpoints/last.ckpt")
    child.send(signal.SIGTERM)
    code, text = child.wait()
    assert code in (130, -signal.SIGTERM), text
    assert run(words_of(tmp_path / "run", "--resume"))[0] == 0
    assert_as_undisturbed(tmp_path / "run", whole)


def test_a_folder_belongs_to_one_training_and_is_free_after_a_kill(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    first = Child(words_of(folder, "--trainer.max_epochs", "100000"))
    wait_for(folder / "checkpoints/last.ckpt")
    code, text = run(words_of(folder))
    assert code == 2
    assert "another training is writing here" in told(text)[0]
    first.send(0)  # it lives
    first.send(signal.SIGKILL)
    assert first.wait()[0] == -signal.SIGKILL
    more = read_checkpoint(folder / "checkpoints/last.ckpt")["epoch"] + 2
    assert run(words_of(folder, "--resume", "--trainer.max_epochs", str(more)))[0] == 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.fixture
def read_only(whole: Path) -> Iterator[Path]:
    """A run in a folder that nobody but root may write to."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(whole, Path(name) / "run")
        np.save(folder / "x.npy", np.zeros((3, 2)))
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


def nobody() -> None:
    os.seteuid(NOBODY)


@pytest.mark.parametrize(
    "words",
    ["sample RUN --out RUN/s.csv", "sample RUN", "score RUN RUN/x.npy --out RUN/s.csv",
     "report RUN", "train digits --out RUN"],
)  # fmt: skip
def test_a_read_only_folder_is_a_wrong_place(words: str, read_only: Path) -> None:
    before = contents(read_only)
    code, text = run(words.replace("RUN", str(read_only)).split(), nobody)
    assert code == 2, text
    assert len(told(text)) == 1, text
    assert re.search(rf"{read_only}\S*: Permission denied", told(text)[0]), text
    assert ".partial" not in text
    assert contents(read_only) == before


@pytest.mark.parametrize("command", ["evaluate", "certify"])
def test_a_result_about_a_read_only_run_is_printed(command: str, read_only: Path) -> None:
    code, text = run([command, str(read_only)], nobody)
    assert code == 0, text
    assert "not kept: Permission denied" in told(text)[0]
