"""L as the user sets it: per block, close to 1, changed later, scheduled in training."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import contraflow as cf
from contraflow.cli import main
from contraflow.contraction import bounds_of_blocks
from contraflow.data import Part, Splits
from contraflow.lipschitz import ConvBranch, MLPBranch
from contraflow.solvers import Picard
from contraflow.tasks import LipschitzSchedule, Optimisation, train
from contraflow.tasks.checkpoints import Latest
from contraflow.transforms import ResidualBlock

BATCHES = 6  # an epoch


def vectors(lipschitz: Any, transforms: int = 2, **options: Any) -> cf.Flow:
    torch.manual_seed(0)
    return cf.flows.ResidualFlow(
        2, transforms=transforms, hidden_features=(8,), lipschitz=lipschitz, **options
    )


def proved(flow: cf.Flow) -> list[float]:
    blocks = cf.certify(flow).blocks
    return [block.lipschitz for block in blocks if block.lipschitz is not None]


@torch.no_grad()
def enlarge_(module: nn.Module) -> None:
    """Make every weight huge, with one direction far above the rest: norms sit at their limit."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            matrix = parameter.view(len(parameter), -1)
            one = torch.outer(matrix[:, 0].sign() + 0.1, matrix[0].sign() + 0.1)
            matrix.copy_(1e3 * (one + 0.01 * matrix))


# --- one bound for each block ---------------------------------------------------------------


def test_bounds_reach_their_blocks_in_forward_order():
    """Mutants: the list reversed, its first entry for all, image and vector blocks swapped."""
    assert cf.lipschitz_of(vectors([0.5, 0.9])) == (0.5, 0.9)
    bounds = [0.1, 0.2, 0.3, 0.4, 0.5]
    image: dict[str, Any] = {"shape": (1, 4, 4), "hidden_channels": (4, 4), "scales": 2}
    residual = cf.flows.ResidualFlow(
        transforms=2, tail=1, hidden_features=(8,), lipschitz=bounds, **image
    )
    behrmann = cf.flows.InvertibleResNet(transforms=2, lipschitz=bounds[:4], **image)
    plain = cf.flows.InvertibleResNet(3, transforms=2, lipschitz=bounds[:2])
    for flow, asked in ((residual, bounds), (behrmann, bounds[:4]), (plain, bounds[:2])):
        assert cf.lipschitz_of(flow) == tuple(asked)
        enlarge_(flow)
        certified = proved(flow)
        assert len(certified) == len(asked)
        for bound, limit in zip(certified, asked, strict=True):
            assert 0.5 * limit < bound <= limit  # on 2x2 pixels a convolution's is loose


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ([0.5], cf.ConfigurationError, "got 1 bounds for 2 contractive blocks"),
        ([], cf.ConfigurationError, "got 0 bounds"),
        (
            [0.5, 1.0],
            cf.NotContractiveError,
            "lipschitz of block 1=1.0; expected a bound in (0, 1)",
        ),
        (1.0, cf.NotContractiveError, "lipschitz=1.0; expected a bound in (0, 1)"),
        (0, cf.NotContractiveError, "lipschitz=0"),
        (math.nan, cf.NotContractiveError, "lipschitz=nan"),
        (True, cf.NotContractiveError, "lipschitz=True"),
        ("0.9", cf.NotContractiveError, "lipschitz='0.9'"),
        (1 - 1e-17, cf.NotContractiveError, "lipschitz=1.0"),
    ],
)
def test_wrong_bounds_are_refused_and_change_nothing(wrong: Any, error: type, words: str):
    """Mutant: bounds checked while they are written."""
    flow = vectors([0.6, 0.7])
    for call in (lambda: vectors(wrong), lambda: cf.set_lipschitz_(flow, wrong)):
        with pytest.raises(error) as caught:
            call()
        assert words in str(caught.value)
    assert cf.lipschitz_of(flow) == (0.6, 0.7)


def test_a_flow_without_contractive_blocks_has_no_bound_to_set():
    flow = cf.flows.RealNVP(2, transforms=1)
    assert cf.lipschitz_of(flow) == ()
    with pytest.raises(cf.ConfigurationError, match="RealNVP holds no contractive branch"):
        cf.set_lipschitz_(flow, 0.9)


