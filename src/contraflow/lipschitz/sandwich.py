"""Branches whose bound is that of the whole composition: sandwich layers, or LBDN.

A sandwich layer ``h -> sqrt(2) A^T Psi phi(sqrt(2) Psi^-1 B h + b)`` with
``A A^T + B B^T = I`` and Psi a positive diagonal is 1-Lipschitz, although its two matrices
alone may have norms whose product is 2 and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from contraflow._context import expected_context
from contraflow.errors import ConfigurationError
from contraflow.lipschitz.activations import ACTIVATIONS, Activation
from contraflow.lipschitz.activations import activation as build_activation
from contraflow.lipschitz.branches import (
    Branch,
    PreparedChain,
    _check_contractive,
    _context_net,
    _widths,
)
from contraflow.lipschitz.composition import certified_chain_norm
from contraflow.lipschitz.layers import PreparedLinear, PreparedMap
from contraflow.lipschitz.norms import working_precision
from contraflow.registry import register

# A A^T + B B^T = (1 - _GAP) I: what float32 may round away without passing the bound.
_GAP = 1e-4
# The weights of a Cayley transform are softly limited to this Frobenius norm: its matrix then
# has a condition number below 1e4, and float32 keeps half of its digits.
_LARGEST = 100.0


class PreparedSandwich(PreparedChain):
    """A chain whose certificate covers the composition.

    Args:
        multipliers: one positive ``[h_k]`` for each hidden layer: the weights of its units in
            the proof.
    """

    certified_method = "semidefinite bound of the composition"

    def __init__(
        self,
        maps: Sequence[PreparedMap],
        activations: Sequence[Activation],
        shifts: Sequence[Tensor],
        batched: bool,
        lipschitz: float,
        multipliers: Sequence[Tensor],
    ) -> None:
        super().__init__(maps, activations, shifts, -1, batched, lipschitz)
        self.multipliers = multipliers

    def rows(self, index: Tensor) -> PreparedSandwich:
        """Return the chain for the batch rows in ``index``."""
        return self._like(super().rows(index))

    def in_dtype(self, dtype: torch.dtype) -> PreparedSandwich:
        """Return the very same numbers in another dtype."""
        return self._like(super().in_dtype(dtype))

    def _like(self, chain: PreparedChain) -> PreparedSandwich:
        return PreparedSandwich(
            chain.maps,
            chain.activations,
            chain.shifts,
            chain.batched,
            chain.lipschitz,
            self.multipliers,
        )

    def certified_bound(self) -> float:
        """Return a proved bound of the composition of these very weights, float64."""
        return certified_chain_norm([map_.weight for map_ in self.maps], self.multipliers)


class _SandwichLayer(nn.Module):
    """The free parameters of one layer ``R^q -> R^n``; ``factors`` gives A and B."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features + in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw entries of variance ``2 / (rows + columns)``, and biases as ``nn.Linear`` does."""
        nn.init.xavier_normal_(self.weight)
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.bias, -bound, bound)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A^T ``[n, n]`` and B^T ``[q, n]`` with ``A A^T + B B^T = (1 - gap) I``."""
        square = self.weight.square().sum() / _LARGEST**2
        both = cayley(self.weight * torch.rsqrt(1 + square)) * math.sqrt(1 - _GAP)
        return both[: self.out_features], both[self.out_features :]


def cayley(weight: Tensor) -> Tensor:
    """Map any ``[n + q, n]`` to one with orthonormal columns, smoothly.

    ``[(I + Z)^-1 (I - Z); -2 Y (I + Z)^-1]`` with ``Z = X - X^T + Y^T Y`` and the parts X
    (square) and Y of the weight. ``I + Z`` has a symmetric part of at least I: it is never
    singular. Two Newton-Schulz steps take off what the solve rounded.

    Example:
        >>> q = cayley(torch.randn(5, 2, dtype=torch.float64))
        >>> torch.allclose(q.mT @ q, torch.eye(2, dtype=torch.float64))
        True

    Reference:
        Wang & Manchester 2023, arXiv:2301.11526, section 4; Björck & Bowie 1971.
    """
    size, dtype = weight.shape[1], weight.dtype
    weight = working_precision(weight)  # there is no solve in half precision
    square, rest = weight[:size], weight[size:]
    identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
    z = square - square.mT + rest.mT @ rest
    # (I - Z)(I + Z)^-1 = (I + Z)^-1 (I - Z): one solve from the right serves both parts.
    # solve_ex does not wait for the device to say whether the matrix was singular.
    right = torch.cat([identity - z, -2 * rest])
    both = torch.linalg.solve_ex(identity + z, right, left=False).result
    for _ in range(2):
        both = 1.5 * both - 0.5 * both @ (both.mT @ both)
    return both.to(dtype)


@register
class SandwichBranch(Branch):
    """``D -> h_1 -> ... -> h_n -> D`` with Lip <= ``lipschitz`` of the whole composition.

    Layers share no bound of their own: neighbouring factors multiply to ordinary weights
    ``W_k = 2 Psi_k^-1 B_k A_{k-1}^T Psi_{k-1}``, so that the branch costs what a fully
    connected one costs, and its Jacobian is the same chain.

    Args:
        features: D.
        hidden_features: widths h_1 ... h_n, at least one.
        activation: a name in ``lipschitz.ACTIVATIONS`` with slopes in [0, 1].
        lipschitz: the bound L in (0, 1).
        context: M, features of the context; 0 for none. It shifts the hidden layers.

    Raises:
        NotContractiveError: L is not in (0, 1).
        ConfigurationError: the activation has slopes outside of [0, 1], or more outputs than
            inputs.

    Example:
        >>> g = SandwichBranch(2, (16,), lipschitz=0.5).prepare()
        >>> a, b = torch.randn(2, 100, 2)
        >>> bool(((g(a) - g(b)).norm(dim=-1) <= 0.5 * (a - b).norm(dim=-1)).all())
        True

    Reference:
        Wang & Manchester 2023, arXiv:2301.11526, section 4.
    """

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (128, 128),
        activation: str = "elu",
        lipschitz: float = 0.98,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.hidden_features = _widths("hidden_features", hidden_features)
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.event_shape = (features,)
        self.activations = nn.ModuleList(_monotone(activation) for _ in hidden_features)
        widths = (features, *self.hidden_features, features)
        self.layers = nn.ModuleList(_SandwichLayer(n, m) for n, m in pairwise(widths))
        # Logarithms of the diagonals Psi.
        self.scales = nn.ParameterList(torch.zeros(width) for width in self.hidden_features)
        self.context_net = _context_net(context, self.hidden_features)

    def prepare(self, context: Tensor | None = None) -> PreparedSandwich:
        """Multiply the factors out and project the context; a pure function of both.

        Args:
            context: ``[*B, M]``; enters as a shift of every hidden layer.

        Raises:
            ShapeError: the branch was built for a context and it is missing or does not fit.
        """
        maps = self._prepare_layers()
        projected: list[Tensor | None] = [None] * len(maps)
        context = expected_context(self, context, self.context)
        if self.context_net is not None and context is not None:
            projected[:-1] = self.context_net(context).split(self.hidden_features, -1)
        shifts = [map_.shift(part) for map_, part in zip(maps, projected, strict=True)]
        activations = [act for act in self.activations if isinstance(act, Activation)]
        # Half of L is in the last layer, and weighs on every hidden one.
        multipliers = [self.lipschitz * torch.exp(2 * scale.detach()) for scale in self.scales]
        return PreparedSandwich(
            maps, activations, shifts, context is not None, self.lipschitz, multipliers
        )

    def _prepare_layers(self) -> list[PreparedLinear]:
        # The root of L at both ends; inside, the hidden layers see no bound.
        root = math.sqrt(_check_contractive(self.lipschitz))
        maps: list[PreparedLinear] = []
        before: Tensor | None = None  # sqrt(2) A^T Psi of the layer below
        for k, layer in enumerate(self.layers):
            assert isinstance(layer, _SandwichLayer)
            upper, lower = layer.factors()
            weight = lower.mT if before is None else lower.mT @ before
            if k in (0, len(self.layers) - 1):
                weight = root * weight
            if k < len(self.scales):
                psi = torch.exp(self.scales[k])
                weight = math.sqrt(2) * weight / psi[:, None]
                before = math.sqrt(2) * upper * psi
            maps.append(PreparedLinear(weight, layer.bias))
        return maps


def _monotone(name: str) -> Activation:
    act = build_activation(name)
    low, high = act.slopes
    if act.expansion != 1 or low < 0 or high > 1:
        allowed = [n for n, kind in ACTIVATIONS.items() if kind.slopes == (0.0, 1.0)]
        raise ConfigurationError(
            f"SandwichBranch: activation={name!r} has slopes in [{low:g}, {high:g}] and "
            f"{act.expansion} output(s) an input; the bound of the composition holds for one "
            f"output with slopes in [0, 1]. Take one of {', '.join(allowed)}."
        )
    return act
