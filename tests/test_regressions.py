"""Faults that were found in review; each test fails on the code as it was."""

from __future__ import annotations

import csv
import math
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import contraflow as cf
from contraflow.cli import main
from contraflow.data import Table, read_table
from contraflow.errors import ConfigurationError, DataError
from contraflow.evaluation import evaluate_likelihood
from contraflow.jacobian import linearize
from contraflow.lipschitz import LipschitzLinear, MLPBranch
from contraflow.logdet import log_det_identity_plus
from contraflow.nn import MADE
from contraflow.solvers import Picard
from contraflow.transforms import ActNorm, Logit, ResidualBlock

TINY = [
    "--model.tail", "1", "--model.hidden_features", "[8]", "--optimisation.batch_size", "400",
    "--trainer.check_val_every_n_epoch", "1",
]  # fmt: skip


@cf.register
class KeepsATensor(cf.Transform):
    """Keeps numbers outside its state, where no file can hold them."""

    closed_form = True

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(2))
        self.matrix = 2 * torch.eye(2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x @ self.matrix + self.shift, x.new_full(x.shape[:-1], 2 * math.log(2))


def test_loading_refuses_numbers_that_were_not_saved(tmp_path: Path) -> None:
    flow = cf.Flow(KeepsATensor(), event_shape=(2,))
    flow.save(tmp_path / "f.safetensors")
    with pytest.raises(cf.LoadError, match=r"'matrix'.*register_buffer"):
        cf.load(tmp_path / "f.safetensors")


def test_a_transform_that_states_nothing_leaves_the_flow_uncertified() -> None:
    class Own(cf.Transform):
        pass

    certificate = cf.certify(cf.Flow(Own(), event_shape=(2,)))
    assert not certificate.certified
    assert certificate.blocks[0].method == "nothing stated"


def test_the_error_bound_in_float32_holds_under_large_hidden_activations() -> None:
    torch.manual_seed(0)
    branch = MLPBranch(2, (64,), "elu", 0.5)
    with torch.no_grad():
        first, last = branch.layers
        assert isinstance(first, LipschitzLinear)
        assert isinstance(last, LipschitzLinear)
        first.weight.mul_(20)
        first.bias.copy_(torch.randn(64) * 100)
        last.weight.mul_(20)
        last.bias.sub_(branch.prepare()(torch.zeros(2)))  # centred
    block = ResidualBlock(branch, solver=Picard())
    z = torch.randn(256, 2)
    solution = block.solve_inverse(z)
    prepared = branch.prepare().in_dtype(torch.float64)
    root = z.double()
    for _ in range(200):
        root = z.double() - prepared(root)
    error = (solution.value.double() - root).norm(dim=-1)
    assert bool((error <= 1.001 * solution.error_bound + 1e-12).all())


def test_a_row_outside_the_support_stays_minus_infinity() -> None:
    flow = cf.flows.ResidualFlow(shape=(1, 2, 2), num_bins=4, scales=0, tail=0).eval()
    x = torch.zeros(2, 1, 2, 2)
    x[1] = 9
    estimate = cf.estimate_log_prob(flow, x, stderr=0.5)
    assert estimate.value[0].isfinite()
    assert estimate.value[1] == -math.inf
    assert bool((estimate.stderr <= 0.5).all())


def test_too_few_draws_for_an_error_are_refused() -> None:
    flow = cf.flows.ResidualFlow(shape=(1, 2, 2), num_bins=4, scales=0, tail=0).eval()
    for draws in (0, 3):
        with pytest.raises(cf.ConfigurationError, match="max_draws"):
            evaluate_likelihood(flow, torch.zeros(2, 1, 2, 2), max_draws=draws)


def test_a_constant_feature_keeps_its_scale() -> None:
    norm = ActNorm(2)
    norm.initialise_from(torch.tensor([[0.0, 3.3], [2.0, 3.3]]))
    assert norm.log_scale.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [torch.zeros(1, 2), torch.full((4, 2), math.nan)])
def test_initialisation_refuses_what_has_no_statistics(bad: Tensor) -> None:
    with pytest.raises(cf.DataError, match="2 or more finite rows"):
        cf.flows.MAF(2).initialise_from(bad)


def test_a_distribution_refuses_events_of_another_shape() -> None:
    with pytest.raises(cf.ShapeError, match=r"\(5, 1\)"):
        cf.flows.MAF(2)().log_prob(torch.zeros(5, 1))


def test_the_logit_keeps_its_digits_near_both_ends() -> None:
    logit = Logit(0.0, 256.0, 1e-6)
    for value in (1e-4, 255.9999, 256.0001):
        x = torch.tensor([[value]])
        exact, _ = logit(x.double())
        assert abs(logit(x)[0].item() - exact.item()) < 0.1
    far = logit.inverse(torch.tensor([[40.0], [-40.0]]))[0]
    assert bool(logit.domain.contains(far, 1).all())


