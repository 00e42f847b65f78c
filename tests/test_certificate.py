"""The certificate: what it claims of errors is true, and nothing is certified on a guess."""

from __future__ import annotations

import copy
import json
import math
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import contraflow as cf
from contraflow.cli import main
from contraflow.flow import Flow
from contraflow.lipschitz import Branch
from contraflow.report import ReportContents, render_comparison, render_report
from contraflow.solvers import Newton, Picard
from contraflow.transform import BlockCertificate, Inverse, Sequential, Transform
from contraflow.transforms import ActNorm, LULinear, ResidualBlock, Standardise


class PreparedScale:
    """``g(x) = scale * x`` and what it claims of itself."""

    def __init__(self, scale: float, bound: float, lipschitz: float) -> None:
        self.scale, self.bound, self.lipschitz = scale, bound, lipschitz

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x

    def rows(self, index: Tensor) -> PreparedScale:
        return self

    def double(self) -> PreparedScale:
        return self

    def certified_bound(self) -> float:
        return self.bound


class Guess(PreparedScale):
    """Knows only an estimate."""

    lipschitz_estimate = 0.5


class ScaleBranch(Branch):
    """``g(x) = scale * x``, proved to contract by ``bound``, believed by the solver to by L."""

    def __init__(self, scale: float = 0.5, bound: float = 0.5, guess: bool = False) -> None:
        super().__init__()
        self.scale, self.bound, self.guess = scale, bound, guess
        self.lipschitz = 0.9
        self.event_shape = (2,)

    def prepare(self, context: Tensor | None = None) -> PreparedScale:
        kind = Guess if self.guess else PreparedScale
        return kind(self.scale, self.bound, self.lipschitz)


def standardise(*std: float) -> Standardise:
    part = Standardise(len(std))
    part.initialise_from(torch.tensor([std, [-s for s in std]]))
    return part


def random_flow(seed: int, lipschitz: float, dtype: torch.dtype = torch.float64) -> Flow:
    """A residual flow with wild weights between closed forms with wild scales."""
    torch.manual_seed(seed)
    flow = cf.flows.ResidualFlow(3, transforms=3, hidden_features=(16,), lipschitz=lipschitz)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    flow.initialise_from(5 * torch.randn(64, 3) * torch.tensor([0.1, 1.0, 10.0]))
    return flow.to(dtype).eval()


def chain_of(flow: Flow) -> Sequential:
    assert isinstance(flow.transform, Sequential)
    return flow.transform


# --- what a residual does to the data -----------------------------------------------------


@torch.no_grad()
def test_a_residual_in_any_block_moves_the_data_by_at_most_its_gain() -> None:
    """Residuals of norm 1e-4 to 10, in random directions and in the one that the Jacobian
    of the rest stretches most, in every block of six random flows. Mutant: a gain without
    the earlier blocks'."""
    closest = 0.0
    for seed in range(6):
        chain = chain_of(random_flow(seed, (0.5, 0.9, 0.98)[seed % 3]))
        certificate = cf.certify(chain)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 3, generator=generator, dtype=torch.float64)
        values = chain.intermediates(x)
        for i, block in enumerate(certificate.blocks):
            before = chain[: i + 1]
            jacobian = torch.func.jacrev(lambda v, part=before: part(v[None])[0][0])(x[0])
            assert isinstance(jacobian, Tensor)
            worst = torch.linalg.svd(jacobian).U[:, -1:].T  # the least stretch of f is f^-1's most
            random = torch.randn(6, 3, generator=generator, dtype=torch.float64)
            random = random / random.norm(dim=1, keepdim=True)
            for norm in (1e-4, 1.0, 10.0):
                moved = values[i] + norm * torch.cat([worst, -worst, random])
                error = (before.invert(moved) - x).norm(dim=1).max().item()
                claim = certificate.error_bound({block.name: norm})
                assert claim is not None
                assert error <= claim * (1 + 1e-9)
                closest = max(closest, error / claim)
    assert closest > 0.5  # the claim is not merely huge


