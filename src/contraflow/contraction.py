"""The bound L of every contractive branch of a flow: how it is given, read and changed.

``branch.prepare`` and every log-determinant and solver read L when they are called, so a new L
holds from the next pass on: weights stay as they are, and are normalised to the new bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

from torch import nn

from contraflow.errors import ConfigurationError, NotContractiveError
from contraflow.lipschitz import Branch
from contraflow.lipschitz.branches import ChainBranch

Bounds = float | Sequence[float]  # one L for all blocks, or one for each in forward order


def lipschitz_of(flow: nn.Module) -> tuple[float, ...]:
    """Return the bound L that each contractive branch was asked to keep, in forward order.

    What is proved of the weights is ``certify(flow)``'s to say; it never exceeds these.

    Args:
        flow: a flow, a transform, or any module that holds branches.

    Example:
        >>> import contraflow as cf
        >>> lipschitz_of(cf.flows.ResidualFlow(2, transforms=2, lipschitz=[0.5, 0.9]))
        (0.5, 0.9)
    """
    return tuple(branch.lipschitz for branch in _branches(flow))


def set_lipschitz_(flow: nn.Module, lipschitz: Bounds) -> None:
    """Change the bound L of every contractive branch, from the next pass on.

    The weights stay as they are. A layer whose norm exceeds its share of the new L is shrunk
    to it, as in every pass; one below its share is left alone, so that a larger L allows a
    larger slope and creates none. L is saved with the flow. A view that ``flow.using`` made
    before keeps the L that it was made with.

    Args:
        flow: a flow, a transform, or any module that holds branches.
        lipschitz: L in (0, 1), l2 norm, dimensionless: a number for all branches, or one for
            each in forward order.

    Raises:
        ConfigurationError: there is no contractive branch, or the number of bounds is not
            that of the branches.
        NotContractiveError: a bound is not in (0, 1). Nothing was changed then.

    Example:
        >>> import contraflow as cf
        >>> flow = cf.flows.ResidualFlow(2, transforms=2, lipschitz=0.9)
        >>> set_lipschitz_(flow, [0.5, 0.999])
        >>> lipschitz_of(flow), cf.certify(flow).certified
        ((0.5, 0.999), True)
    """
    branches = list(_branches(flow))
    if not branches:
        raise ConfigurationError(
            f"set_lipschitz_: {type(flow).__name__} holds no contractive branch; expected a flow "
            "with residual blocks."
        )
    for branch, bound in zip(branches, bounds_of_blocks(lipschitz, len(branches)), strict=True):
        branch.lipschitz = bound
        if isinstance(branch, ChainBranch):
            # What a layer shows of itself when it is printed; prepare hands it its share anew.
            share = bound ** (1 / len(branch.layers))
            for layer in branch.layers:
                layer.max_norm = share  # pyright: ignore[reportAttributeAccessIssue]


def bounds_of_blocks(lipschitz: Bounds, blocks: int) -> tuple[float, ...]:
    """Return one bound for each block, checked.

    Args:
        lipschitz: a number for all blocks, or one for each in forward order.
        blocks: how many contractive blocks there are.

    Raises:
        ConfigurationError: the number of bounds is not that of the blocks.
        NotContractiveError: a bound is not in (0, 1).

    Example:
        >>> bounds_of_blocks(0.9, 2), bounds_of_blocks([0.5, 0.9], 2)
        ((0.9, 0.9), (0.5, 0.9))
    """
    if not isinstance(lipschitz, Sequence) or isinstance(lipschitz, str | bytes):
        return (_checked(lipschitz),) * blocks
    if len(lipschitz) != blocks:
        raise ConfigurationError(
            f"lipschitz: got {len(lipschitz)} bounds for {blocks} contractive blocks; expected "
            "one for each block, in forward order, or one number for all."
        )
    return tuple(_checked(bound, f" of block {i}") for i, bound in enumerate(lipschitz))


def _checked(bound: Any, where: str = "") -> float:
    number = isinstance(bound, Real) and not isinstance(bound, bool)
    # Rounded first: 1 - 1e-17 is 1 to a float.
    if not number or not 0 < float(bound) < 1:
        raise NotContractiveError(
            f"lipschitz{where}={bound!r}; expected a bound in (0, 1), such as 0.9 or 0.999: "
            "id + g is provably invertible only when g contracts."
        )
    return float(bound)


def _branches(module: nn.Module) -> Iterator[Branch]:
    """Yield each branch once, in forward order; a branch inside of a branch is its own affair."""
    seen: set[int] = set()

    def walk(part: nn.Module) -> Iterator[Branch]:
        if id(part) in seen:
            return
        seen.add(id(part))
        if _is_branch(part):
            yield part  # pyright: ignore[reportReturnType]
            return
        for child in part.children():
            yield from walk(child)

    return walk(module)


def _is_branch(module: nn.Module) -> bool:
    """Tell a branch, or a user's module that offers what a branch must."""
    own = all(hasattr(module, name) for name in ("lipschitz", "event_shape", "prepare"))
    return isinstance(module, Branch) or own
