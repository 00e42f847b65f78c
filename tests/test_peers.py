"""Defects found in published code (peers.md): for each that touches what exists here, a test.

The table's lines, in its order; where another file tests the matter at length, the test here
is the shortest that the peer's code would fail, and names that file.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import contraflow as cf
from contraflow.errors import ConvergenceError, DtypeError
from contraflow.jacobian import linearize
from contraflow.kinds import Kind
from contraflow.lipschitz import ConvBranch, LipschitzConv2d, LipschitzLinear, MLPBranch
from contraflow.logdet import Exact, NestedRoulette, PowerSeries, Roulette
from contraflow.solvers import Picard, solve
from contraflow.transforms import ResidualBlock, UniformDequantise
from contraflow.transforms.residual import default_eval_log_det, default_log_det


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def block(lipschitz: float = 0.9, features: int = 3, context: int = 0) -> ResidualBlock:
    """A float64 block whose weights are large enough to meet the bound."""
    torch.manual_seed(0)
    branch = MLPBranch(features, (16, 16), lipschitz=lipschitz, context=context)
    for parameter in branch.parameters():
        parameter.data.mul_(3)
    return ResidualBlock(branch, solver=Picard()).double()


FLOWS: dict[str, Callable[[], cf.Flow]] = {
    "residual": lambda: cf.flows.ResidualFlow(3, transforms=2, hidden_features=(8,)),
    "i-resnet": lambda: cf.flows.InvertibleResNet(3, transforms=2, hidden_features=(8,)),
    "realnvp": lambda: cf.flows.RealNVP(3, transforms=2, hidden_features=(8,)),
    "maf": lambda: cf.flows.MAF(3, transforms=2, hidden_features=(8,)),
    "image": lambda: cf.flows.InvertibleResNet(
        shape=(1, 4, 4), num_bins=5, scales=2, transforms=1, hidden_channels=(4, 4)
    ),
}


def flow_of(name: str) -> cf.Flow:
    """A flow whose parameters have left their starting values."""
    torch.manual_seed(0)
    flow = FLOWS[name]()
    for i, parameter in enumerate(flow.parameters()):
        parameter.data.add_(normal(*parameter.shape, seed=i, dtype=parameter.dtype), alpha=0.2)
    return flow


# --- residual-flows, normflows --------------------------------------------------------------


@pytest.mark.parametrize(
    "log_det", [Roulette(), NestedRoulette(), PowerSeries(terms=8), Exact()], ids=str
)
def test_residual_flows_weighted_gradients(log_det: cf.logdet.LogDet):
    """The first sample's cotangent was used for all (relative error .48): the gradient of a
    weighted sum must be the weighted sum of the rows' gradients."""
    residual = block()
    residual.log_det = log_det
    x, weights = normal(5, 3), torch.tensor([1.0, 0.0, -2.0, 10.0, 0.3], dtype=torch.float64)
    noise = residual.draw(x.shape, x, generator())
    parameters = list(residual.parameters())
    _, ladj = residual(x, noise=noise)
    found = torch.autograd.grad((weights * ladj).sum(), parameters, allow_unused=True)
    total = [torch.zeros_like(p) for p in parameters]
    for i, weight in enumerate(weights):
        row = residual(x, noise=noise)[1][i]
        for part, g in zip(
            total, torch.autograd.grad(row, parameters, allow_unused=True), strict=True
        ):
            part += 0 if g is None else weight * g
    for a, b in zip(found, total, strict=True):
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, atol=1e-11, rtol=0)


def test_residual_flows_inverse_tolerance_is_not_squared():
    """Stopping on the squared step gave errors of 1e-3 to .9 (see test_solvers)."""
    residual = block(lipschitz=0.99)
    residual.solver = Picard(atol=1e-5)
    x = 3 * normal(200, 3)
    z, _ = residual(x)
    assert (residual.inverse(z)[0] - x).norm(dim=1).max() <= 1e-5


def test_residual_flows_inverse_is_not_silent_after_1000_steps():
    """A map that needs 2,000 steps gets them; one that cannot converge raises."""
    z = torch.tensor([[1.0]], dtype=torch.float64)
    solution = solve(lambda x: z + 0.995 * x, z, Picard(atol=1e-2), lipschitz=0.995)
    assert int(solution.steps) > 1500
    assert abs(solution.value.item() - 200) <= 1e-2
    with pytest.raises(ConvergenceError):
        solve(lambda x: z - x, z, Picard(), lipschitz=0.9).check("two-cycle")