def test_gains_are_attained_by_linear_maps() -> None:
    """g(x) = -x/2 doubles a residual; a standard deviation of 3 triples it, before and not
    behind. Mutant: gains multiplied from the latent side, or 1/(1 + L)."""
    chain = Sequential(
        standardise(3.0, 1.0), ResidualBlock(ScaleBranch(-0.5)), standardise(5.0, 5.0),
        ResidualBlock(ScaleBranch(-0.75, 0.75)),
    )  # fmt: skip
    certificate = cf.certify(chain)
    gains = [block.residual_gain for block in certificate.blocks]
    assert gains == pytest.approx([3, 6, 30, 120], rel=1e-7)
    assert certificate.lipschitz_inverse == pytest.approx(120, rel=1e-7)
    # One unit in the last place on the wider side of each block.
    eps = torch.finfo(torch.float32).eps
    assert certificate.rounding_gain == pytest.approx(eps * 159, rel=1e-7)
    # Every solver accepts (1 - .9) * 1e-6, for L = .9 is what it is told.
    assert certificate.residual_error == pytest.approx(1e-7 * (6 + 120), rel=1e-7)
    assert certificate.error_bound(1e-3) == pytest.approx(0.126, rel=1e-7)
    assert certificate.error_bound({"1.ResidualBlock": 1e-3}) == pytest.approx(6e-3, rel=1e-7)


def test_residuals_in_all_blocks_add_up() -> None:
    """Worst signs in every block of a linear chain: the sum is attained. Mutant: the largest
    term, or the root of the sum of squares."""
    parts = [
        standardise(2.0, 2.0),
        ResidualBlock(ScaleBranch(-0.5)),
        ResidualBlock(ScaleBranch(-0.5)),
    ]
    chain = Sequential(*parts).double()
    certificate = cf.certify(chain)
    z = torch.zeros(1, 2, dtype=torch.float64)
    for part in reversed(parts):
        z = part.invert(z + torch.tensor([[1e-3, 0.0]], dtype=torch.float64))
    names = {block.name: 1e-3 for block in certificate.blocks}
    assert z.norm().item() == pytest.approx(certificate.error_bound(names), rel=1e-6)
    assert z.norm().item() == pytest.approx(1e-3 * (2 + 4 + 8), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("solver", [Newton(), Picard(), Picard(atol=1e-2)])
@torch.no_grad()
def test_the_float32_inverse_stays_within_residuals_and_rounding(
    solver: Newton | Picard, scale: float
) -> None:
    """Against the same weights in float64, one block so that the claim is tight, then six
    flows. Mutants: the tolerance left out (Picard at 1e-2), the rounding left out."""
    single = Sequential(standardise(4.0, 4.0), ResidualBlock(ScaleBranch(-0.5), solver=solver))
    flows = [chain_of(random_flow(i, 0.6, torch.float32).using(solver=solver)) for i in range(6)]
    for chain in (single, *flows):
        certificate = cf.certify(chain)
        features = 2 if chain is single else 3
        generator = torch.Generator().manual_seed(0)
        z = scale * torch.randn(128, features, generator=generator)
        exact = copy.deepcopy(chain).double()
        if solver.atol:
            for part in exact:
                if isinstance(part, ResidualBlock):
                    part.solver = Newton()
        x = exact.invert(z.double())
        largest = max(v.norm(dim=1).max().item() for v in [x, *exact.intermediates(x)])
        error = (chain.invert(z).double() - x).norm(dim=1).max().item()
        claim = certificate.error_bound(scale=largest)
        assert claim is not None
        assert error <= claim
        without = certificate.error_bound(0.0, scale=largest)
        if chain is single and isinstance(solver, Picard):
            assert claim < 80 * error
            if solver.atol and scale == 1:
                assert without is not None
                assert error > without


def test_error_bound_refuses_what_it_cannot_mean() -> None:
    certificate = cf.certify(Sequential(ResidualBlock(ScaleBranch())))
    with pytest.raises(ValueError, match=r"no block 'x'; expected one of \['0.ResidualBlock'\]"):
        certificate.error_bound({"x": 1.0})
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="numbers from 0 on"):
            certificate.error_bound(bad)
        with pytest.raises(ValueError, match="numbers from 0 on"):
            certificate.error_bound(scale=bad)


