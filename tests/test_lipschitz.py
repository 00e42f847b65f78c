"""Bounds that bound: activations, matrices, convolutions, branches.

References are dense, in float64: a singular value decomposition of the matrix of the layer.
``*_bound`` may round in float32 by up to ``MARGIN``; ``certified_*`` may not be below at all.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contraflow.errors import ConfigurationError, NotContractiveError
from contraflow.lipschitz import (
    ACTIVATIONS,
    AOL,
    Branch,
    ConvBranch,
    LipschitzConv2d,
    LipschitzLinear,
    MLPBranch,
    SpectralNorm,
    activation,
    certified_conv_norm,
    certified_norm,
    conv_bound,
    gram_bound,
)
from contraflow.lipschitz.convolutions import FULL_GRID_CHANNELS
from contraflow.lipschitz.norms import MARGIN
from contraflow.solvers import Picard, solve
from contraflow.transforms import ResidualBlock

SCALES = (1e-30, 1e-20, 1e-3, 1.0, 1e3, 1e10, 1e20, 1e30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- activations --------------------------------------------------------------------------


def dense_grid(dtype: torch.dtype) -> Tensor:
    """Return [-30, 30] in steps of 1e-3, and both tails up to 1e30."""
    tails = torch.logspace(1, 30, 300, dtype=torch.float64)
    grid = torch.cat([torch.arange(-30_000, 30_001, dtype=torch.float64) / 1000, tails, -tails])
    return grid.to(dtype)


def gains(name: str, x: Tensor, beta: float | None = None) -> tuple[Tensor, Tensor]:
    """Return values and gains ``sqrt(sum_e slope_e^2)`` at the points ``[N]``."""
    act = activation(name).to(x.dtype)
    for parameter in act.parameters():
        parameter.data.fill_(parameter.item() if beta is None else beta)
    value, slope = act.value_and_slope(x[:, None])
    assert value.shape == slope.shape == (len(x), act.expansion)
    return value.detach(), slope.detach().norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain_is_at_most_one_and_everything_is_finite(name: str, dtype: torch.dtype):
    """Mutants: LipSwish without /1.1, CPila without /1.06, inf * 0 in a tail."""
    value, gain = gains(name, dense_grid(dtype))
    assert value.isfinite().all()
    assert gain.isfinite().all()
    assert gain.max() <= 1 + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("beta", [-20.0, -3.0, 0.0, 3.0, 30.0])
@pytest.mark.parametrize("name", ["lipswish", "clipswish"])
def test_gain_is_at_most_one_for_every_beta(name: str, beta: float):
    """Mutant: a bound that holds at the starting beta only."""
    _, gain = gains(name, dense_grid(torch.float64), beta)
    assert gain.max() <= 1 + 1e-12


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("elu", 0.0, 1.0),
        ("tanh", 0.0, 1.0),
        ("softplus", 0.0, 1.0),
        ("sine", 0.0, 1.0),
        ("lipswish", 0.0, 0.99986),
        ("clipswish", 0.640, 1.000),
        ("cpila", 0.943, 0.999),
    ],
)
def test_gains_are_the_published_ones(name: str, low: float, high: float):
    """residual.md's figures. Mutant: a scale that is safe but wastes the slope (/1.2)."""
    _, gain = gains(name, dense_grid(torch.float64))
    assert gain.min() >= low - 5e-4
    assert abs(gain.max().item() - high) < 5e-4
    if low > 0:
        assert abs(gain.min().item() - low) < 5e-4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_derivative(name: str):
    """Mutant: any slope formula with a wrong sign or factor."""
    act = activation(name).double()
    x = dense_grid(torch.float64)[::7].clone().requires_grad_()
    value, slope = act.value_and_slope(x[:, None])
    assert torch.equal(act(x[:, None]), value)
    for e in range(act.expansion):
        (derivative,) = torch.autograd.grad(value[:, e].sum(), x, retain_graph=True)
        torch.testing.assert_close(slope[:, e], derivative, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["clipswish", "cpila"])
