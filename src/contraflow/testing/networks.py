"""Random contractive layers and branches, and their true norms: evidence for every bound.

Tests and benchmarks draw from the same laws. A new layer or branch type is one entry of
``LAYERS`` or ``BRANCHES``: a function of a law and a generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.jacobian import linearize
from contraflow.lipschitz import (
    ACTIVATIONS,
    BoundedLayer,
    Branch,
    ConvBranch,
    LipschitzConv2d,
    LipschitzLinear,
    MLPBranch,
    PreparedMap,
)

Law = Callable[[Sequence[int], torch.Generator], Tensor]
PIXELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
WIDTHS = (1, 2, 3, 5, 8, 16, 33, 64, 128, 300, 784)
CHANNELS = (1, 2, 3, 4, 8, 13, 16, 32, 64)
DENSE_DIMENSIONS = 1024
_LARGEST_CONVOLUTION = 2**23  # multiplications for one image


# --- laws of weights: [out, in, ...], float64 ---------------------------------------------


def _normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=rng, dtype=torch.float64)


def _uniform(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=rng, dtype=torch.float64)


def _student(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Two degrees of freedom: infinite variance."""
    chi2 = _normal((2, *shape), rng).square().sum(0)
    return _normal(shape, rng) / (chi2 / 2).sqrt()


def _as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _with_values(values: Callable[[int], Tensor]) -> Law:
    """Return the law of random singular vectors around given values of the unfolded weight."""

    def law(shape: Sequence[int], rng: torch.Generator) -> Tensor:
        u, s, v = torch.linalg.svd(_normal(_as_matrix(shape), rng), full_matrices=False)
        return (u * values(len(s)) @ v).reshape(tuple(shape))

    return law