def test_the_inverse_of_an_inverse_is_solved_and_says_so():
    """Mutant: the inner forward taken for a formula, its error for 0."""
    block = ResidualBlock(ScaleBranch(-0.5), solver=Picard(atol=1e-2))
    twice = Inverse(Inverse(block))
    z = torch.randn(4, 2, dtype=torch.float64)
    solution = twice.solve_inverse(z)
    assert torch.equal(solution.error_bound, block.solve_inverse(z).error_bound)
    assert (solution.error_bound > 0).all()
    assert cf.certify(twice) == cf.certify(block)


def test_inverse_of_a_block_is_solved_forward() -> None:
    """``Inverse(block).inverse`` is x + g(x), a formula. Mutant: the tolerance kept, or the
    two Lipschitz bounds not exchanged."""
    (block,) = cf.certify(Inverse(ResidualBlock(ScaleBranch(-0.5)))).blocks
    assert block.tolerance == 0
    assert block.inverse == pytest.approx(1.5)
    assert block.forward == pytest.approx(2.0)


def test_a_prior_hides_what_lies_behind_it() -> None:
    """An error of the half that stays moves the moments of the other one. Mutant: the prior
    listed last, so that the inner blocks had a gain."""
    flow = cf.flows.InvertibleResNet(
        shape=(1, 4, 4), num_bins=17, scales=2, transforms=1, hidden_channels=(4, 4)
    )
    certificate = cf.certify(flow)
    names = [block.name for block in certificate.blocks]
    prior = next(i for i, name in enumerate(names) if name.endswith(".prior"))
    inner = [i for i, name in enumerate(names) if ".inner." in name]
    assert inner
    assert prior < min(inner)
    gains = [block.residual_gain for block in certificate.blocks]
    assert all(gain is None for gain in gains[prior:])
    # Dequantisation rounds: errors are counted behind it, in data units.
    assert all(gain is not None for gain in gains[:prior])
    assert certificate.lipschitz_inverse is None
    assert certificate.residual_error is None
    assert any("prior" in note for note in certificate.notes)


def test_an_overflow_is_null_and_says_so() -> None:
    """A hundred blocks at L = .9999: Lip(f^-1) <= 1e400. Mutant: infinity in the JSON."""
    chain = Sequential(*(ResidualBlock(ScaleBranch(-0.9999, 0.9999)) for _ in range(100)))
    certificate = cf.certify(chain)
    assert certificate.certified
    assert certificate.lipschitz_forward is not None
    assert certificate.lipschitz_inverse is None
    assert certificate.blocks[76].residual_gain is not None
    assert certificate.blocks[77].residual_gain is None
    text = json.dumps(certificate.to_json(), allow_nan=False)
    assert "lipschitz_inverse exceeds the numbers of float64" in text
    assert "note: lipschitz_inverse exceeds" in str(certificate)


def test_products_and_sums_round_up() -> None:
    """Twenty factors against exact arithmetic. Mutant: products to nearest."""
    factors = [1 + 0.1 * i for i in range(1, 21)]
    stated = [BlockCertificate(f"{i}", inverse=f, tolerance=0.1) for i, f in enumerate(factors)]
    certificate = cf.certify(Sequential(*map(Stated, stated)))
    exact, total = Fraction(1), Fraction(0)
    for block, factor in zip(certificate.blocks, factors, strict=True):
        exact *= Fraction(factor)
        total += Fraction(0.1) * exact
        assert block.residual_gain is not None
        assert exact <= Fraction(block.residual_gain) <= exact * (1 + Fraction(1e-14))
    assert certificate.residual_error is not None
    assert total <= Fraction(certificate.residual_error) <= total * (1 + Fraction(1e-14))
    # And 1 / (1 - L) itself.
    for bound in (0.1, 0.3, 0.7, 0.9, 0.98):
        (block,) = cf.certify(ResidualBlock(ScaleBranch(bound, bound))).blocks
        assert block.inverse is not None
        assert Fraction(block.inverse) * (1 - Fraction(bound)) >= 1


# --- who is certified ---------------------------------------------------------------------


class Stated(Transform):
    """The identity with any certificate."""

    def __init__(self, block: BlockCertificate) -> None:
        super().__init__()
        self.block = block

    def certificates(self, name: str) -> list[BlockCertificate]:
        return [self.block]


