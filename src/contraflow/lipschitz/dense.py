"""Dense branches: every layer keeps what came before and adds to it.

A layer ``h -> [eta_1 h, eta_2 phi(W h + b)]`` stretches by ``sqrt(eta_1^2 + eta_2^2 |W|^2)`` at
most; with eta on the unit circle and ``|W| <= 1`` it is 1-Lipschitz, and the last layer, which
maps all features back, carries the bound of the branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow._context import expected_context
from contraflow.errors import ConfigurationError
from contraflow.lipschitz.activations import Activation
from contraflow.lipschitz.activations import activation as build_activation
from contraflow.lipschitz.branches import (
    Branch,
    _check_contractive,
    _context_net,
    _expansion,
    _widths,
)
from contraflow.lipschitz.layers import (
    BoundedLayer,
    PreparedMap,
    layers_of,
    prepare_layers,
    shifts_size,
    write_back_,
)
from contraflow.lipschitz.normalisation import Normalisation, SpectralNorm
from contraflow.registry import register


class PreparedDense:
    """Dense layers and the last linear map, weights fixed.

    Args:
        maps: linear parts, the last one without an activation.
        activations: one for every map but the last.
        shifts: biases with the context's share.
        mixing: ``[n, 2]``, eta_1 and eta_2 of every dense layer.
        channel_dim: the dimension along which features are joined.
        batched: whether shifts differ from row to row.
        lipschitz: the bound L asked for.
    """

    certified_method = "product of certified norms of dense layers"

    def __init__(
        self,
        maps: Sequence[PreparedMap],
        activations: Sequence[Activation],
        shifts: Sequence[Tensor],
        mixing: Tensor,
        channel_dim: int,
        batched: bool,
        lipschitz: float,
    ) -> None:
        self.maps = maps
        self.activations = activations
        self.shifts = shifts
        self.mixing = mixing
        self.channel_dim = channel_dim
        self.batched = batched
        self.lipschitz = lipschitz

    def __call__(self, x: Tensor) -> Tensor:
        """Return g(x), ``[*B, *E]``."""
        return self.value_and_slopes(x)[0]

    def value_and_slopes(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return g(x) and the slopes of every activation, ``[*B, e*N, ...]``."""
        slopes = []
        for k, act in enumerate(self.activations):
            inner = self.maps[k].affine(x, self.shifts[k])
            value, slope = act.value_and_slope(inner, self.channel_dim)
            slopes.append(slope)
            # [*B, n, ...] and [*B, e*N, ...] -> [*B, n + e*N, ...]
            x = torch.cat([self.mixing[k, 0] * x, self.mixing[k, 1] * value], self.channel_dim)
        return self.maps[-1].affine(x, self.shifts[-1]), slopes

    def rows(self, index: Tensor) -> PreparedDense:
        """Return the branch for the batch rows in ``index``."""
        if not self.batched:
            return self
        shifts = [shift[index] for shift in self.shifts[:-1]] + [self.shifts[-1]]
        return self._with(self.maps, shifts, self.mixing)

    def inner_size(self) -> Tensor:
        """Return what shifts add to the size of inner values, ``[*B]`` or a scalar."""
        return shifts_size(self.maps, self.shifts, self.channel_dim)

    def in_dtype(self, dtype: torch.dtype) -> PreparedDense:
        """Return the very same numbers in another dtype."""
        maps = [map_.in_dtype(dtype) for map_ in self.maps]
        return self._with(maps, [shift.to(dtype) for shift in self.shifts], self.mixing.to(dtype))

    def _with(
        self, maps: Sequence[PreparedMap], shifts: Sequence[Tensor], mixing: Tensor
    ) -> PreparedDense:
        return PreparedDense(
            maps, self.activations, shifts, mixing, self.channel_dim, self.batched, self.lipschitz
        )

    def certified_bound(self) -> float:
        """Return the product of ``sqrt(eta_1^2 + eta_2^2 |W|^2)`` and the last norm, float64."""
        bound = self.maps[-1].certified_norm()
        mixing = self.mixing.detach().double().tolist()
        for map_, (keep, add) in zip(self.maps, mixing, strict=False):
            bound *= math.hypot(keep, add * map_.certified_norm()) * (1 + 2.0**-50)
        return bound


class DenseBranch(Branch):
    """What fully connected and convolutional dense branches share.

    A subclass sets the attributes; ``layers`` holds the dense layers and the last one.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    angles: nn.Parameter
    growth: tuple[int, ...]
    context: int
    context_net: nn.Module | None
    channel_dim: int

    takes_norms = True

    def prepare(
        self, context: Tensor | None = None, *, norms: Sequence[Tensor] | None = None
    ) -> PreparedDense:
        """Normalise the weights and project the context; a pure function of both.

        Args:
            context: ``[*B, M]``; enters as a shift of every hidden layer.
            norms: a bound of the raw norm of each of ``bounded_layers``; None for its own.

        Raises:
            ShapeError: the branch was built for a context and it is missing or does not fit.
        """
        bound = _check_contractive(self.lipschitz)
        limits = [1.0] * (len(self.layers) - 1) + [bound]
        maps = prepare_layers(layers_of(self.layers), limits, norms)
        projected: list[Tensor | None] = [None] * len(maps)
        context = expected_context(self, context, self.context)
        if self.context_net is not None and context is not None:
            projected[:-1] = self.context_net(context).split(self.growth, -1)
        shifts = [map_.shift(part) for map_, part in zip(maps, projected, strict=True)]
        activations = [act for act in self.activations if isinstance(act, Activation)]
        mixing = torch.stack([torch.cos(self.angles), torch.sin(self.angles)], -1)  # [n, 2]
        return PreparedDense(
            maps,
            activations,
            shifts,
            mixing,
            self.channel_dim,
            context is not None,
            self.lipschitz,
        )

    def enforce_bounds_(self) -> None:
        """Write the normalised weights back; the function g does not change."""
        write_back_(layers_of(self.layers), self.prepare(self._no_context()).maps)

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the layers whose norms may be bounded together with others."""
        return [layer for layer in layers_of(self.layers) if layer.takes_norms]

    def _no_context(self) -> Tensor | None:
        return self.angles.new_zeros(1, self.context) if self.context else None