def _low_rank(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    out, rest = _as_matrix(shape)
    return (_normal((out, 2), rng) @ _normal((2, rest), rng)).reshape(tuple(shape))


def _close_pair(n: int) -> Tensor:
    values = torch.full((n,), 0.1, dtype=torch.float64)
    values[:2] = torch.tensor([1.0, 0.9999], dtype=torch.float64)[:n]
    return values


LAWS: dict[str, Law] = {
    "gaussian": _normal,
    "uniform": _uniform,
    "sparse": lambda shape, rng: _normal(shape, rng) * (_uniform(shape, rng) < 0.05),
    "student": _student,
    "cauchy": lambda shape, rng: torch.tan(math.pi * (_uniform(shape, rng) - 0.5)),
    "low rank": _low_rank,
    "ill-conditioned": _with_values(lambda n: torch.logspace(0, -12, n, dtype=torch.float64)),
    "orthogonal": _with_values(lambda n: torch.ones(n, dtype=torch.float64)),
    "close pair": _with_values(_close_pair),
    "all equal": lambda shape, rng: torch.full(tuple(shape), -0.3, dtype=torch.float64),
    "tiny": lambda shape, rng: 1e-20 * _normal(shape, rng),
    "huge": lambda shape, rng: 1e15 * _normal(shape, rng),
}
# Weights that gradient ascent drives to where the bound is least above the norm.
TRAINED = "trained"


# --- layers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCase:
    """A layer, float64, whose raw weights are drawn and rounded to what float32 holds exactly.

    Args:
        kind: a key of ``LAYERS``.
        law: a key of ``LAWS``, or ``TRAINED``.
        layer: the layer.
        event_shape: of its input.
    """

    kind: str
    law: str
    layer: BoundedLayer
    event_shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return what a failing test should show."""
        return f"{self.kind}, {self.law}: {self.layer.extra_repr()}"


def _pick(values: Sequence[int], rng: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=rng))]


def _linear(rng: torch.Generator) -> tuple[BoundedLayer, tuple[int, ...]]:
    features = _pick(WIDTHS, rng)
    return LipschitzLinear(features, _pick(WIDTHS, rng), 0.9), (features,)


def _convolution(rng: torch.Generator) -> tuple[BoundedLayer, tuple[int, ...]]:
    while True:
        height = _pick(PIXELS, rng)
        width = height if _pick((0, 1), rng) else _pick(PIXELS, rng)
        kernel = (_pick((1, 3, 5, 7), rng),) * 2
        if not _pick((0, 1, 2), rng):
            kernel = (_pick((1, 3, 5, 7), rng), _pick((1, 3, 5, 7), rng))
        inputs, outputs = _pick(CHANNELS, rng), _pick(CHANNELS, rng)
        if inputs * outputs * math.prod(kernel) * height * width <= _LARGEST_CONVOLUTION:
            layer = LipschitzConv2d(inputs, outputs, kernel, (height, width), 0.9)
            return layer, (inputs, height, width)


LAYERS: dict[str, Callable[[torch.Generator], tuple[BoundedLayer, tuple[int, ...]]]] = {
    "linear": _linear,
    "convolution": _convolution,
}


def layer_cases(number: int, seed: int = 0, trained_steps: int = 200) -> Iterator[LayerCase]:
    """Draw layers: every kind with every law in turn.

    Args:
        number: how many.
        seed: of sizes and weights.
        trained_steps: gradient steps of the law ``TRAINED``.

    Example:
        >>> [(case.kind, case.law) for case in layer_cases(2)]
        [('linear', 'gaussian'), ('convolution', 'gaussian')]
    """
    rng = torch.Generator().manual_seed(seed)
    laws = (*LAWS, TRAINED)
    for i in range(number):
        kind = tuple(LAYERS)[i % len(LAYERS)]
        law = laws[i // len(LAYERS) % len(laws)]
        layer, event_shape = LAYERS[kind](rng)
        layer = layer.double()
        draw = LAWS.get(law, _normal)
        layer.weight.data.copy_(draw(layer.weight.shape, rng))
        if law == TRAINED:
            train_against_bound_(layer, event_shape, rng, trained_steps)
        layer = layer.float().double()
        yield LayerCase(kind, law, layer, event_shape)


def raw_map(layer: BoundedLayer) -> PreparedMap:
    """Return the layer's operator with its raw weights: no limit shrinks them."""
    return layer.prepare(torch.finfo(layer.weight.dtype).max / 4)


def train_against_bound_(
    layer: BoundedLayer, event_shape: Sequence[int], rng: torch.Generator, steps: int
) -> None:
    """Ascend ln(norm / bound) by gradient steps in the weights, at constant Frobenius norm."""
    v = _normal((1, *event_shape), rng)
    length = layer.weight.detach().norm()
    for _ in range(steps):
        with torch.no_grad():
            u = raw_map(layer).mv(v)
            v = raw_map(layer).rmv(u / u.norm())
            v = v / v.norm()
        excess = raw_map(layer).mv(v).norm().log() - layer.norm_bound().log()
        (slope,) = torch.autograd.grad(excess, layer.weight)
        with torch.no_grad():
            moved = layer.weight + 0.05 * length * slope / slope.norm().clamp_min(1e-12)
            layer.weight.copy_(moved * length / moved.norm())


# --- true norms ---------------------------------------------------------------------------


def true_norm(map_: PreparedMap, event_shape: Sequence[int], starts: int = 5) -> float:
    """Return the norm of a float64 operator, by no bound of ours.

    Dense singular values where both sides have at most 1,024 entries; beyond, the largest
    Ritz value of several Golub-Kahan-Lanczos runs, which no rounding lifts above the norm.

    Args:
        map_: the operator.
        event_shape: of its input.
        starts: random starts of Lanczos.
    """
    inputs = math.prod(event_shape)
    with torch.no_grad():
        outputs = map_.mv(torch.zeros(1, *event_shape, dtype=torch.float64)).numel()
        if max(inputs, outputs) <= DENSE_DIMENSIONS:
            basis = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *event_shape)
            return torch.linalg.matrix_norm(map_.mv(basis).reshape(inputs, -1), 2).item()
        return _lanczos_norm(map_, event_shape, min(inputs, outputs, 40), starts)


def _lanczos_norm(map_: PreparedMap, event: Sequence[int], steps: int, starts: int) -> float:
    """Return the largest singular value of the bidiagonal matrices; the starts are one batch."""
    rng = torch.Generator().manual_seed(0)
    v = _normal((starts, *event), rng)
    v = v / v.flatten(1).norm(dim=1).reshape(-1, *(1,) * len(event))
    basis: list[Tensor] = []
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    lefts: list[Tensor] = []
    u = torch.zeros(starts, 1, dtype=torch.float64)
    beta = torch.zeros(starts, 1, dtype=torch.float64)
    for _ in range(steps):
        basis.append(v.flatten(1))
        image = map_.mv(v)
        u = _orthogonal_to(image.flatten(1) - beta * u, lefts)
        alpha = u.norm(dim=1, keepdim=True)
        u = _direction(u, alpha, alphas)
        lefts.append(u)
        alphas.append(alpha[:, 0])
        w = map_.rmv(u.reshape(image.shape)).flatten(1) - alpha * v.flatten(1)
        w = _orthogonal_to(w, basis)
        beta = w.norm(dim=1, keepdim=True)
        betas.append(beta[:, 0])
        v = _direction(w, beta, alphas).reshape(starts, *event)
    diagonal, above = torch.stack(alphas, -1), torch.stack(betas[:-1], -1)
    small = torch.diag_embed(diagonal) + torch.diag_embed(above, 1)
    return torch.linalg.matrix_norm(small, 2).max().item()