@pytest.mark.parametrize("bound", [None, 1.0, 1.2, math.inf, math.nan, -0.1])
def test_no_bound_below_one_no_certificate(bound: float | None) -> None:
    """Mutants: ``not bound >= 1`` (NaN passes), ``bound <= 1``."""
    block = BlockCertificate("b", lipschitz=bound, method="product", contractive=True)
    certificate = cf.certify(Sequential(Stated(block)))
    assert not certificate.certified
    assert certificate.warning is not None
    assert certificate.warning.startswith("NOT certified: b (")
    assert "invertible" not in str(certificate)
    assert certificate.warning in str(certificate)
    json.dumps(certificate.to_json(), allow_nan=False)


def test_an_estimate_certifies_nothing() -> None:
    """The branch guesses .5 and proves nothing. Mutant: the estimate taken for the bound."""
    certificate = cf.certify(ResidualBlock(ScaleBranch(0.5, math.inf, guess=True)))
    (block,) = certificate.blocks
    assert not certificate.certified
    assert block.lipschitz is None
    assert block.estimate == 0.5
    assert block.method == "an estimate, not proved"
    assert block.inverse is block.residual_gain is None
    assert certificate.warning is not None
    assert "L about 0.5, an estimate and no proof" in certificate.warning
    written = certificate.to_json()
    assert written["blocks"][0]["lipschitz"] is None
    page = render_report(ReportContents(title="run", certificate=written))
    assert "1 block has no bound. 1 block has an estimate only." in page


def test_an_edited_bound_is_found_out() -> None:
    """Somebody asks a built branch for 1.5: neither a pass nor a crash of ``certify``. Mutant:
    the error let through, or the bound of the weights taken alone."""
    flow = cf.flows.ResidualFlow(2, transforms=2, hidden_features=(8,))
    assert cf.certify(flow).certified
    blocks = [part for part in chain_of(flow) if isinstance(part, ResidualBlock)]
    blocks[1].branch.lipschitz = 1.5
    certificate = cf.certify(flow)
    assert not certificate.certified
    assert [block.fails for block in certificate.blocks if block.contractive] == [False, True]
    assert certificate.warning is not None
    assert "asks for L = 1.5" in certificate.warning
    assert certificate.residual_error is None


def test_closed_forms_need_no_bound() -> None:
    certificate = cf.certify(Sequential(ActNorm(2), LULinear(2)))
    assert certificate.certified
    assert certificate.warning is None
    assert certificate.residual_error == 0


def test_the_json_keeps_its_contract() -> None:
    """The contract's keys and the new ones; every number is finite or null."""
    result = cf.certify(random_flow(0, 0.9)).to_json()
    assert list(result)[:5] == [
        "certified",
        "blocks",
        "lipschitz_forward",
        "lipschitz_inverse",
        "dtype",
    ]
    assert result["warning"] is None
    assert result["dtype"] == "float64"
    assert result["residual_error"] > 0
    for block in result["blocks"]:
        assert {"name", "lipschitz", "method", "residual_gain", "rounding_gain"} <= block.keys()
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_table_never_shows_a_bound_as_one() -> None:
    """L = 1 - 1e-9 is below 1 and shown so. Mutant: ``f"{L:.6f}"``, which prints 1.000000."""
    text = str(cf.certify(Sequential(ResidualBlock(ScaleBranch(0.5, 1 - 1e-9)))))
    row = text.splitlines()[1].split()
    assert float(row[1]) < 1
    assert float(row[1]) >= 1 - 1e-9
    assert "certified" in text
    # Nor any other bound as less than it is. Mutant: ``f"{bound:.4g}"``.
    for bound in (1.00011, 1234.4, 3.3331e9, 2.0):
        block = BlockCertificate("b", forward=bound, inverse=bound)
        shown = str(cf.certify(Sequential(Stated(block)))).splitlines()[1].split()[2:5]
        assert all(bound <= float(cell) <= 1.001 * bound for cell in shown)


# --- a flow that fails is never called invertible -----------------------------------------