@register
class DenseMLPBranch(DenseBranch):
    """``D -> D + e h_1 -> ... -> D + e h_1 + ... + e h_n -> D`` with Lip <= ``lipschitz``.

    Args:
        features: D.
        hidden_features: growths h_1 ... h_n, at least one; an activation of expansion e adds
            e times as many features.
        activation: a name in ``lipschitz.ACTIVATIONS``; the paper's is ``clipswish``.
        lipschitz: the bound L in (0, 1).
        context: M, features of the context; 0 for none. It shifts the hidden layers.
        normalisation: how layers keep their norms, ``SpectralNorm()`` or ``AOL()``.

    Raises:
        NotContractiveError: L is not in (0, 1).

    Example:
        >>> g = DenseMLPBranch(2, (8, 8), lipschitz=0.5).prepare()
        >>> a, b = torch.randn(2, 100, 2)
        >>> bool(((g(a) - g(b)).norm(dim=-1) <= 0.5 * (a - b).norm(dim=-1)).all())
        True

    Reference:
        Perugachi-Diaz et al. 2021, arXiv:2102.02694, section 3; eta is an angle here, which
        starts at 45 degrees.
    """

    channel_dim = -1

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (64, 64),
        activation: str = "clipswish",
        lipschitz: float = 0.98,
        context: int = 0,
        normalisation: Normalisation = SpectralNorm(),
    ) -> None:
        super().__init__()
        self.features = features
        self.hidden_features = self.growth = _widths("hidden_features", hidden_features)
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.normalisation = normalisation
        self.event_shape = (features,)
        self.activations = nn.ModuleList(build_activation(activation) for _ in self.growth)
        self.layers = nn.ModuleList()
        width = features
        for out, act in zip(self.growth, self.activations, strict=True):
            self.layers.append(normalisation.linear(width, out, 1.0))
            width += out * _expansion(act)
        self.layers.append(normalisation.linear(width, features, lipschitz))
        self.angles = nn.Parameter(torch.full((len(self.growth),), math.pi / 4))
        self.context_net = _context_net(context, self.growth)


@register
class DenseConvBranch(DenseBranch):
    """Dense zero-padded convolutions and a last one back to C, with Lip <= ``lipschitz``.

    Args:
        shape: C, H, W; the bound holds for images of this size.
        hidden_channels: growths h_1 ... h_n.
        kernel_sizes: n + 1 odd sizes; None for 3 everywhere and 1 at the end, the paper's.
        activation: a name in ``lipschitz.ACTIVATIONS``.
        lipschitz: the bound L in (0, 1).
        context: M, features of a context vector; 0 for none.
        normalisation: how layers keep their norms, ``SpectralNorm()`` or ``AOL()``.

    Raises:
        NotContractiveError: L is not in (0, 1).
        ConfigurationError: the number of kernels does not fit, or one is even.

    Example:
        >>> g = DenseConvBranch((1, 4, 4), (3, 3), lipschitz=0.5).prepare()
        >>> 0 < g.certified_bound() <= 0.5
        True

    Reference:
        Perugachi-Diaz et al. 2021, arXiv:2102.02694, section 3.
    """

    channel_dim = -3

    def __init__(
        self,
        shape: Sequence[int],
        hidden_channels: Sequence[int] = (32, 32),
        kernel_sizes: Sequence[int] | None = None,
        activation: str = "clipswish",
        lipschitz: float = 0.98,
        context: int = 0,
        normalisation: Normalisation = SpectralNorm(),
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.shape = (channels, height, width)
        self.hidden_channels = self.growth = _widths("hidden_channels", hidden_channels)
        chosen = (3,) * len(self.growth) + (1,) if kernel_sizes is None else kernel_sizes
        self.kernel_sizes = tuple(chosen)
        if len(self.kernel_sizes) != len(self.growth) + 1:
            raise ConfigurationError(
                f"got {len(self.kernel_sizes)} kernel sizes for {len(self.growth)} dense layers; "
                f"expected {len(self.growth) + 1}: one for each, and one for the last layer."
            )
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.normalisation = normalisation
        self.event_shape = self.shape
        self.activations = nn.ModuleList(build_activation(activation) for _ in self.growth)
        self.layers = nn.ModuleList()
        size = (height, width)
        inputs = channels
        for out, kernel, act in zip(self.growth, self.kernel_sizes, self.activations, strict=False):
            self.layers.append(normalisation.conv2d(inputs, out, kernel, size, 1.0))
            inputs += out * _expansion(act)
        last = self.kernel_sizes[-1]
        self.layers.append(normalisation.conv2d(inputs, channels, last, size, lipschitz))
        self.angles = nn.Parameter(torch.full((len(self.growth),), math.pi / 4))
        self.context_net = _context_net(context, self.growth)
