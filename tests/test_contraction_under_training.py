"""A user's plain loop that only calls ``optimizer.step()`` stays contractive.

Nobody tells the flow that its weights changed: not the fused optimisers, ``.data`` writes or
weight swaps that leave the tensors' version counters alone, nor a compiled graph. The norm
must be a function of the weights. The judge is the singular value decomposition, in float64,
of the prepared layers and of dense Jacobians; never one of our own bounds.

The task wants slopes that the bound forbids (data a tenth as wide as the base), so that every
run ends at the bound: ``assert_contractive`` also checks that it is used.
"""

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import contraflow as cf
from contraflow.lipschitz import (
    ConvBranch,
    LipschitzConv2d,
    LipschitzLinear,
    MLPBranch,
    gram_bound,
)
from contraflow.lipschitz.branches import ChainBranch
from contraflow.lipschitz.layers import PreparedLinear
from contraflow.transforms import Reshape, ResidualBlock

LIPSCHITZ = 0.9
STEPS = 1000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_flow(features: int = 2, blocks: int = 1) -> cf.Flow:
    torch.manual_seed(0)
    parts = [ResidualBlock(MLPBranch(features, (32,), lipschitz=LIPSCHITZ)) for _ in range(blocks)]
    return cf.Flow(cf.Sequential(*parts), event_shape=(features,))


def batch(features: int = 2, rows: int = 32) -> Tensor:
    return 0.1 * torch.randn(rows, features, generator=generator(1))


def branches(flow: nn.Module) -> Iterator[ChainBranch]:
    found = [module for module in flow.modules() if isinstance(module, ChainBranch)]
    assert found
    yield from found


@torch.no_grad()
def layer_norms(branch: ChainBranch) -> list[tuple[float, float]]:
    """Return (true norm, norm asked for) of every prepared layer, by SVD in float64."""
    norms = []
    for layer, map_ in zip(branch.layers, branch.prepare().maps, strict=True):
        assert isinstance(layer, LipschitzLinear | LipschitzConv2d)
        matrix = map_.weight.double()
        if isinstance(layer, LipschitzConv2d):
            size = math.prod((layer.in_channels, *layer.size))
            basis = torch.eye(size, dtype=torch.float64).reshape(size, -1, *layer.size)
            padding = (layer.kernel_size[0] // 2, layer.kernel_size[1] // 2)
            matrix = nn.functional.conv2d(basis, matrix, padding=padding).reshape(size, -1)
        norms.append((torch.linalg.matrix_norm(matrix, 2).item(), layer.max_norm))
    return norms


def jacobian_norm(branch: ChainBranch, points: int = 5) -> float:
    """Return the largest singular value of dense Jacobians at random points, by autograd."""
    prepared = branch.prepare()
    top = 0.0
    for seed in range(points):
        scale = (0.0, 0.1, 1.0, 10.0, 100.0)[seed % 5]
        x = scale * torch.randn(1, *branch.event_shape, generator=generator(seed))
        matrix = torch.autograd.functional.jacobian(prepared, x)
        assert isinstance(matrix, Tensor)
        size = x.numel()
        matrix = matrix.reshape(size, size).double()
        top = max(top, torch.linalg.matrix_norm(matrix, 2).item())
    return top


def assert_contractive(flow: nn.Module, *, used: bool = False) -> None:
    for branch in branches(flow):
        norms = layer_norms(branch)
        for norm, asked in norms:
            assert norm <= asked
        assert math.prod(norm for norm, _ in norms) <= LIPSCHITZ
        assert jacobian_norm(branch) <= LIPSCHITZ + 1e-6  # the Jacobian itself is float32
        if used:
            assert all(norm > 0.95 * asked for norm, asked in norms)


def train(
    flow: cf.Flow,
    optimizer: torch.optim.Optimizer,
    steps: int = STEPS,
    loss_of: Callable[[Tensor], Tensor] | None = None,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """The plain loop of a user who has read nothing."""
    x = batch(flow.event_shape[0])
    for step in range(steps):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean() if loss_of is None else loss_of(x)
        loss.backward()
        optimizer.step()
        after(step)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1.0),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1.0, fused=True),
    # The loss' curvature in the last bias is 1: plain SGD itself would diverge from lr = 3.8.
    "sgd": lambda p: torch.optim.SGD(p, lr=3.0, momentum=0.9),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=3.0, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_thousand_steps(name: str):
    """Mutants: a norm cached at construction, or by version counter (``StaleLinear`` below)."""
    flow = small_flow()
    start = [p.detach().clone() for p in flow.parameters()]

    def look(step: int) -> None:
        if step < 20 or step % 100 == 0:
            assert_contractive(flow)

    train(flow, OPTIMIZERS[name](flow.parameters()), after=look)
    assert_contractive(flow, used=True)
    assert cf.certify(flow).certified
    moved = [(p - q).norm() for p, q in zip(flow.parameters(), start, strict=True)]
    assert max(moved) > 10  # the learning rate was large indeed


@pytest.mark.parametrize("fused", [False, True])
def test_eight_dimensions_and_two_blocks(fused: bool):
    flow = small_flow(features=8, blocks=2)
    train(flow, torch.optim.Adam(flow.parameters(), lr=0.5, fused=fused), steps=200)
    assert_contractive(flow, used=True)


