"""Random contractive branches of every kind, with weights of several laws.

Bounds are proofs about whatever weights a branch has; these draw weights that a bound may
find hard.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.lipschitz import (
    AOL,
    Branch,
    ConvBranch,
    DenseConvBranch,
    DenseMLPBranch,
    MLPBranch,
    SandwichBranch,
)


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _one_of(generator: torch.Generator, *names: str) -> str:
    return names[_integer(generator, 0, len(names) - 1)]


def _widths(generator: torch.Generator, largest: int) -> tuple[int, ...]:
    return tuple(_integer(generator, 1, largest) for _ in range(_integer(generator, 1, 3)))


def _bound(generator: torch.Generator) -> float:
    return (0.3, 0.9, 0.99, 0.999)[_integer(generator, 0, 3)]


_ANY = ("elu", "tanh", "softplus", "sine", "lipswish", "clipswish", "cpila")
_MONOTONE = ("elu", "tanh", "softplus")


def _vector(
    generator: torch.Generator, build: Callable[..., Branch], names: tuple[str, ...], *rest: object
) -> Branch:
    features, widths = _integer(generator, 1, 8), _widths(generator, 16)
    act = _one_of(generator, *names)
    return build(features, widths, act, _bound(generator), 2 * _integer(generator, 0, 1), *rest)


def _image(generator: torch.Generator, build: Callable[..., Branch], *rest: object) -> Branch:
    shape = tuple(_integer(generator, 1, high) for high in (3, 5, 5))
    widths = _widths(generator, 5)
    kernels = tuple(1 + 2 * _integer(generator, 0, 2) for _ in range(len(widths) + 1))
    context = 2 * _integer(generator, 0, 1)
    act = _one_of(generator, *_ANY)
    return build(shape, widths, kernels, act, _bound(generator), context, *rest)


BRANCH_KINDS: dict[str, Callable[[torch.Generator], Branch]] = {
    "aol": lambda rng: _vector(rng, MLPBranch, _ANY, AOL()),
    "aol-conv": lambda rng: _image(rng, ConvBranch, AOL()),
    "sandwich": lambda rng: _vector(rng, SandwichBranch, _MONOTONE),
    "dense": lambda rng: _vector(rng, DenseMLPBranch, _ANY),
    "dense-conv": lambda rng: _image(rng, DenseConvBranch),
    "dense-aol": lambda rng: _vector(rng, DenseMLPBranch, _ANY, AOL()),
}


def _normals(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _large(like: Tensor, generator: torch.Generator) -> Tensor:
    return 10 * _normals(like, generator)


def _small(like: Tensor, generator: torch.Generator) -> Tensor:
    return 1e-3 * _normals(like, generator)


def _ill_conditioned(like: Tensor, generator: torch.Generator) -> Tensor:
    matrix = _normals(like, generator).flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    decades = torch.logspace(1, -13, len(values), dtype=torch.float64)
    return ((left * decades) @ right).reshape(like.shape)


def _rank_one(like: Tensor, generator: torch.Generator) -> Tensor:
    matrix = like.flatten(1)
    left = torch.randn(len(matrix), 1, generator=generator, dtype=torch.float64)
    right = torch.randn(1, matrix.shape[1], generator=generator, dtype=torch.float64)
    return (left * right).reshape(like.shape)


def _sparse(like: Tensor, generator: torch.Generator) -> Tensor:
    """Whole rows and columns of zeros, and entries of both signs elsewhere."""
    values = _normals(like, generator)
    values[torch.rand(values.shape[0], generator=generator) < 0.3] = 0
    values[:, torch.rand(values.shape[1], generator=generator) < 0.3] = 0
    return values


def _zero(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float64)


WEIGHT_LAWS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "normal": _normals,
    "large": _large,
    "small": _small,
    "ill-conditioned": _ill_conditioned,
    "rank-one": _rank_one,
    "sparse": _sparse,
    "zero": _zero,
}


@torch.no_grad()
def redraw_(branch: Branch, law: str, generator: torch.Generator) -> Branch:
    """Redraw the matrices and kernels of a branch by a law, its vectors and scalars as normals.

    Args:
        branch: changed in place.
        law: a name in ``WEIGHT_LAWS``.
        generator: source of the values.

    Raises:
        ConfigurationError: no law has this name.
    """
    if law not in WEIGHT_LAWS:
        raise ConfigurationError(f"no law named {law!r}; known: {', '.join(WEIGHT_LAWS)}.")
    for parameter in branch.parameters():
        if parameter.ndim > 1:
            scale = 1 / math.sqrt(parameter[0].numel())
            parameter.copy_(scale * WEIGHT_LAWS[law](parameter, generator))
        else:
            parameter.copy_(_normals(parameter, generator))
    return branch


def random_branch(kind: str, generator: torch.Generator, law: str | None = None) -> Branch:
    """Draw a branch: its sizes, activation, bound and context, and its weights by a law.

    Args:
        kind: a name in ``BRANCH_KINDS``.
        generator: source of every choice.
        law: a name in ``WEIGHT_LAWS``; None draws one.

    Raises:
        ConfigurationError: no kind or law has this name.

    Example:
        >>> branch = random_branch("sandwich", torch.Generator().manual_seed(0))
        >>> context = torch.zeros(1, branch.context) if branch.context else None
        >>> branch.prepare(context).certified_bound() <= branch.lipschitz
        True
    """
    if kind not in BRANCH_KINDS:
        raise ConfigurationError(f"no kind named {kind!r}; known: {', '.join(BRANCH_KINDS)}.")
    branch = BRANCH_KINDS[kind](generator)
    return redraw_(branch, law or _one_of(generator, *WEIGHT_LAWS), generator)
