"""The kinds of contractive branches, by the names that recipes take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contraflow.errors import ConfigurationError, nearest
from contraflow.lipschitz import (
    AOL,
    Branch,
    ConvBranch,
    DenseConvBranch,
    DenseMLPBranch,
    MixedNormConvBranch,
    MixedNormMLPBranch,
    MLPBranch,
    SandwichBranch,
)

# features, hidden_features, activation, lipschitz, context
VectorBranch = Callable[[int, Sequence[int], str, float, int], Branch]
# shape, hidden_channels, activation, lipschitz, context
ImageBranch = Callable[[Sequence[int], Sequence[int], str, float, int], Branch]

VECTOR_BRANCHES: dict[str, VectorBranch] = {
    "plain": MLPBranch,
    "aol": lambda size, hidden, activation, lipschitz, context: MLPBranch(
        size, hidden, activation, lipschitz, context, AOL()
    ),
    "dense": DenseMLPBranch,
    "sandwich": SandwichBranch,
    "mixed": MixedNormMLPBranch,
}


def _convolutions(cls: Callable[..., Branch], **choices: object) -> ImageBranch:
    def build(
        shape: Sequence[int], hidden: Sequence[int], activation: str, lipschitz: float, context: int
    ) -> Branch:
        return cls(shape, hidden, (3, 1, 3), activation, lipschitz, context, **choices)

    return build


def _dense_convolutions(
    shape: Sequence[int], hidden: Sequence[int], activation: str, lipschitz: float, context: int
) -> Branch:
    return DenseConvBranch(shape, hidden, None, activation, lipschitz, context)


IMAGE_BRANCHES: dict[str, ImageBranch] = {
    "plain": _convolutions(ConvBranch),
    "aol": _convolutions(ConvBranch, normalisation=AOL()),
    "dense": _dense_convolutions,
    "mixed": _convolutions(MixedNormConvBranch),
}


def vector_branch(kind: str) -> VectorBranch:
    """Return what builds a branch on vectors.

    Raises:
        ConfigurationError: no kind has this name.

    Example:
        >>> type(vector_branch("sandwich")(2, (8,), "elu", 0.9, 0)).__name__
        'SandwichBranch'
    """
    if kind not in VECTOR_BRANCHES:
        raise ConfigurationError(
            f"no branch named {kind!r}{nearest(kind, VECTOR_BRANCHES) or '.'} Known: "
            f"{', '.join(VECTOR_BRANCHES)}."
        )
    return VECTOR_BRANCHES[kind]


def image_branch(kind: str) -> ImageBranch:
    """Return what builds a convolutional branch.

    Raises:
        ConfigurationError: no kind has this name, or it has no convolutions.
    """
    vector_branch(kind)
    if kind not in IMAGE_BRANCHES:
        raise ConfigurationError(
            f"branch={kind!r} has no convolutional version; take one of "
            f"{', '.join(IMAGE_BRANCHES)} for images."
        )
    return IMAGE_BRANCHES[kind]