def test_convolutional_branch():
    """Mutant: the norm of the kernel as a matrix in place of the image's operator."""
    torch.manual_seed(0)
    shape = (2, 4, 3)
    block = ResidualBlock(ConvBranch(shape, (6, 6), lipschitz=LIPSCHITZ))
    flow = cf.Flow(cf.Sequential(block, Reshape(shape, (24,))), event_shape=shape)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.5, fused=True)
    x = 0.1 * torch.randn(16, *shape, generator=generator())
    for step in range(60):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
        if step % 20 == 0:
            assert_contractive(flow)
    assert_contractive(flow)


def test_ema_swap():
    """Weights averaged by foreach kernels and swapped in, then out, then trained on."""
    flow = small_flow()
    average = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1.0, fused=True)
    train(flow, optimizer, steps=60, after=lambda step: average.update_parameters(flow))
    assert_contractive(average)
    raw = copy.deepcopy(flow.state_dict())
    for mine, theirs in zip(flow.parameters(), average.parameters(), strict=True):
        mine.data, theirs.data = theirs.data, mine.data  # the usual swap
    assert_contractive(flow)
    assert_contractive(average)
    x = batch()
    expected = copy.deepcopy(flow)
    assert torch.equal(flow.log_prob(x), expected.log_prob(x))
    flow.load_state_dict(raw)
    assert_contractive(flow)
    train(flow, optimizer, steps=20)
    assert_contractive(flow)


@torch.no_grad()
def test_writes_that_no_version_counter_sees():
    """``.data`` writes of every kind, NumPy views and ``load_state_dict``."""
    flow = small_flow()
    x = batch()
    flow.log_prob(x)  # whatever could be cached, is
    fresh = small_flow()
    for write in ("mul", "view", "swap", "numpy", "load", "vector"):
        for mine, original in zip(flow.parameters(), fresh.parameters(), strict=True):
            big = original.data * 100
            if write == "mul":
                mine.data.copy_(original.data)
                mine.data.mul_(100)
            elif write == "view":
                mine.data.view(-1)[:] = big.view(-1)
            elif write == "swap":
                mine.data = big
            elif write == "numpy":
                mine.data.numpy()[...] = big.numpy()
        if write == "load":
            state = {name: tensor * 100 for name, tensor in fresh.state_dict().items()}
            flow.load_state_dict(state)
            flow.load_state_dict(state, assign=True)
        if write == "vector":
            big = nn.utils.parameters_to_vector(fresh.parameters()) * 100
            nn.utils.vector_to_parameters(big, flow.parameters())
        assert_contractive(flow, used=True)
        assert torch.equal(flow.log_prob(x), copy.deepcopy(flow).log_prob(x))
        for mine, original in zip(flow.parameters(), fresh.parameters(), strict=True):
            mine.data.copy_(original.data)
        assert torch.equal(flow.log_prob(x), fresh.log_prob(x))


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e20, 1e30])
def test_absurd_weights(scale: float):
    """Where an optimiser may land. Mutants: squares that overflow, a float32 margin that the
    logarithm of a large scale eats up."""
    flow = small_flow(features=8)
    for parameter in flow.parameters():
        parameter.data.mul_(scale)
    assert_contractive(flow, used=scale > 1)


# torch 2.13's inductor warns of itself when it lowers ``Tensor.diagonal``.
@pytest.mark.filterwarnings("ignore:.torch._prims_common.check. is deprecated:FutureWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_compiled_loss(fused: bool):
    """``torch.compile(fullgraph=True)`` of the loss, weights changing under the graph.

    Mutant: a norm that the graph has folded into a constant.
    """
    flow, eager = small_flow(), small_flow()

    @torch.compile(fullgraph=True)
    def loss_of(x: Tensor) -> Tensor:
        return -flow.log_prob(x).mean()

    optimizer = torch.optim.Adam(flow.parameters(), lr=1.0, fused=fused)
    train(flow, optimizer, steps=200 if fused else 50, loss_of=loss_of)
    assert_contractive(flow, used=fused)
    # And the graph sees the weights as they are now.
    for write in (lambda p: p.data.mul_(3.0), lambda p: p.data.zero_()):
        for parameter in flow.parameters():
            write(parameter)
        eager.load_state_dict(flow.state_dict())
        x = batch()
        torch.testing.assert_close(loss_of(x), -eager.log_prob(x).mean(), atol=1e-5, rtol=1e-5)


class StaleLinear(LipschitzLinear):
    """The mutant: a norm cached by version counter, as hooks and parametrisations do."""

    def prepare(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, max_norm: float | None = None
    ) -> PreparedLinear:
        version = self.weight._version
        if getattr(self, "_seen", None) != version:
            self._seen, self._norm = version, gram_bound(self.weight).detach()
        scale = self.max_norm * (1 - 1e-5) / self._norm.clamp_min(self.max_norm)
        return PreparedLinear(self.weight * scale, self.bias)


def test_the_judge_rejects_a_cached_norm():
    flow = small_flow()
    for module in flow.modules():
        if type(module) is LipschitzLinear:
            module.__class__ = StaleLinear
    assert_contractive(flow)
    for parameter in flow.parameters():
        parameter.data.mul_(100)
    with pytest.raises(AssertionError):
        assert_contractive(flow)