def test_a_branch_of_the_users_own_is_found_once():
    """Mutants: only our own classes; a shared block counted twice; a branch inside of one."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLPBranch(2, (8,), lipschitz=0.5)
            self.lipschitz = 0.7
            self.event_shape = (2,)

        def prepare(self, context: Tensor | None = None) -> Any:
            self.inner.lipschitz = self.lipschitz
            return self.inner.prepare(context)

    block = ResidualBlock(Own())  # pyright: ignore[reportArgumentType]
    chain = cf.Sequential(block, cf.Inverse(block))
    assert cf.lipschitz_of(chain) == (0.7,)
    cf.set_lipschitz_(chain, 0.3)
    enlarge_(chain)
    assert 0.29 < block.branch.prepare().certified_bound() <= 0.3


# --- L close to 1 ---------------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", [0.5, 0.9999, 1 - 1e-6, 1 - 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 4])
def test_the_asked_bound_is_what_is_proved(lipschitz: float, dtype: torch.dtype, depth: int):
    """Up to the margin of 1e-5 a layer, and never more than was asked.

    Mutants: a root of the wrong order, a margin of 1e-4, a norm that rounding lifts to 1.
    """
    torch.manual_seed(0)
    widths = (16,) * depth
    kernels = (3,) * (depth + 1)
    branches = {
        "mlp": MLPBranch(6, widths, lipschitz=lipschitz),
        # One pixel: there a convolution's bound has no slack of its own.
        "conv": ConvBranch((6, 1, 1), widths, (1,) * len(kernels), lipschitz=lipschitz),
    }
    for branch in branches.values():
        block = ResidualBlock(branch).to(dtype)
        enlarge_(block)
        bound = cf.certify(block).blocks[0].lipschitz
        assert bound is not None
        assert lipschitz * (1 - 1.2e-5 * len(kernels)) <= bound <= lipschitz < 1


def test_a_root_at_a_bound_close_to_one_is_found_and_proved():
    """Mutant: a stopping rule without 1/(1 - L), 1e6 times too lax here."""
    torch.manual_seed(0)
    block = ResidualBlock(MLPBranch(3, (16,), lipschitz=1 - 1e-6)).double()
    enlarge_(block)
    x = torch.randn(20, 3, dtype=torch.float64)
    with torch.no_grad():
        z, _ = block(x)
        solution = block.solve_inverse(z).check("block")
    error = (solution.value - x).norm(dim=-1)
    assert bool((error <= solution.error_bound + 1e-12).all())
    assert solution.error_bound.max() < 1e-6


# --- L changed in a flow that exists --------------------------------------------------------


def test_a_new_bound_holds_at_once_and_is_saved(tmp_path: Path):
    """Mutants: norms of layers kept from the construction; L left out of the saved file."""
    flow = vectors(0.9).eval()
    enlarge_(flow)
    x = torch.randn(10, 2)
    before = flow.log_prob(x)
    cf.set_lipschitz_(flow, [0.3, 0.9999])
    for bound, asked in zip(proved(flow), (0.3, 0.9999), strict=True):
        assert asked * (1 - 4e-5) <= bound <= asked
    assert not torch.allclose(flow.log_prob(x), before)
    assert "max_norm=0.5477" in str(flow)  # sqrt(.3)
    flow.save(tmp_path / "flow.safetensors")
    loaded = cf.load(tmp_path / "flow.safetensors")
    assert cf.lipschitz_of(loaded) == (0.3, 0.9999)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert cf.certify(loaded) == cf.certify(flow)
    cf.set_lipschitz_(flow, 0.9)
    assert torch.equal(flow.log_prob(x), before)  # the weights were never touched


def test_what_depends_on_the_bound_reads_it_anew(monkeypatch: pytest.MonkeyPatch):
    """Draws, determinants, bias bounds and roots. Mutant: L copied when the block is built."""
    seen: dict[str, float] = {}
    strategy = cf.logdet.PowerSeries
    draw, call = strategy.draw, strategy.__call__
    monkeypatch.setattr(
        strategy,
        "draw",
        lambda self, *a, **k: [seen.update(draw=k["lipschitz"]), draw(self, *a, **k)][1],
    )
    monkeypatch.setattr(
        strategy, "__call__",
        lambda self, *a, **k: [seen.update(call=k["lipschitz"]), call(self, *a, **k)][1],
    )  # fmt: skip
    block = ResidualBlock(MLPBranch(2, (8,), lipschitz=0.5), cf.logdet.PowerSeries(terms=4))
    bias = block.likelihood((2,)).bias_bound
    cf.set_lipschitz_(block, 0.99)
    z, _ = block(torch.randn(5, 2))
    assert seen == {"draw": 0.99, "call": 0.99}
    assert block.likelihood((2,)).bias_bound > 100 * bias
    block.double().solver = Picard(atol=1e-3)
    solution = block.solve_inverse(z.detach().double())
    assert bool((solution.residual <= 0.01 * 1e-3).all())  # (1 - L) atol


@pytest.mark.parametrize("roulette", [cf.logdet.Roulette(), cf.logdet.NestedRoulette()])
def test_a_roulette_stays_unbiased_under_a_new_bound(roulette: cf.logdet.LogDet):
    """``|z| < 5`` over 400 draws of 64 equal rows; false alarm 6e-7 if normal.

    Mutant: a tail drawn for the old L of .1, weighted for the new one of .95.
    """
    torch.manual_seed(0)
    block = ResidualBlock(MLPBranch(2, (16,), lipschitz=0.1), roulette, cf.logdet.Exact()).double()
    enlarge_(block)
    cf.set_lipschitz_(block, 0.95)
    x = torch.randn(1, 2, dtype=torch.float64).expand(64, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        noise = (block.draw(x.shape, x, generator) for _ in range(400))
        means = torch.stack([block(x, noise=drawn)[1].mean() for drawn in noise])
        exact = block.eval()(x)[1][0]
    standard_error = means.std() / math.sqrt(len(means))
    assert standard_error < 0.05 * exact.abs()
    assert abs(means.mean() - exact) < 5 * standard_error


# --- schedules ------------------------------------------------------------------------------


def test_a_schedule_is_the_function_it_says():
    """Mutants: L linear where 1 - L is geometric; the end one step late; blocks mixed up."""
    own = (0.99, 0.999)
    geometric = LipschitzSchedule(start=0.9, steps=1000, levels=1000)
    for step in (0, 1, 250, 999, 1000, 5000):
        share = min(step / 1000, 1)
        expected = [1 - 0.1 ** (1 + power * share) for power in (1, 2)]
        assert geometric.at(step, own) == pytest.approx(expected, abs=1e-12)
    linear = LipschitzSchedule([0.2, 0.9], 1000, end=[0.4, 0.5], shape="linear", levels=1000)
    assert linear.at(500, own) == pytest.approx((0.3, 0.7))
    assert geometric.at(1000, own) == own
    assert linear.at(10**9, own) == (0.4, 0.5)


def test_a_schedule_takes_few_values():
    """Mutant: a new L at every step, and with it a new compilation."""
    schedule = LipschitzSchedule(start=0.5, steps=70, end=0.9, levels=7)
    values = [schedule.at(step, (0.8,))[0] for step in range(100)]
    assert values == sorted(values)
    assert len(set(values)) == 8
    assert values.index(0.9) == 70
    assert len({LipschitzSchedule(0.5, 3).at(step, (0.8,)) for step in range(9)}) == 4


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"start": 1.0, "steps": 5}, cf.NotContractiveError),
        ({"start": 0.5, "steps": 5, "end": [0.5, -1]}, cf.NotContractiveError),
        ({"start": 0.5, "steps": 0}, cf.ConfigurationError),
        ({"start": 0.5, "steps": 5.0}, cf.ConfigurationError),
        ({"start": 0.5, "steps": 5, "levels": True}, cf.ConfigurationError),
        ({"start": 0.5, "steps": 5, "shape": "cosine"}, cf.ConfigurationError),
    ],
)
def test_a_wrong_schedule_is_refused(wrong: dict[str, Any], error: type):
    with pytest.raises(error):
        LipschitzSchedule(**wrong)


# --- a schedule in training -----------------------------------------------------------------

SCHEDULE = LipschitzSchedule(start=[0.3, 0.5], steps=8, levels=4)


def splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16 * BATCHES, 2, generator=generator) ** 3
    return Splits("s", Part(x), Part(x[:20]), Part(x[:20]))


def fit(
    folder: Path, schedule: LipschitzSchedule | None = SCHEDULE, *, resume: bool = False,
    callbacks: tuple[pl.Callback, ...] = (), **trainer: Any,
) -> cf.Flow:  # fmt: skip
    flow = vectors([0.9, 0.99], log_det=cf.logdet.Roulette())
    train(
        flow, splits(), folder,
        optimisation=Optimisation(
            batch_size=16, ema_decay=0.9, warmup_steps=3, lipschitz_schedule=schedule
        ),
        trainer={"max_epochs": 2, "log_every_n_steps": 1, "val_check_interval": 3, **trainer},
        resume=resume, checkpoint_every=0.0, callbacks=callbacks,
    )  # fmt: skip
    return flow


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_training_follows_the_schedule_and_says_so(tmp_path: Path):
    """Mutants: L set once; one step late; validation under the L of the start."""

    seen: list[tuple[str, int, tuple[float, ...]]] = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(("train", trainer.global_step, cf.lipschitz_of(pl_module)))

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(("val", trainer.global_step, cf.lipschitz_of(pl_module)))

    flow = fit(tmp_path, callbacks=(Watch(),))
    assert len(seen) == 12 + 4
    for _, step, bounds in seen:
        assert bounds == SCHEDULE.at(step, (0.9, 0.99))
    for row in rows(tmp_path):
        step = int(row["step"]) - bool(row["train/loss"])  # a training loss: before its step
        assert float(row["lipschitz"]) == max(SCHEDULE.at(step, (0.9, 0.99)))
    assert cf.lipschitz_of(flow) == (0.9, 0.99)
    assert cf.certify(flow).certified


def test_only_validations_at_the_final_bound_choose_the_weights(tmp_path: Path):
    """Mutant: the best weights of all validations, under an L that they were not validated with."""
    best = tmp_path / "checkpoints/best.ckpt"
    fit(tmp_path)
    assert torch.load(best, weights_only=True)["global_step"] in (9, 12)
    with pytest.warns(UserWarning, match=r"stopped at step 7 of the 8 .* keeps L="):
        flow = fit(tmp_path / "short", max_steps=7)
    assert not (tmp_path / "short/checkpoints/best.ckpt").exists()
    assert cf.lipschitz_of(flow) == SCHEDULE.at(7, (0.9, 0.99))


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.01), (0.01, 0.9)])
def test_patience_waits_for_the_final_bound(tmp_path: Path, start: float, end: float):
    """One of the ways makes the loss grow while L moves; neither stops there.

    Mutant: the loss of an early L, never reached again, stops the training.
    """
    flow = vectors(0.9)
    enlarge_(flow)
    settings = Optimisation(
        batch_size=16, ema_decay=0, patience=1, learning_rate=1e-9,
        lipschitz_schedule=LipschitzSchedule(start, steps=16, end=end),
    )  # fmt: skip
    went = train(
        flow, splits(), tmp_path, optimisation=settings,
        trainer={"max_epochs": 5, "val_check_interval": 1},
    )  # fmt: skip
    assert went.steps >= 16
    assert cf.lipschitz_of(flow) == (end, end)


def test_a_stop_at_any_step_and_a_resume_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mutant: L counted from the start of the process instead of by the step."""
    whole = fit(tmp_path / "whole")
    hook = Latest.on_train_batch_end
    for at in (1, 3, 5, 8, 10):

        def interrupt(self: Latest, trainer: pl.Trainer, *args: Any) -> None:
            self.interrupted = self.interrupted or trainer.global_step == at  # noqa: B023
            hook(self, trainer, *args)

        folder = tmp_path / str(at)
        with monkeypatch.context() as patch, pytest.warns() if at < 8 else patch.context():
            patch.setattr(Latest, "on_train_batch_end", interrupt)
            fit(folder)
        resumed = fit(folder, resume=True)
        assert rows(folder) == rows(tmp_path / "whole")
        assert cf.lipschitz_of(resumed) == cf.lipschitz_of(whole)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_resume_of_the_very_same_flow_ends_with_the_bounds_it_was_built_with(tmp_path: Path):
    """Mutant: the L at which training stopped, taken for the flow's own."""
    flow = vectors([0.9, 0.99])
    settings = Optimisation(batch_size=16, ema_decay=0, lipschitz_schedule=SCHEDULE)

    def fit_(steps: int, *, resume: bool) -> None:
        train(
            flow, splits(), tmp_path, optimisation=settings, trainer={"max_steps": steps},
            resume=resume, checkpoint_every=0.0,
        )  # fmt: skip

    with pytest.warns(UserWarning, match="stopped at step 4"):
        fit_(4, resume=False)
    assert cf.lipschitz_of(flow) == SCHEDULE.at(4, (0.9, 0.99))
    fit_(9, resume=True)
    assert cf.lipschitz_of(flow) == (0.9, 0.99)