@pytest.mark.parametrize("size", [(8, 8), (4, 6)])
def test_residual_flows_layers_of_98_percent(size: tuple[int, int]):
    """Layers of c = .98 had true norms up to 1.03 (see test_lipschitz)."""
    torch.manual_seed(0)
    layer = LipschitzConv2d(3, 4, 3, size, max_norm=0.98)
    layer.weight.data.mul_(10)
    columns = 3 * math.prod(size)
    basis = torch.eye(columns, dtype=torch.float64).reshape(columns, 3, *size)
    weight = layer.prepare().weight.detach().double()
    matrix = torch.nn.functional.conv2d(basis, weight, padding=1).reshape(columns, -1)
    norm = torch.linalg.matrix_norm(matrix, 2).item()
    assert 0.8 < norm <= 0.98


@pytest.mark.parametrize("law", [Roulette(), NestedRoulette()], ids=str)
def test_residual_flows_roulette_of_infinite_variance(law: Roulette | NestedRoulette):
    """Terms falling like L^k need w_k above L^2k, and L^(4/3)k for the fourth moment: the
    defaults must satisfy both for every L (see test_logdet for the sums)."""
    for lipschitz in (0.5, 0.9, 0.99, 0.9999):
        survival = law.survival(lipschitz, 500)
        k = torch.arange(1, 501, dtype=torch.float64)
        ratio = survival / lipschitz ** (4 / 3 * k)
        assert ratio.min() >= law.defence * 0.99
        assert ratio[-1] >= ratio[250]  # and it widens: the sums converge


def test_residual_flows_one_length_for_the_whole_batch():
    """Rows draw their own lengths (see test_logdet for the variance)."""
    for law in (Roulette(), NestedRoulette()):
        noise = law.draw(torch.Size((500, 2)), normal(1), lipschitz=0.98, generator=generator())
        counts = noise.terms[0].counts
        assert counts[0] == 500
        assert len(set(counts)) > 5


def test_residual_flows_weight_decay_is_not_a_no_op():
    """torch's own AdamW decays our weights; and shrunk below the bound, they act shrunk."""
    layer = LipschitzLinear(4, 4, max_norm=0.9)
    layer.weight.data.mul_(1e-3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=1.0)
    before = layer.prepare().weight.detach().norm()
    for _ in range(10):
        optimizer.zero_grad()
        (0 * layer.prepare().weight.sum()).backward()
        optimizer.step()
    torch.testing.assert_close(layer.prepare().weight.norm() / before, torch.tensor(0.9**10))


@pytest.mark.parametrize("num_bins", [2, 17, 32, 256, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residual_flows_bins_do_not_overlap(num_bins: int, dtype: torch.dtype):
    """5-bit bins overlapped. Here the largest noise that a generator can return must not
    round up into the next level: 255 + (1 - 2^-24) is 256 in float32."""
    dequantise = UniformDequantise(num_bins).to(dtype)
    x = torch.arange(num_bins, dtype=dtype)[:, None]
    largest = 1 - torch.finfo(dtype).eps / 2
    for u in (0.0, 0.5, largest):
        z, _ = dequantise(x, noise=torch.full_like(x, u))
        assert (z < x + 1).all()
        assert (z >= x).all()
        assert torch.equal(dequantise.inverse(z)[0], x)
    # And they fill the range: mean 1/2, |z| < 5 over 10,000 draws.
    z, _ = dequantise(torch.zeros(10_000, 1, dtype=dtype))
    assert abs(z.mean().item() - 0.5) * math.sqrt(12 * 10_000) < 5


# --- normflows ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_normflows_one_dtype_throughout(name: str):
    """A float64 parameter sat in a float32 module."""
    for dtype in (torch.float32, torch.float64):
        flow = flow_of(name).to(dtype)
        tensors = [*flow.parameters(), *flow.buffers()]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}


@pytest.mark.parametrize("name", FLOWS)
def test_normflows_float64_in_float64_out(name: str):
    """float64 input returned float32; here it is float64, or an error that says what to do."""
    flow = flow_of(name).eval()
    x = torch.ones(4, *flow.event_shape, dtype=torch.float64)
    with pytest.raises(DtypeError, match=r"flow\.double\(\)"):
        flow.log_prob(x)
    flow = flow.double()
    single = flow_of(name).eval()
    torch.manual_seed(0)
    log_prob = flow.log_prob(x)
    assert log_prob.dtype == flow.sample(2).dtype == torch.float64
    z, ladj = flow.transform(x)
    assert z.dtype == ladj.dtype == torch.float64
    torch.manual_seed(0)
    assert single.log_prob(x.float()).dtype == torch.float32
    # And it is computed in float64: deterministic flows agree with float32 only roughly.
    if not flow.transform.stochastic or name != "image":
        gap = (log_prob - single.log_prob(x.float())).abs().max()
        assert 0 < gap < 1e-3


@pytest.mark.parametrize("name", FLOWS)
def test_normflows_global_generators_are_left_alone(name: str):
    """Training drew from NumPy's (and Python's) global generator: seeding torch alone must
    repeat a run, and nothing else may be touched."""
    flow = flow_of(name).train()
    x = torch.ones(4, *flow.event_shape)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(1)
    first = flow.log_prob(x), flow.sample(3)
    torch.manual_seed(1)
    second = flow.log_prob(x), flow.sample(3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, after, strict=True))
    assert python_state == random.getstate()
    torch_state = torch.get_rng_state()
    flow.log_prob(x, generator=generator())
    flow.sample(3, generator=generator())
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("name", FLOWS)
def test_normflows_random_likelihoods_have_an_error_bar(name: str):
    """Evaluation was random and did not say so: a flow that calls itself deterministic is,
    and one that does not gets a standard error which covers the spread."""
    flow = flow_of(name).eval()
    x = torch.ones(4, *flow.event_shape)
    with torch.no_grad():
        draws = torch.stack([flow.log_prob(x) for _ in range(40)])
    varies = bool((draws.std(0) > 0).any())
    assert varies == flow.likelihood.stochastic
    wanted = 0.4 if name == "image" else 0.05  # nats; a draw of the image's has 3.3
    estimate = cf.estimate_log_prob(flow, x, stderr=wanted, generator=generator())
    assert estimate.kind == flow.kind
    assert bool((estimate.stderr > 0).all()) == varies
    assert (estimate.stderr <= wanted).all()
    # 6 standard errors of the difference: false alarm 2e-9 a row, if nearly normal.
    error = (estimate.stderr**2 + draws.double().var(0) / 40).sqrt()
    assert ((estimate.value - draws.double().mean(0)).abs() <= 6 * error + 1e-5).all()