def _direction(vectors: Tensor, length: Tensor, alphas: Sequence[Tensor]) -> Tensor:
    """Return ``[S, n]`` of length 1, or 0 where only rounding is left: the space is used up."""
    enough = 1e-10 * alphas[0][:, None] if alphas else torch.zeros_like(length)
    return torch.where(length > enough, vectors / length, torch.zeros_like(vectors))


def _orthogonal_to(vectors: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """Return ``[S, n]`` without its share in the basis; twice is enough."""
    if basis:
        known = torch.stack(tuple(basis), 1)  # [S, t, n]
        for _ in range(2):
            vectors = vectors - (known.mT @ (known @ vectors[..., None]))[..., 0]
    return vectors


# --- branches -----------------------------------------------------------------------------


def _mlp(law: Law, rng: torch.Generator) -> Branch:
    features, hidden = _pick((1, 2, 5, 16), rng), _pick((4, 16, 64), rng)
    depth = _pick((1, 2, 3), rng)
    return _filled(MLPBranch(features, (hidden,) * depth, _activation(rng), 0.9), law, rng)


def _conv(law: Law, rng: torch.Generator) -> Branch:
    shape = (_pick((1, 2, 4), rng), _pick((1, 2, 3, 5, 8), rng), _pick((1, 2, 3, 5, 8), rng))
    kernels = [(_pick((1, 3, 5, 7), rng), _pick((1, 3, 5, 7), rng)) for _ in range(3)]
    branch = ConvBranch(shape, (_pick((2, 8), rng), 4), kernels, _activation(rng), 0.9)
    return _filled(branch, law, rng)


def _activation(rng: torch.Generator) -> str:
    return tuple(ACTIVATIONS)[int(torch.randint(len(ACTIVATIONS), (), generator=rng))]


def _filled(branch: Branch, law: Law, rng: torch.Generator) -> Branch:
    branch = branch.double()
    for layer in branch.modules():
        if isinstance(layer, BoundedLayer):
            layer.weight.data.copy_(law(layer.weight.shape, rng))
    return branch


BRANCHES: dict[str, Callable[[Law, torch.Generator], Branch]] = {"mlp": _mlp, "conv": _conv}


def branch_cases(
    number: int, seed: int = 0, trained_steps: int = 100
) -> Iterator[tuple[str, Branch]]:
    """Draw branches, float64: every kind with every law in turn, and trained ones.

    A trained branch has fitted a map that its bound forbids, so that it uses all of it.
    """
    rng = torch.Generator().manual_seed(seed)
    laws = (*LAWS, TRAINED)
    for i in range(number):
        kind = tuple(BRANCHES)[i % len(BRANCHES)]
        law = laws[i // len(BRANCHES) % len(laws)]
        branch = BRANCHES[kind](LAWS.get(law, _normal), rng)
        if law == TRAINED:
            _fit_(branch, rng, trained_steps)
        yield f"{kind}, {law}: {branch}", branch


def _fit_(branch: Branch, rng: torch.Generator, steps: int) -> None:
    optimizer = torch.optim.Adam(branch.parameters(), lr=0.02)
    for _ in range(steps):
        x = _normal((16, *branch.event_shape), rng)
        loss = (branch.prepare()(x) + 3 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def largest_slope(branch: Branch, points: int = 8, seed: int = 0) -> tuple[float, float]:
    """Return the largest slope of a branch at random points, and its certified bound.

    Args:
        branch: any branch; one that wants a context is given a random one.
        points: near and far, with a Jacobian each.
        seed: of the points.

    Returns:
        The largest singular value of the Jacobians, in float64 of the very weights that were
        prepared, and the bound that no slope may exceed.
    """
    rng = torch.Generator().manual_seed(seed)
    dtype = next(branch.parameters()).dtype
    features = getattr(branch, "context", 0)
    context = _normal((points, features), rng).to(dtype) if features else None
    scales = torch.logspace(-2, 2, points, dtype=torch.float64)
    x = _normal((points, *branch.event_shape), rng)
    x = x * scales.reshape(-1, *(1,) * len(branch.event_shape))
    with torch.no_grad():
        prepared = branch.prepare(context)
        exact = getattr(prepared, "in_dtype", lambda _: prepared)(torch.float64)
        matrices = linearize(exact, x, len(branch.event_shape))[1].dense()
    return torch.linalg.svdvals(matrices).max().item(), prepared.certified_bound()