def test_concatenation_runs_along_the_channels(name: str):
    """Mutant: concatenating along the last dimension of an image."""
    x = normal(2, 3, 4, 5)
    act = activation(name).double()
    value, slope = act.value_and_slope(x, -3)
    flat, flat_slope = act.value_and_slope(x.movedim(-3, -1))
    assert value.shape == (2, 6, 4, 5)
    assert torch.equal(value.movedim(-3, -1), flat)
    assert torch.equal(slope.movedim(-3, -1), flat_slope)


def test_unknown_activation_names_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'lipswish'"):
        activation("lipswich")


# --- matrices -----------------------------------------------------------------------------

Law = Callable[[int, int, int], Tensor]


def gaussian(m: int, n: int, seed: int) -> Tensor:
    return normal(m, n, seed=seed)


def orthogonal(m: int, n: int, seed: int) -> Tensor:
    u, _, v = torch.linalg.svd(normal(m, n, seed=seed), full_matrices=False)
    return u @ v


def rank_one(m: int, n: int, seed: int) -> Tensor:
    return normal(m, 1, seed=seed) @ normal(1, n, seed=seed + 1)


def ill_conditioned(m: int, n: int, seed: int) -> Tensor:
    u, _, v = torch.linalg.svd(normal(m, n, seed=seed), full_matrices=False)
    values = torch.logspace(0, -14, min(m, n), dtype=torch.float64)
    return u * values @ v


def close_pair(m: int, n: int, seed: int) -> Tensor:
    """Two nearly equal top values: the iteration's slowest case."""
    u, s, v = torch.linalg.svd(normal(m, n, seed=seed), full_matrices=False)
    s = torch.full_like(s, 0.1)
    s[:2] = torch.tensor([1.0, 0.9999], dtype=torch.float64)[: len(s[:2])]
    return u * s @ v


def sparse(m: int, n: int, seed: int) -> Tensor:
    matrix = torch.zeros(m, n, dtype=torch.float64)
    matrix[seed % m, seed % n] = -1.0
    return matrix


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (gaussian, orthogonal, rank_one, ill_conditioned, close_pair, sparse)
}
MATRIX_SIZES = ((1, 1), (1, 7), (7, 1), (5, 5), (40, 3), (3, 40), (64, 64))