# --- FrEIA ----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("log_det", [Exact(), Roulette(), NestedRoulette()], ids=str)
def test_freia_log_det_carries_gradient(log_det: cf.logdet.LogDet, direction: str):
    """i-ResNet's had none. Every weight that acts, in both directions, in x too; the last
    bias cannot change J forwards, but moves the root backwards."""
    residual = block()
    residual.log_det = log_det
    x = normal(6, 3).requires_grad_()
    _, ladj = residual(x) if direction == "forward" else residual.inverse(x)
    named = {"x": x, **dict(residual.named_parameters())}
    gradients = torch.autograd.grad(ladj.sum(), list(named.values()), allow_unused=True)
    silent = {
        name
        for name, g in zip(named, gradients, strict=True)
        if g is None or not bool((g != 0).any())
    }
    assert silent == ({"branch.layers.2.bias"} if direction == "forward" else set())


def test_freia_reverse_log_det_is_taken_at_the_root():
    """It was taken at z. -ln det(I + J(x)), by dense algebra at the root."""
    residual = block()
    z = 2 * normal(50, 3)
    x, ladj = residual.inverse(z)
    _, jacobian = linearize(residual.branch.prepare(), x.detach())
    identity = torch.eye(3, dtype=torch.float64)
    expected = -torch.linalg.slogdet(identity + jacobian.dense()).logabsdet
    torch.testing.assert_close(ladj, expected, atol=1e-10, rtol=0)
    _, elsewhere = linearize(residual.branch.prepare(), z)
    wrong = -torch.linalg.slogdet(identity + elsewhere.dense()).logabsdet
    assert (wrong - expected).abs().max() > 0.01  # the test can tell


def test_freia_no_correction_to_call_by_hand():
    """Weights grow, nobody calls anything (see test_contraction_under_training)."""
    flow = flow_of("residual")
    for parameter in flow.parameters():
        parameter.data.mul_(50)
    assert cf.certify(flow).certified


# --- torchflows -----------------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", [0.1, 0.5, 0.9, 0.99])
def test_torchflows_target_is_kept(lipschitz: float):
    """The Lipschitz target was ignored. Vector and image branches, large weights."""
    torch.manual_seed(0)
    for branch in (
        MLPBranch(3, (16,), lipschitz=lipschitz),
        ConvBranch((2, 4, 4), (6, 6), lipschitz=lipschitz),
    ):
        for parameter in branch.parameters():
            parameter.data.mul_(100)
        certified = branch.prepare().certified_bound()
        assert 0.8 * lipschitz < certified <= lipschitz


def test_torchflows_steps_are_not_fixed():
    """25 steps for every map: here as many as the tolerance needs, no more."""
    z = torch.ones(1, 1, dtype=torch.float64)
    steps = {}
    for lipschitz in (0.1, 0.5, 0.9, 0.99):
        solution = solve(
            lambda x, ratio=lipschitz: z - ratio * x, z, Picard(atol=1e-9), lipschitz=lipschitz
        )
        assert abs(solution.value.item() - 1 / (1 + lipschitz)) <= 1e-9
        steps[lipschitz] = int(solution.steps)
    assert steps[0.1] < 15 < 25 < steps[0.5] + 10 < steps[0.9] < steps[0.99]


