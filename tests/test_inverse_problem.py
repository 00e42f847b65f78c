"""The example of an inverse problem: what its text claims is checked, small."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import contraflow as cf
from contraflow.lipschitz import LipschitzLinear, MLPBranch
from contraflow.transforms import ResidualBlock

EXAMPLE = Path(__file__).parent.parent / "examples/inverse_problem.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    name = "inverse_problem_example"
    spec = importlib.util.spec_from_file_location(name, EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def test_the_blur_is_what_the_theory_asks_for(example: ModuleType):
    """Self-adjoint, 0 < A <= 1, ill-posed, a constant image unchanged.

    Mutants: a kernel cut at the edge without reflection; one that is not normalised.
    """
    blur = example.gaussian_blur(8, 1.0)
    assert torch.equal(blur, blur.mT) or (blur - blur.mT).abs().max() < 1e-15
    values = torch.linalg.eigvalsh(blur)
    assert values.min() > 0
    assert values.max() == pytest.approx(1, abs=1e-12)
    assert values.max() / values.min() > 1000
    assert blur.sum(1) == pytest.approx(torch.ones(64).numpy(), abs=1e-12)
    row = blur[3 * 8 + 3].reshape(8, 8)  # in the middle: the Gaussian itself
    assert row[3, 4] / row[3, 3] == pytest.approx(math.exp(-0.5), rel=0.02)


def test_the_noise_has_the_size_that_is_said(example: ModuleType):
    """``E|noise| = delta mean|A x|``. Mutant: delta taken a pixel, 8 times too much."""
    problem = example.deblurring()
    clean = problem.test @ problem.blur
    z = problem.measure(problem.test, 0.03, seed=2)
    ratio = (z - clean).norm(dim=1).mean() / (problem.train @ problem.blur).norm(dim=1).mean()
    assert ratio == pytest.approx(0.03, rel=0.02)
    assert not torch.equal(z, problem.measure(problem.test, 0.03, seed=1))


@pytest.mark.parametrize("gap", [0.1, 1e-2, 1e-4])
def test_a_branch_meets_the_asked_bound_at_equal_singular_values(gap: float):
    """Where the norm is hardest to bound: 1 - L is met to a few 1e-5.

    Mutant: six Gram steps, which leave 1 - L above .06 whatever was asked.
    """
    torch.manual_seed(0)
    branch = MLPBranch(16, (64,), "elu", 1 - gap)
    for layer in branch.layers:
        assert isinstance(layer, LipschitzLinear)
        torch.nn.init.orthogonal_(layer.weight, gain=3.0)
    bound = cf.certify(ResidualBlock(branch)).blocks[0].lipschitz
    assert bound is not None
    assert (1 - gap) * (1 - 2e-4) <= bound <= 1 - gap


def test_a_quick_run_shows_what_the_page_says(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Proved bounds hold, L is chosen on validation, and the noise is damped.

    Mutants: a stretch above the bound; L chosen on test images; the network not trained.
    """
    rows = example.main(["--quick", "--figure", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("\n| ") == len(rows) == 12
    networks = [row for row in rows if row.lipschitz is not None]
    assert len(networks) == 6
    for row in networks:
        assert 0 < row.stretch <= row.inverse_bound <= 1 / (1 - row.lipschitz) * (1 + 1e-9)
        assert row.root_bound < 1e-9
    by_name = {(row.method, row.delta): row for row in rows}
    for delta in (0.3, 0.01):
        naive = by_name["naive inverse", delta]
        assert naive.inverse_bound > 1000
        assert by_name["L(delta)", delta].error < 0.6 < naive.error
    # Less noise: an L closer to 1 is chosen, and pays.
    loud, faint = by_name["L(delta)", 0.3], by_name["L(delta)", 0.01]
    assert loud.lipschitz < faint.lipschitz
    assert faint.error < by_name["L = 0.5", 0.01].error


def test_a_saved_network_is_the_same_regularisation(example: ModuleType, tmp_path: Path):
    """L belongs to the model. Mutant: a file that gives back the L of the construction."""
    torch.manual_seed(0)
    block = ResidualBlock(MLPBranch(4, (8,), "elu", 0.5)).double()
    for parameter in block.parameters():
        parameter.data.mul_(50)
    cf.set_lipschitz_(block, 0.995)
    flow = cf.Flow(block, event_shape=(4,)).double()
    flow.save(tmp_path / "phi.safetensors")
    loaded = cf.load(tmp_path / "phi.safetensors")
    z = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(loaded.solve_inverse(z).value, flow.solve_inverse(z).value)
    inverse = cf.certify(loaded).lipschitz_inverse
    assert inverse == cf.certify(flow).lipschitz_inverse
    assert inverse == pytest.approx(200, rel=0.02)