def true_norm(matrix: Tensor) -> float:
    """Largest singular value, float64, immune to the scale of the entries."""
    top = matrix.double().abs().max().item()
    return top * torch.linalg.matrix_norm(matrix.double() / top, 2).item() if top > 0 else 0.0


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("law", LAWS)
def test_matrix_bounds_are_never_below_the_norm(law: str, scale: float):
    """Mutants: power iteration instead of Gram (below), 1 % shaved off, a lost log-scale."""
    for seed, (m, n) in enumerate(MATRIX_SIZES):
        single = (LAWS[law](m, n, seed) * scale).float()
        norm = true_norm(single)
        assert certified_norm(single) >= norm
        assert gram_bound(single.double()).item() >= norm * (1 - 1e-13)
        bound = gram_bound(single).item()
        assert bound >= norm * (1 - MARGIN), (m, n, bound / norm)
        assert math.isfinite(bound)
        assert bound <= norm * min(m, n) ** (1 / 2**6) * 1.001  # and no looser than six steps


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("law", LAWS)
def test_prepared_layer_has_the_norm_asked_for(law: str, scale: float):
    """What counts: the SVD of the prepared float32 weight. Mutant: ``MARGIN = 0``."""
    for seed, (m, n) in enumerate(MATRIX_SIZES):
        layer = LipschitzLinear(n, m, max_norm=0.7)
        layer.weight.data.copy_(LAWS[law](m, n, seed) * scale)
        raw = true_norm(layer.weight.detach())
        norm = true_norm(layer.prepare().weight.detach())
        assert norm <= 0.7
        # Weights below the norm stay, weights above use it up to the slack of six steps.
        assert norm >= min(0.7, raw) * (0.999 / min(m, n) ** (1 / 2**6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_weight_is_harmless(dtype: torch.dtype):
    """Mutant: division by the norm without a floor."""
    for shape in ((4, 4), (2, 5)):
        weight = torch.zeros(shape, dtype=dtype, requires_grad=True)
        bound = gram_bound(weight)
        assert 0 <= bound.item() < 1e-30
        (gradient,) = torch.autograd.grad(bound, weight)
        assert gradient.isfinite().all()
        assert certified_norm(weight) == 0
    layer = LipschitzLinear(5, 3, max_norm=0.7).to(dtype)
    layer.weight.data.zero_()
    layer.prepare().weight.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["spectral", "aol"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_half_precision_keeps_the_norm_asked_for(kind: str, dtype: torch.dtype, scale: float):
    """Mutants: a factor of 5e-8, which float16 rounds to 6e-8; sums of squares that vanish in
    float16; a certificate that takes float32's norms for half precision's."""
    normalisation = SpectralNorm() if kind == "spectral" else AOL()
    layer = normalisation.linear(512, 512, 0.9)
    layer.weight.data.uniform_(0.5 * scale, scale, generator=generator())
    prepared = layer.to(dtype).prepare()
    norm = torch.linalg.svdvals(prepared.weight.double())[0].item()
    assert norm <= 0.9
    assert norm <= prepared.certified_norm() <= norm * 1.02
    if scale >= 1:
        assert norm > 0.85


def test_gram_bound_is_tight():
    """lipschitz.md: 1.0014 on Gaussian 128 x 128. Mutant: four steps instead of six."""
    ratios = [
        gram_bound(normal(128, 128, seed=s)).item() / true_norm(normal(128, 128, seed=s))
        for s in range(5)
    ]
    assert 1 <= torch.tensor(ratios).median().item() < 1.004
    ratios = [
        certified_norm(normal(60, 30, seed=s)) / true_norm(normal(60, 30, seed=s)) for s in range(5)
    ]
    assert max(ratios) < 1 + 1e-9


@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (4, 6), (5, 5), (30, 2)])
def test_gradient_of_gram_bound_is_that_of_the_norm(shape: tuple[int, int]):
    """Finite differences of the SVD. Mutant: the bound's own gradient, or a transposed one."""
    u, s, v = torch.linalg.svd(normal(*shape, seed=3), full_matrices=False)
    s = 3.0 * 0.6 ** torch.arange(len(s), dtype=torch.float64)  # simple top value
    weight = (u * s @ v).requires_grad_()
    (gradient,) = torch.autograd.grad(gram_bound(weight), weight)
    for seed in range(4):
        direction, h = normal(*shape, seed=10 + seed), 1e-6
        up = torch.linalg.matrix_norm(weight.detach() + h * direction, 2)
        down = torch.linalg.matrix_norm(weight.detach() - h * direction, 2)
        torch.testing.assert_close(
            (gradient * direction).sum(), (up - down) / (2 * h), atol=1e-7, rtol=1e-7
        )


# --- convolutions -------------------------------------------------------------------------

CONV_CASES = [
    # c_out, c_in, (k_h, k_w), (H, W)
    (3, 2, (1, 1), (4, 5)),
    (2, 3, (3, 3), (1, 1)),
    (1, 1, (3, 3), (1, 6)),
    (4, 2, (3, 3), (2, 2)),
    (2, 5, (3, 3), (9, 7)),
    (1, 8, (5, 5), (9, 7)),
    (3, 3, (5, 5), (3, 2)),
    (2, 2, (7, 7), (2, 1)),
    (3, 1, (7, 7), (9, 7)),
    (14, 13, (3, 3), (4, 5)),  # many channels, the full grid is the smaller one
    (13, 14, (3, 1), (9, 7)),  # many channels, coarse grid
    (13, 13, (1, 3), (9, 7)),  # the same along the width
    (13, 15, (5, 1), (11, 5)),
]


def kernel_of(law: str, case: int, seed: int = 0) -> Tensor:
    c_out, c_in, (height, width), _ = CONV_CASES[case]
    if law == "separable":  # rank one over the channels, and along both axes
        channels = rank_one(c_out, c_in, seed)
        taps = normal(height, 1, seed=seed + 2) @ normal(1, width, seed=seed + 3)
        return channels[:, :, None, None] * taps
    if law == "ones":
        return torch.ones(c_out, c_in, height, width, dtype=torch.float64)
    if law == "alternating":  # worst at frequency pi, which odd circular grids lack
        signs = (-1.0) ** (torch.arange(height)[:, None] + torch.arange(width)).double()
        return rank_one(c_out, c_in, seed)[:, :, None, None] * signs
    if law == "delta":
        kernel = torch.zeros(c_out, c_in, height, width, dtype=torch.float64)
        kernel[0, 0, 0, width // 2] = -2.0
        return kernel
    return normal(c_out, c_in, height, width, seed=seed)


def conv_matrix(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the zero-padded convolution as a matrix, column by column, float64."""
    c_in = kernel.shape[1]
    columns = c_in * size[0] * size[1]
    basis = torch.eye(columns, dtype=torch.float64).reshape(columns, c_in, *size)
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    image = torch.nn.functional.conv2d(basis, kernel.double(), padding=padding)
    return image.reshape(columns, -1).mT


@pytest.mark.parametrize("law", ["gaussian", "separable", "ones", "alternating", "delta"])
@pytest.mark.parametrize("case", range(len(CONV_CASES)))
def test_conv_bounds_are_never_below_the_norm(law: str, case: int):
    """Mutants: the circular grid of N points (Sedghi), the coarse grid without its factor,
    a quarter plane of frequencies, a root mean square over the map (residual-flows)."""
    size = CONV_CASES[case][3]
    single = kernel_of(law, case, seed=case).float()
    norm = true_norm(conv_matrix(single, size))
    assert certified_conv_norm(single, size) >= norm
    assert conv_bound(single.double(), size).item() >= norm * (1 - 1e-13)
    assert conv_bound(single, size).item() >= norm * (1 - MARGIN)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e10, 1e30])
@pytest.mark.parametrize("case", [0, 4, 10])
def test_conv_bounds_hold_at_extreme_scales(case: int, scale: float):
    size = CONV_CASES[case][3]
    single = (kernel_of("gaussian", case) * scale).float()
    norm = true_norm(conv_matrix(single.double() / scale, size)) * scale
    bound = conv_bound(single, size).item()
    assert norm * (1 - MARGIN) <= bound <= norm * 2
    assert certified_conv_norm(single, size) >= norm * (1 - 1e-12)


def test_many_channels_on_a_large_image():
    """3 x 3 on 19 x 19 with 13 channels takes the coarse grid; power iteration gives the
    norm from below, and a separable kernel gives it exactly. Mutant: no coarse factor."""
    size, channels = (19, 19), FULL_GRID_CHANNELS + 1
    kernel = normal(channels, channels, 3, 3, seed=5)
    v = normal(1, channels, *size, seed=6)
    norm = torch.tensor(0.0, dtype=torch.float64)
    for _ in range(60):
        u = torch.nn.functional.conv2d(v / v.norm(), kernel, padding=1)
        norm = u.norm()
        v = torch.nn.functional.conv_transpose2d(u, kernel, padding=1)
    assert norm.item() * (1 - MARGIN) <= conv_bound(kernel.float(), size).item()
    assert norm.item() <= certified_conv_norm(kernel, size) <= 1.1 * norm.item()
    taps = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    pair = rank_one(channels, channels, 7)
    exact = true_norm(conv_matrix(taps, size)) * true_norm(pair)
    kernel = pair[:, :, None, None] * taps
    assert exact <= conv_bound(kernel, size).item() <= 1.2 * exact
    assert exact <= certified_conv_norm(kernel, size) <= 1.05 * exact


SQUARE_CASES = [i for i, case in enumerate(CONV_CASES) if case[2][0] == case[2][1]]


def test_coarse_grid_pays_for_what_it_misses():
    """Two channels rotate by 11 pi / 20 a tap, so that the norm's frequency lies midway between
    the coarse grid's; on a long image the true norm nearly reaches it. Mutant: no factor."""
    channels, size, angle = FULL_GRID_CHANNELS + 2, (60, 1), 11 * math.pi / 20
    kernel = torch.zeros(channels, channels, 3, 1, dtype=torch.float64)
    for tap in range(3):
        c, s = math.cos((tap - 1) * angle), math.sin((tap - 1) * angle)
        kernel[:2, :2, tap, 0] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    norm = true_norm(conv_matrix(kernel, size))
    assert norm > 2.99  # of at most 3; the coarse grid alone sees 2.975
    assert norm <= conv_bound(kernel, size).item() <= 1.1 * norm
    assert norm <= certified_conv_norm(kernel, size) <= 1.01 * norm


@pytest.mark.parametrize("case", SQUARE_CASES)
def test_prepared_convolution_has_the_norm_asked_for(case: int):
    """Mutants: a norm of the kernel as a matrix, a bound for another image size."""
    c_out, c_in, (kernel_size, _), size = CONV_CASES[case]
    for scale in (1e-3, 1.0, 1e10):
        layer = LipschitzConv2d(c_in, c_out, kernel_size, size, max_norm=0.7)
        layer.weight.data.copy_(kernel_of("gaussian", case) * scale)
        prepared = layer.prepare()
        assert true_norm(conv_matrix(prepared.weight.detach(), size)) <= 0.7
        assert prepared.certified_norm() >= true_norm(conv_matrix(prepared.weight.detach(), size))


def test_beyond_the_largest_grid_a_smaller_one_bounds_every_size():
    """An all-ones kernel on 300 x 300: the norm is (1 + 2 cos(pi / 301))^2. Mutant: no factor,
    which a kernel with its largest frequency between the points of the grid would show."""
    norm = (1 + 2 * math.cos(math.pi / 301)) ** 2
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert norm * 1.0001 < certified_conv_norm(kernel, (300, 300)) < norm * 1.001
    assert norm <= conv_bound(kernel, (300, 300)).item() < norm * 1.01
    odd = torch.tensor([[[[1.0, 0.0, -0.9]]]], dtype=torch.float64)
    exact = certified_conv_norm(odd, (1, 60_000))
    assert exact <= certified_conv_norm(odd, (1, 70_000)) <= 1.01 * exact


def test_conv_bounds_are_tight():
    """Small images are exact, larger ones within 3 %. Mutant: one grid of frequencies only."""
    ratios: dict[tuple[int, int], list[float]] = {(20, 18): [], (3, 3): []}
    for size, found in ratios.items():
        for seed in range(9):
            kernel = normal(4, 3, 3, 3, seed=seed)
            found.append(certified_conv_norm(kernel, size) / true_norm(conv_matrix(kernel, size)))
    assert torch.tensor(ratios[20, 18]).median() < 1.03
    assert max(ratios[3, 3]) < 1 + 1e-9


@pytest.mark.parametrize(
    ("channels", "size"), [((2, 3), (9, 8)), ((1, 1), (24, 20)), ((13, 13), (20, 21))]
)
def test_gradient_of_conv_bound_is_that_of_the_norm_on_its_grid(
    channels: tuple[int, int], size: tuple[int, int]
):
    """Finite differences of the largest singular value over the whole frequency grid.

    Mutants: the gradient at another frequency (rows and columns exchanged), a lost
    imaginary part, a conjugate of the wrong sign.
    """
    kernel = normal(*channels, 3, 3, seed=8)

    def norm(values: Tensor) -> Tensor:
        """The least over both parities of each axis, of the largest over its points."""
        points = [2 * (n + 1) if n + 1 <= 18 and max(channels) < 13 else n + 1 for n in size]
        if max(channels) >= 13:
            points = [20, 20]
        symbols = torch.fft.fft2(values, s=points).permute(2, 3, 0, 1)
        norms = torch.linalg.matrix_norm(symbols, 2)
        steps = [2 if p == 2 * (n + 1) else 1 for p, n in zip(points, size, strict=True)]
        parities = [
            norms[i :: steps[0], j :: steps[1]] for i in range(steps[0]) for j in range(steps[1])
        ]
        return torch.stack([part.max() for part in parities]).min()

    # Half of the kernel is made odd about its centre, so that the worst frequency is complex.
    kernel = kernel - 0.8 * kernel.flip(2, 3)
    leaf = kernel.clone().requires_grad_()
    # More Gram steps: the complex symbols' second singular value may be near the first.
    (gradient,) = torch.autograd.grad(conv_bound(leaf, size, steps=11), leaf)
    for seed in range(3):
        direction, h = normal(*kernel.shape, seed=20 + seed), 1e-6
        slope = (norm(kernel + h * direction) - norm(kernel - h * direction)) / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), slope, atol=1e-6, rtol=1e-6)


# --- branches -----------------------------------------------------------------------------


def small_branch(kind: str, context: int = 0) -> Branch:
    if kind == "mlp":
        return MLPBranch(4, (16, 12), "cpila", lipschitz=0.9, context=context)
    return ConvBranch((2, 3, 2), (6, 5), (3, 1, 3), "clipswish", lipschitz=0.9, context=context)


def jacobians(prepared: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return dense Jacobians ``[B, D, D]`` by autograd."""
    rows = [torch.autograd.functional.jacobian(prepared, row[None]) for row in x]
    size = x[0].numel()
    return torch.stack([row.reshape(size, size) for row in rows])  # pyright: ignore


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_context_does_not_enter_the_bound(kind: str):
    """Mutant: a context that scales the weights, or that passes through an expanding gate."""
    torch.manual_seed(0)
    branch = small_branch(kind, context=3).double()
    for parameter in branch.parameters():
        parameter.data.mul_(20)
    x = normal(1, *branch.event_shape)
    outputs, bounds = [], []
    for seed, scale in enumerate((0.0, 1.0, 1e3)):
        prepared = branch.prepare(scale * normal(1, 3, seed=seed))
        bounds.append(prepared.certified_bound())
        outputs.append(prepared(x))
        values = torch.linalg.svdvals(jacobians(prepared, x))
        assert values.max() <= 0.9
    assert bounds[0] == bounds[1] == bounds[2] <= 0.9
    assert not torch.allclose(outputs[0], outputs[1])  # and the context is not ignored


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_asked_bound_is_kept_and_nearly_used(kind: str):
    """Certified bound within MARGIN of L for large weights. Mutants: L for each layer instead
    of its root; a bound that a second normalisation shrinks again."""
    torch.manual_seed(0)
    branch = small_branch(kind)
    for parameter in branch.parameters():
        parameter.data.mul_(100)
    bound = branch.prepare().certified_bound()
    assert 0.75 * 0.9 < bound <= 0.9
    before = branch.prepare()(torch.ones(1, *branch.event_shape))
    branch.enforce_bounds_()
    assert branch.prepare().certified_bound() <= 0.9
    torch.testing.assert_close(branch.prepare()(torch.ones(1, *branch.event_shape)), before)


@pytest.mark.parametrize("kernel", [-1, 0, 2, 4])
def test_even_kernels_are_refused(kernel: int):
    with pytest.raises(ConfigurationError, match="odd"):
        LipschitzConv2d(2, 2, kernel, (4, 4), 0.9)
    with pytest.raises(ConfigurationError, match="odd"):
        ConvBranch((1, 4, 4), (4, 4), (3, 1, kernel))


def test_number_of_kernels_must_fit():
    with pytest.raises(ConfigurationError, match="kernel sizes"):
        ConvBranch((1, 4, 4), (4, 4), (3, 3))


@pytest.mark.parametrize("lipschitz", [1.0, 1.5, math.inf, math.nan, 0.0, -0.5])
def test_bounds_that_do_not_contract_are_refused(lipschitz: float):
    with pytest.raises(NotContractiveError, match=r"\(0, 1\)"):
        MLPBranch(2, (4,), lipschitz=lipschitz)
    with pytest.raises(NotContractiveError, match=r"\(0, 1\)"):
        ConvBranch((1, 4, 4), (4, 4), lipschitz=lipschitz)
    if lipschitz <= 0:
        return
    branch = MLPBranch(2, (4,))
    branch.lipschitz = lipschitz
    with pytest.raises(NotContractiveError, match="below 1"):
        ResidualBlock(branch)
    with pytest.raises(NotContractiveError, match="below 1"):
        solve(lambda x: x, torch.zeros(1, 1), Picard(), lipschitz=lipschitz)
