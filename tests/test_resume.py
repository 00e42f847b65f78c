"""A training that was cut off and resumed gives what an undisturbed one gives, bit for bit."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import contraflow as cf
from contraflow.cli import main
from contraflow.data import Part, Splits
from contraflow.tasks import Optimisation, train
from contraflow.tasks.checkpoints import Latest, read_checkpoint

EPOCHS = 2
BATCHES = 6  # an epoch


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def flow_of(seed: int = 0) -> cf.Flow:
    torch.manual_seed(seed)
    # Roulette: the noise of every step matters.
    return cf.flows.ResidualFlow(
        4, transforms=1, hidden_features=(8,), log_det=cf.logdet.Roulette()
    )


def splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16 * BATCHES + 3, 4, generator=generator) ** 3
    weights = torch.rand(len(x), generator=generator)
    return Splits("s", Part(x, weights=weights), Part(x[:20]), Part(x[:20]))


def fit(folder: Path, *, resume: bool = False, **trainer: Any) -> cf.Flow:
    flow = flow_of()
    train(
        flow,
        splits(),
        folder,
        optimisation=Optimisation(batch_size=16, ema_decay=0.9, patience=20, warmup_steps=3),
        trainer={"max_epochs": EPOCHS, "log_every_n_steps": 1, **trainer},
        resume=resume,
        checkpoint_every=0.0,
    )
    return flow


def assert_equal_runs(folder: Path, flow: cf.Flow, other: Path, other_flow: cf.Flow) -> None:
    assert (folder / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    for name, value in flow.state_dict().items():
        assert torch.equal(value, other_flow.state_dict()[name]), name
    states = [torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (folder, other)]
    for key in ("global_step", "epoch", "lr_schedulers", "optimizer_states"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)


SCHEDULES: dict[str, dict[str, Any]] = {
    "validation after each epoch": {},
    "validation inside the epochs": {"val_check_interval": 3},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "validation after each batch": {"val_check_interval": 1},
    "accumulated gradients": {"accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_kill_after_any_checkpoint_changes_nothing(
    schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SCHEDULES[schedule]
    whole = fit(tmp_path / "whole", **options)
    save = pl.Trainer.save_checkpoint
    steps = []
    for count in range(1, EPOCHS * BATCHES + 1):
        saved = 0

        def save_then_die(self: pl.Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal saved
            save(self, path, *args, **kwargs)
            if Path(path).name == "last.ckpt":
                saved += 1
                if saved == count:  # noqa: B023 - used in this round only
                    steps.append(self.global_step)
                    raise Killed

        folder = tmp_path / str(count)
        with monkeypatch.context() as patch:
            patch.setattr(pl.Trainer, "save_checkpoint", save_then_die)
            try:
                fit(folder, **options)
            except Killed:
                pass
            else:
                break  # there are no more checkpoints
        resumed = fit(folder, resume=True, **options)
        assert_equal_runs(tmp_path / "whole", whole, folder, resumed)
    every = options.get("accumulate_grad_batches", 1)
    assert len(steps) >= EPOCHS * math.ceil(BATCHES / every) - 1  # after every step, or nearly


def test_a_stop_by_max_steps_and_a_resume_change_nothing(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    for steps in (1, BATCHES - 1, BATCHES, BATCHES + 1):
        folder = tmp_path / str(steps)
        fit(folder, max_steps=steps)
        resumed = fit(folder, resume=True)
        assert_equal_runs(tmp_path / "whole", whole, folder, resumed)


def test_an_interrupt_and_a_resume_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tmp_path / "whole", val_check_interval=3)
    hook = Latest.on_train_batch_end
    for at in (1, 3, BATCHES, BATCHES + 2):

        def interrupt(self: Latest, trainer: pl.Trainer, *args: Any) -> None:
            self.interrupted = self.interrupted or trainer.global_step == at  # noqa: B023
            hook(self, trainer, *args)

        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            patch.setattr(Latest, "on_train_batch_end", interrupt)
            fit(folder, val_check_interval=3)
        resumed = fit(folder, resume=True, val_check_interval=3)
        assert_equal_runs(tmp_path / "whole", whole, folder, resumed)


def test_a_run_that_was_moved_goes_on_with_its_best_score(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "before", max_steps=BATCHES + 2)
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = fit(tmp_path / "after", resume=True)
    assert_equal_runs(tmp_path / "whole", whole, tmp_path / "after", resumed)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """A resumed run that repeats one batch is told apart."""
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "other", max_steps=3)
    last = tmp_path / "other/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["position"] -= 1
    torch.save(state, last)
    resumed = fit(tmp_path / "other", resume=True)
    with pytest.raises(AssertionError):
        assert_equal_runs(tmp_path / "whole", whole, tmp_path / "other", resumed)


def test_weights_decide_what_is_learned(tmp_path: Path) -> None:
    """Rows of weight 0 do not count: the mean of the flow is that of the others."""
    x = torch.cat([torch.randn(200, 1), torch.randn(200, 1) + 50])
    weights = torch.cat([torch.ones(200), torch.zeros(200)])
    part = Part(x, weights=weights)
    flow = cf.flows.MAF(features=1, transforms=1, hidden_features=(4,))
    train(
        flow, Splits("w", part, part, part), tmp_path,
        optimisation=Optimisation(batch_size=400, learning_rate=5e-2, ema_decay=0, warmup_steps=0),
        trainer={"max_epochs": 150},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    assert abs(flow.sample(1000, generator=generator).mean().item()) < 1
    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert min(losses) < 0.5 * math.log(2 * math.pi * math.e) + 0.2


def test_thirty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """SIGKILL to the whole command, wherever it is: reading, training, validating, saving."""
    words = [
        "train", "checkerboard", "--out", str(tmp_path), "--checkpoint-every", "0",
        "--data.num_train", "600", "--data.num_validation", "50", "--data.num_test", "50",
        "--model.transforms", "1", "--model.hidden_features", "[8]",
        "--optimisation.batch_size", "64", "--trainer.max_time", "null",
        "--trainer.max_epochs", "10", "--trainer.val_check_interval", "4",
        "--trainer.log_every_n_steps", "1",
    ]  # fmt: skip
    start = time.monotonic()
    assert run_in_child([*words, "--name", "whole"], None) == 0
    seconds = time.monotonic() - start
    rng = random.Random(0)
    kills, run, moments = 0, 0, set()
    while kills < 30 or run == 0:  # and then until the run that was killed is done
        folder = tmp_path / str(run)
        resume = [*words, "--name", str(run), "--resume"]
        code = run_in_child(resume, rng.uniform(0, 0.8 * seconds) if kills < 30 else None)
        steps = 0
        if (folder / "checkpoints/last.ckpt").is_file():
            steps = read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"]
        if code == 0:
            assert_equal_commands(tmp_path / "whole", folder)
            run += 1
            continue
        assert code == -signal.SIGKILL
        kills += 1
        assert steps >= max((m for r, m in moments if r == run), default=0)  # none is lost
        moments.add((run, steps))
        if (folder / "model.safetensors").is_file():
            cf.load(folder / "model.safetensors")  # whole, or not there
    assert len({steps for _, steps in moments}) > 5


def assert_equal_commands(folder: Path, other: Path) -> None:
    flows = [cf.load(f / "model.safetensors") for f in (folder, other)]
    assert_equal_runs(folder, flows[0], other, flows[1])


def run_in_child(words: list[str], seconds: float | None) -> int:
    """Run a command in a forked process and kill it after a while; return its exit code."""
    child = multiprocessing.get_context("fork").Process(target=silent_main, args=(words,))
    child.start()
    child.join(seconds)
    if child.is_alive() and child.pid is not None:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def silent_main(words: list[str]) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        sys.exit(main(words))