def test_a_training_that_fails_gives_the_bounds_back(tmp_path: Path):
    """Mutant: the L of an early step stays, and the next training takes it for the flow's own."""

    class Fail(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            raise OSError("disk full")

    flow = vectors([0.9, 0.99])
    with pytest.raises(OSError, match="disk full"):
        train(
            flow, splits(), tmp_path, callbacks=[Fail()],
            optimisation=Optimisation(batch_size=16, lipschitz_schedule=SCHEDULE),
        )  # fmt: skip
    assert cf.lipschitz_of(flow) == (0.9, 0.99)


def test_fit_takes_a_schedule():
    flow = vectors(0.9)
    x = torch.randn(64, 2)
    cf.fit(
        flow, x, max_epochs=2, batch_size=16,
        lipschitz_schedule=LipschitzSchedule(start=0.1, steps=4, end=0.95),
    )  # fmt: skip
    assert cf.lipschitz_of(flow) == (0.95, 0.95)
    with pytest.raises(cf.ConfigurationError, match="expected a LipschitzSchedule"):
        cf.fit(flow, x, lipschitz_schedule=0.5)
    with pytest.raises(cf.ConfigurationError, match="got 3 bounds for 2"):
        cf.fit(flow, x, lipschitz_schedule=LipschitzSchedule([0.1] * 3, 4))


def test_the_command_takes_bounds_and_a_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "train", "checkerboard", "--out", str(tmp_path), "--data.num_train", "200",
        "--data.num_validation", "50", "--data.num_test", "50", "--model.transforms", "2",
        "--model.hidden_features", "[8]", "--optimisation.batch_size", "50",
        "--trainer.max_time", "null", "--trainer.max_epochs", "2",
    ]  # fmt: skip
    schedule = ["--optimisation.lipschitz_schedule", "{start: 0.5, steps: 4}"]
    assert main([*words, "--name", "a", "--model.lipschitz", "[0.7, 0.9999]", *schedule]) == 0
    flow = cf.load(tmp_path / "a/model.safetensors")
    assert cf.lipschitz_of(flow) == (0.7, 0.9999)
    certificate = json.loads((tmp_path / "a/certificate.json").read_text())
    assert certificate["certified"] is True
    assert rows(tmp_path / "a")[-1]["lipschitz"] == "0.9999"
    assert main([*words, "--name", "b", "--model.lipschitz", "[0.7]"]) == 2
    assert "got 1 bounds for 2 contractive blocks" in capsys.readouterr().err
    wrong = ["--optimisation.lipschitz_schedule.start", "1.5"]
    assert main([*words, "--name", "b", *schedule, *wrong]) == 2
    assert "lipschitz=1.5; expected a bound in (0, 1)" in capsys.readouterr().err


def test_a_compiled_step_sees_every_new_bound():
    """And compiles thrice in all: once L has changed, it is an input of the graph; near 1 the
    bounds of norms take more steps.

    Mutants: the L of the first call folded into the graph; a compilation for each L.
    """
    flow, eager = vectors(0.5, 1), vectors(0.5, 1)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=count)
    def loss_of(x: Tensor) -> Tensor:
        return -flow.log_prob(x).mean()

    x = torch.randn(8, 2)
    schedule = LipschitzSchedule(start=0.5, steps=12, end=0.99, levels=6)
    for step in range(14):
        for each in (flow, eager):
            enlarge_(each)
            cf.set_lipschitz_(each, schedule.at(step, (0.9,)))
        torch.testing.assert_close(loss_of(x), -eager.log_prob(x).mean(), atol=1e-5, rtol=1e-5)
    assert len(graphs) <= 3


def test_bounds_of_blocks_are_what_recipes_use():
    assert bounds_of_blocks(0.5, 3) == (0.5, 0.5, 0.5)
    assert bounds_of_blocks((0.5, 0.25), 2) == (0.5, 0.25)