@pytest.mark.parametrize("name", ["residual", "i-resnet", "realnvp", "maf"])
def test_torchflows_sign_of_the_inverse_log_det(name: str):
    """ladj of the inverse at f(x) is minus ladj at x, and neither is zero."""
    flow = flow_of(name).double().eval()
    x = normal(20, 3)
    z, ladj = flow.transform(x)
    back, inverse = flow.transform.inverse(z)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(inverse, -ladj, atol=1e-8, rtol=0)
    assert ladj.abs().min() > 1e-3


# --- implicit-normalizing-flows -------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", [0.9, 0.99])
def test_implicit_flows_backward_solve(lipschitz: float):
    """A wrong initial sign left residuals of 1e-3 for L >= .9: (I + J)^T y must be the incoming
    gradient to 1e-10 (see test_solvers for unrolled iterations and failures)."""
    residual = block(lipschitz)
    z, incoming = (2 * normal(20, 3)).requires_grad_(), normal(20, 3, seed=1)
    x, _ = residual.inverse(z)
    (y,) = torch.autograd.grad(x, z, incoming)
    _, jacobian = linearize(residual.branch.prepare(), x.detach())
    assert (y + jacobian.rmv(y) - incoming).abs().max() < 1e-10


def test_implicit_flows_no_copies_of_the_networks():
    """Deep copies doubled the weights: the inverse and a view must not add any."""
    residual = block()
    flow = cf.Flow(cf.Sequential(residual), event_shape=(3,))
    expected = 3 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3 + 2  # two LipSwish slopes
    z = normal(4, 3).requires_grad_()
    sum(part.sum() for part in residual.inverse(z)).backward()  # pyright: ignore
    view = flow.using(solver=Picard())
    for module in (residual, flow, view, cf.Inverse(residual)):
        assert sum(p.numel() for p in module.parameters()) == expected
    pointers = {p.data_ptr() for p in flow.parameters()}
    assert pointers == {p.data_ptr() for p in view.parameters()}


# --- zuko -----------------------------------------------------------------------------------


def test_zuko_import_changes_no_validation():
    """Argument validation of torch.distributions stays on, in a fresh interpreter (see
    test_flow for everything else that an import could change)."""
    code = "import torch, contraflow; torch.distributions.Normal(0.0, -1.0)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "ValueError: Expected parameter scale" in done.stderr


@pytest.mark.parametrize("name", ["residual", "i-resnet", "realnvp", "maf"])
def test_zuko_inverse_beyond_ten(name: str):
    """No inverse beyond +-10, unsaid: ours has no such edge, or raises."""
    flow = flow_of(name).double().eval()
    for scale in (11.0, 100.0, 1e4):
        x = scale * normal(20, 3).sign() * (1 + normal(20, 3, seed=1).abs())
        z, _ = flow.transform(x)
        back, _ = flow.transform.inverse(z)
        torch.testing.assert_close(back, x, atol=0, rtol=1e-7)


# --- nflows ---------------------------------------------------------------------------------


def test_nflows_sample_shape_in_batches():
    """sample(10, context, batch_size=5) had a wrong shape: chunks must not show."""
    flow = cf.flows.MAF(3, context=2, transforms=1, hidden_features=(4,))
    flow._chunk_rows = lambda: 5  # pyright: ignore[reportAttributeAccessIssue]
    assert flow.sample(10, torch.zeros(4, 2)).shape == (10, 4, 3)
    assert flow.sample((2, 10), torch.zeros(4, 2)).shape == (2, 10, 4, 3)
    with torch.no_grad():
        assert flow.log_prob(torch.zeros(10, 4, 3), torch.zeros(4, 2)).shape == (10, 4)


# --- what none of them has ------------------------------------------------------------------


def test_defaults_are_exact_where_affordable():
    assert default_log_det(2) == default_eval_log_det(2) == Exact()
    assert default_eval_log_det(64) == Exact()
    for large in (default_log_det(3072), default_eval_log_det(3072)):
        assert large.likelihood(3072, 0.98).kind in (Kind.UNBIASED, Kind.TRUNCATED)


@pytest.mark.parametrize("name", ["residual", "i-resnet"])
def test_conditional_residual_flows_are_certified(name: str):
    """Conditional residual flows with a certificate that holds for any context."""
    classes = {"residual": cf.flows.ResidualFlow, "i-resnet": cf.flows.InvertibleResNet}
    flow = classes[name](2, context=3, transforms=2, hidden_features=(8,)).double()
    certificate = cf.certify(flow)
    assert certificate.certified
    x, context = normal(50, 2), 100 * normal(50, 3, seed=1)
    z, _ = flow.transform(x, context)
    back, _ = flow.transform.inverse(z, context)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