def test_a_negative_determinant_is_not_a_plausible_number() -> None:
    matrix = -3 * torch.diag(torch.tensor([1.0, 0.1, 0.1, 0.1]))
    assert log_det_identity_plus(matrix).isnan()


def test_the_layers_follow_a_schedule_of_the_bound() -> None:
    branch = MLPBranch(3, (16,), lipschitz=0.98)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.mul_(30)
    for wanted in (0.5, 0.9):
        branch.lipschitz = wanted
        prepared = branch.prepare()
        assert prepared.lipschitz == wanted
        assert 0.99 * wanted < prepared.certified_bound() <= wanted


def test_the_slope_of_elu_at_zero_is_one() -> None:
    x = torch.zeros(1, requires_grad=True)
    value, slope = cf.lipschitz.activation("elu").value_and_slope(x)
    assert torch.autograd.grad(value.sum(), x)[0].item() == slope.item() == 1.0


def test_every_feature_conditions_the_later_ones_in_a_narrow_net() -> None:
    net = MADE(40, 1, (16,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.1, 1.0)
    jacobian = torch.func.jacrev(lambda v: net(v)[..., 0])(torch.zeros(40))
    assert bool((jacobian[39] != 0)[36:39].any())
    assert bool((jacobian.triu() == 0).all())


def test_views_keep_empty_containers_and_foreign_methods() -> None:
    class Named(cf.Transform):
        closed_form = True

        def log_det(self) -> str:
            return "mine"

    inner = cf.Sequential()
    assert isinstance(
        cf.Flow(inner, event_shape=(2,)).using(solver=Picard()).transform, cf.Sequential
    )
    view = cf.Flow(Named(), event_shape=(2,)).using(log_det=cf.logdet.Exact())
    assert view.transform.log_det() == "mine"  # pyright: ignore


def test_integer_data_have_no_reparameterised_draws() -> None:
    flow = cf.flows.ResidualFlow(shape=(1, 2, 2), num_bins=4, scales=0, tail=0)
    assert not flow().has_rsample
    with pytest.raises(cf.SupportError, match="no gradient"):
        flow().rsample((2,))
    assert cf.flows.MAF(2).rsample_and_log_prob(5)[0].shape == (5, 2)


@pytest.mark.parametrize("solver", [Picard, cf.solvers.Newton])
@pytest.mark.parametrize("wrong", [{"atol": 0.0}, {"atol": -1.0}, {"max_steps": 0}])
def test_solvers_refuse_limits_that_cannot_be_met(solver: type, wrong: dict) -> None:
    with pytest.raises(cf.ConfigurationError, match=next(iter(wrong))):
        solver(**wrong)


def test_autocast_does_not_reach_into_the_flow() -> None:
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(6, transforms=2).eval()
    x = torch.randn(8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = flow.log_prob(x)
        drawn = flow.sample(8, generator=torch.Generator().manual_seed(0))
        certificate = cf.certify(flow)
    assert torch.equal(inside, flow.log_prob(x))
    assert torch.equal(drawn, flow.sample(8, generator=torch.Generator().manual_seed(0)))
    assert certificate == cf.certify(flow)


def test_autocast_does_not_reach_into_a_bound() -> None:
    """Mutant: products of Gram matrices in bfloat16, whose bound is below the norm."""
    for seed in range(10):
        torch.manual_seed(seed)
        layer = cf.lipschitz.LipschitzLinear(128, 128, max_norm=0.9)
        layer.weight.data.normal_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            norm = torch.linalg.svdvals(layer.prepare().weight.double())[0]
        assert norm <= 0.9


def test_the_prepared_branch_is_the_same_in_float64() -> None:
    torch.manual_seed(0)
    prepared = MLPBranch(3, (16,), "cpila").prepare()
    x = torch.randn(4, 3)
    torch.testing.assert_close(
        prepared.in_dtype(torch.float64)(x.double()).float(), prepared(x), atol=1e-6, rtol=0
    )
    exact = linearize(prepared.in_dtype(torch.float64), x.double())[1].dense().float()
    torch.testing.assert_close(exact, linearize(prepared, x)[1].dense(), atol=1e-6, rtol=0)


def test_ctrl_c_ends_the_training_and_saves_it(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    words = [
        "train",
        "digits",
        "--out",
        str(tmp_path),
        "--name",
        "i",
        *TINY,
        "--checkpoint-every",
        "0",
    ]

    def press() -> None:
        metrics = tmp_path / "i" / "checkpoints" / "last.ckpt"
        while not metrics.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    assert main([*words, "--trainer.max_epochs", "100000"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert cf.load(tmp_path / "i" / "model.safetensors").kind == "lower_bound"


def test_resuming_keeps_the_earlier_rows_of_the_log(tmp_path: Path) -> None:
    words = ["train", "digits", "--out", str(tmp_path), "--name", "r", *TINY]
    assert main([*words, "--trainer.max_epochs", "1"]) == 0
    assert main([*words, "--trainer.max_epochs", "2", "--resume"]) == 0
    with (tmp_path / "r" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert [row["epoch"] for row in rows] == ["0", "1"]


@pytest.mark.parametrize("words", [["--trainer.accelerator", "foo"], ["--trainer.devices", "-7"]])
def test_what_lightning_refuses_is_a_wrong_call(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", "digits", "--out", str(tmp_path), *TINY, *words]) == 2
    assert "trainer:" in capsys.readouterr().err


def test_a_float32_root_is_right_to_rounding() -> None:
    """The residual is .41 units of rounding at worst. Mutant: without the last step .71."""
    torch.manual_seed(0)
    branch = MLPBranch(8, (64, 64), lipschitz=0.97)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.mul_(4)
    block = ResidualBlock(branch, solver=cf.solvers.Newton())
    z = 3 * torch.randn(512, 8)
    x = block.solve_inverse(z).value.double()
    gap = (z.double() - x - branch.prepare().in_dtype(torch.float64)(x)).norm(dim=-1)
    rounding = torch.finfo(torch.float32).eps * x.norm(dim=-1)
    assert (gap / rounding).max().item() < 0.6


# What a review found at the command line ----------------------------------------------------


def test_a_report_goes_into_html_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"precious")
    assert main(["report", str(tmp_path), "--out", str(model)]) == 2
    assert "name ending in .html" in capsys.readouterr().err
    assert model.read_bytes() == b"precious"


@pytest.mark.parametrize("flow", ["MAF", "RealNVP", "InvertibleResNet"])
def test_every_vector_flow_takes_its_features_from_a_table(flow: str, tmp_path: Path) -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "t.npy", x)
    words = ["train", "table", "--data.path", str(tmp_path / "t.npy"), "--model", flow]
    words += ["--out", str(tmp_path), "--model.transforms", "1", "--trainer.max_steps", "1"]
    assert main(words) == 0


@pytest.mark.parametrize(
    ("flow", "message"),
    [("MAF", "models vectors; the data are images"), ("InvertibleResNet", "scales=0; expected 1")],
)
def test_a_flow_that_does_not_suit_images_is_refused(
    flow: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", "digits", "--model", flow, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_finds_its_table_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    np.save("t.npy", torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).numpy())
    words = ["train", "table", "--data.path", "t.npy", "--model", "MAF", "--model.transforms", "1"]
    assert main([*words, "--name", "r", "--trainer.max_steps", "1"]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../runs/r"]) == 0


def test_what_a_killed_training_left_is_swept_away(tmp_path: Path) -> None:
    words = ["train", "digits", "--out", str(tmp_path), "--name", "r", *TINY]
    assert main([*words, "--trainer.max_steps", "1"]) == 0
    left = tmp_path / "r" / "checkpoints" / "last.ckpt.1-1.partial"
    left.write_bytes(b"half")
    assert main([*words, "--trainer.max_steps", "2", "--resume"]) == 0
    assert not left.exists()


@pytest.mark.parametrize(
    "words",
    [["--trainer.max_epochs", "0"], ["--trainer.max_steps", "0"], ["--checkpoint-every", "-5"]],
)
def test_limits_that_train_nothing_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", "digits", "--out", str(tmp_path), *TINY, *words]) == 2
    assert "expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_archive_may_hold_text_and_scalars_that_nobody_asks_for(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "t.npz", x=x, names=np.array(["a", "b", "c"]), seed=np.array(7))
    assert read_table(tmp_path / "t.npz", ["x"])[1].tolist() == x.tolist()
    with pytest.raises(DataError, match=r"npz: array 'names' has values of dtype <U1"):
        read_table(tmp_path / "t.npz")
    np.savez(tmp_path / "u.npz", x=x, x_0=x[:, 0])
    with pytest.raises(DataError, match=r"give the columns \['x_0'\] more than once"):
        read_table(tmp_path / "u.npz", ["x"])


def test_names_of_a_csv_are_not_taken_for_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A header x_b, x_a was read by place where the model knew a, b."""
    flow = cf.flows.MAF(2, transforms=1, hidden_features=(4,))
    flow.save(tmp_path / "model.safetensors", metadata={"columns": ["a", "b"]})
    (tmp_path / "t.csv").write_text("x_b,x_a\n1,2\n")
    assert main(["score", str(tmp_path), str(tmp_path / "t.csv")]) == 2
    assert "no column is called 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (float("inf"), None), (float("nan"), 1.0)])
def test_bounds_that_make_no_sense_are_no_fault_of_the_data(bounds: tuple) -> None:
    with pytest.raises(ConfigurationError, match=r"bounds .* for 'a', expected finite numbers"):
        Table("t.csv", bounds={"a": bounds})