def test_loading_names_the_blocks_that_fail(tmp_path: Path) -> None:
    """Mutant: a warning without names, or none."""
    parts = [ResidualBlock(ScaleBranch()), ResidualBlock(ScaleBranch(1.2, 1.2))]
    flow = Flow(Sequential(*parts), event_shape=(2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "contraflow.registry._TYPES",
            {**cf.registry._TYPES, "ScaleBranch": ScaleBranch},  # pyright: ignore
        )
        flow.save(tmp_path / "bad.safetensors")
        with pytest.warns(UserWarning, match=r"NOT certified: 1\.ResidualBlock \(L <= 1\.2, "):
            cf.load(tmp_path / "bad.safetensors")
        Flow(Sequential(parts[0]), event_shape=(2,)).save(tmp_path / "good.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cf.load(tmp_path / "good.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on two columns."""
    folder = tmp_path_factory.mktemp("runs")
    rows = np.random.default_rng(0).normal(size=(300, 2))
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(folder / "t.csv", index=False)
    words = ["train", "table", "--data.path", str(folder / "t.csv"), "--out", str(folder)]
    tiny = [
        "--name", "run", "--model.transforms", "1", "--model.hidden_features", "[4]",
        "--optimisation.batch_size", "100", "--trainer.max_steps", "3",
    ]  # fmt: skip
    assert main([*words, *tiny]) == 0
    written = json.loads((folder / "run" / "certificate.json").read_text())
    assert written["residual_error"] >= 0
    assert written["rounding_gain"] > 0
    return folder / "run"


def _commands(run: Path, out: Path) -> dict[str, list[str]]:
    return {
        "certify": ["certify", str(run), "--json"],
        "evaluate": ["evaluate", str(run), "--json"],
        "sample": ["sample", str(run), "-n", "3", "--out", str(out / "s.csv"), "--json"],
        "score": [
            "score", str(run), str(run.parent / "t.csv"), "--out", str(out / "l.csv"), "--json",
        ],
    }  # fmt: skip


@pytest.mark.filterwarnings("default")  # the commands print it
@pytest.mark.parametrize("name", ["certify", "evaluate", "sample", "score"])
def test_every_command_says_that_a_flow_fails(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On standard error and in the JSON, with the block's name; and nothing of a flow that
    holds. Mutant: any one command without it."""
    words = _commands(run, tmp_path)[name]
    assert main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["certified"] is True
    assert result["warning"] is None
    assert "NOT certified" not in captured.err

    monkeypatch.setattr("contraflow.lipschitz.PreparedChain.certified_bound", lambda self: 1.2)
    assert main(words) == (1 if name == "certify" else 0)
    captured = capsys.readouterr()
    bad: dict[str, Any] = json.loads(captured.out)
    assert bad["certified"] is False
    assert "ResidualBlock (L <= 1.2, expected below 1)" in bad["warning"]
    assert bad.get("kind") == result.get("kind")
    assert captured.err.count("NOT certified") == 1
    assert "nor that its likelihood is that of a density" in captured.err
    assert "invertible" not in captured.out + captured.err


@pytest.mark.filterwarnings("default")
def test_the_report_of_a_flow_that_fails(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red, at the likelihood and the round trip too, without the word invertible and without
    proved error bounds (``test_report`` has the page of a flow that holds). Mutant: that page
    with another headline."""
    bad = tmp_path / "bad.html"
    monkeypatch.setattr("contraflow.lipschitz.PreparedChain.certified_bound", lambda self: 1.2)
    (run / "evaluation.json").unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(bad)]) == 0
    assert "NOT certified" in capsys.readouterr().err
    after = bad.read_text()
    assert "invertible" not in after
    assert "proved, in data units" not in after
    assert "not proved to be a density" in after
    assert "of its probability inside" not in after
    assert after.count('class="verdict bad"') == 3  # likelihood, reconstruction, certificate
    assert after.count("of these rows only: nothing is proved") == 2


def test_a_comparison_names_the_runs_that_fail() -> None:
    """Mutant: only the column says so."""
    bad = cf.certify(ResidualBlock(ScaleBranch(1.2, 1.2))).to_json()
    good = cf.certify(ResidualBlock(ScaleBranch())).to_json()
    both = [ReportContents(title=t, certificate=c) for t, c in (("wide", bad), ("narrow", good))]
    page = render_comparison(both)
    assert "NOT certified: wide. Nothing proves that these flows have inverses" in page
    assert "NOT certified:" not in render_comparison([both[1], both[1]])
