"""Contractive branches: chains of bounded layers and activations, prepared once a pass.

``branch.prepare(context)`` returns a ``PreparedBranch``: normalised weights, the projected
context and the bound L. A branch of your own needs ``lipschitz``, ``event_shape`` and
``prepare``; what it prepares needs what ``PreparedBranch`` lists. If it also offers
``in_dtype(dtype)``, the very same g in another dtype, roots below float64 are refined there.
A branch whose norms may be bounded together with those of a whole flow also names its
``bounded_layers`` and says ``takes_norms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from contraflow._context import expected_context
from contraflow._sizes import check_widths
from contraflow.errors import ConfigurationError, NotContractiveError
from contraflow.lipschitz.activations import Activation
from contraflow.lipschitz.activations import activation as build_activation
from contraflow.lipschitz.layers import (
    BoundedLayer,
    PreparedMap,
    layers_of,
    odd_pair,
    prepare_layers,
    shifts_size,
    write_back_,
)
from contraflow.lipschitz.normalisation import Normalisation, SpectralNorm
from contraflow.lipschitz.stacked import TakesNorms
from contraflow.registry import register


class PreparedBranch(Protocol):
    """A branch g with its weights normalised and its context projected, for one pass."""

    lipschitz: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return g(x), ``[*B, *E]``."""
        ...

    def rows(self, index: Tensor) -> PreparedBranch:
        """Return the branch for the batch rows in ``index``: ``[R]``."""
        ...

    def certified_bound(self) -> float:
        """Return a proved bound of Lip(g) for these very weights, float64."""
        ...


class Branch(TakesNorms, nn.Module):
    """A map g on ``[*B, *E]`` with Lip(g) <= ``lipschitz`` in x, whatever the context.

    Attributes:
        lipschitz: the bound L asked for, l2 norm, dimensionless.
        event_shape: E.
    """

    lipschitz: float
    event_shape: tuple[int, ...]

    def prepare(self, context: Tensor | None = None) -> PreparedBranch:
        """Normalise the weights and project the context; a pure function of both.

        A branch with ``takes_norms`` also accepts ``norms``: a bound of the raw norm of each of
        its ``bounded_layers``, in their order; None for its own.
        """
        raise NotImplementedError

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the layers whose norms ``prepare`` takes; the default takes none."""
        return []

    def enforce_bounds_(self) -> None:
        """Write the normalised weights back, where the branch has raw weights."""


class PreparedChain:
    """``maps[n] o activations[n-1] o ... o activations[0] o maps[0]``, weights fixed."""

    def __init__(
        self,
        maps: Sequence[PreparedMap],
        activations: Sequence[Activation],
        shifts: Sequence[Tensor],
        channel_dim: int,
        batched: bool,
        lipschitz: float,
    ) -> None:
        self.maps = maps
        self.activations = activations
        self.shifts = shifts
        self.channel_dim = channel_dim
        self.batched = batched
        self.lipschitz = lipschitz

    def __call__(self, x: Tensor) -> Tensor:
        """Return g(x), ``[*B, *E]``."""
        for map_, act, shift in zip(self.maps, self.activations, self.shifts, strict=False):
            x = act(map_.affine(x, shift), self.channel_dim)
        return self.maps[-1].affine(x, self.shifts[-1])

    def rows(self, index: Tensor) -> PreparedChain:
        """Return the chain for the batch rows in ``index``."""
        if not self.batched:
            return self
        shifts = [shift[index] for shift in self.shifts[:-1]] + [self.shifts[-1]]
        return PreparedChain(
            self.maps, self.activations, shifts, self.channel_dim, True, self.lipschitz
        )

    def inner_size(self) -> Tensor:
        """Return what shifts add to the size of inner values, ``[*B]`` or a scalar.

        Maps and activations stretch by about 1 at most, so the l2 norms of the shifts, at every
        pixel of an image, add up.
        """
        return shifts_size(self.maps, self.shifts, self.channel_dim)

    def in_dtype(self, dtype: torch.dtype) -> PreparedChain:
        """Return the very same numbers in another dtype: in float64, g without rounding."""
        return PreparedChain(
            [map_.in_dtype(dtype) for map_ in self.maps],
            self.activations,
            [shift.to(dtype) for shift in self.shifts],
            self.channel_dim,
            self.batched,
            self.lipschitz,
        )

    def certified_bound(self) -> float:
        """Return the product of the maps' certified norms; activations have gain <= 1."""
        bound = 1.0
        for map_ in self.maps:
            bound *= map_.certified_norm()
        return bound


class ChainBranch(Branch):
    """What fully connected and convolutional branches share.

    A subclass sets the attributes; layers alternate with activations and end with a layer.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    context: int
    context_net: nn.Module | None
    channel_dim: int
    takes_norms = True

    def prepare(
        self, context: Tensor | None = None, *, norms: Sequence[Tensor] | None = None
    ) -> PreparedChain:
        """Normalise the weights and project the context; a pure function of both.

        Args:
            context: ``[*B, M]``; enters as a shift of every hidden layer, so that the bound
                in x does not see it.
            norms: a bound of the raw norm of each of ``bounded_layers``; None for its own.

        Raises:
            ShapeError: the branch was built for a context and it is missing or does not fit.
        """
        maps = self._prepare_layers(norms)
        projected: list[Tensor | None] = [None] * len(maps)
        context = expected_context(self, context, self.context)
        if self.context_net is not None and context is not None:
            widths = [map_.bias.shape[0] for map_ in maps[:-1]]
            projected[:-1] = self.context_net(context).split(widths, -1)
        shifts = [map_.shift(part) for map_, part in zip(maps, projected, strict=True)]
        activations = [act for act in self.activations if isinstance(act, Activation)]
        return PreparedChain(
            maps, activations, shifts, self.channel_dim, context is not None, self.lipschitz
        )

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the layers whose norms may be bounded together with others."""
        return [layer for layer in layers_of(self.layers) if layer.takes_norms]

    def enforce_bounds_(self) -> None:
        """Write the normalised weights back; the function g does not change."""
        write_back_(layers_of(self.layers), self._prepare_layers(None))

    def _prepare_layers(self, norms: Sequence[Tensor] | None) -> list[PreparedMap]:
        """Share the bound L out evenly; L may change between passes (a schedule)."""
        max_norm = _check_contractive(self.lipschitz) ** (1 / len(self.layers))
        layers = layers_of(self.layers)
        return prepare_layers(layers, [max_norm] * len(layers), norms)


@register
class MLPBranch(ChainBranch):
    """``D -> h_1 -> ... -> h_n -> D`` with Lip <= ``lipschitz``; no leading activation.

    Args:
        features: D.
        hidden_features: widths h_1 ... h_n, at least one.
        activation: a name in ``lipschitz.ACTIVATIONS``.
        lipschitz: the bound L in (0, 1); each of the n+1 layers gets its (n+1)-th root.
        context: M, features of the context; 0 for none.
        normalisation: how layers keep their norms, ``SpectralNorm()`` or ``AOL()``.

    Raises:
        NotContractiveError: L is not in (0, 1).

    Example:
        >>> g = MLPBranch(2, (16,), lipschitz=0.5).prepare()
        >>> a, b = torch.randn(2, 100, 2)
        >>> bool(((g(a) - g(b)).norm(dim=-1) <= 0.5 * (a - b).norm(dim=-1)).all())
        True
    """

    channel_dim = -1

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (128, 128),
        activation: str = "lipswish",
        lipschitz: float = 0.98,
        context: int = 0,
        normalisation: Normalisation = SpectralNorm(),
    ) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.features = features
        self.hidden_features = _widths("hidden_features", hidden_features)
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.event_shape = (features,)
        max_norm = lipschitz ** (1 / (len(self.hidden_features) + 1))
        self.activations = nn.ModuleList(build_activation(activation) for _ in hidden_features)
        self.layers = nn.ModuleList()
        width = features
        for out, act in zip(self.hidden_features, self.activations, strict=True):
            self.layers.append(normalisation.linear(width, out, max_norm))
            width = out * _expansion(act)
        self.layers.append(normalisation.linear(width, features, max_norm))
        self.context_net = _context_net(context, self.hidden_features)


@register
class ConvBranch(ChainBranch):
    """Zero-padded convolutions ``C -> h_1 -> ... -> h_n -> C`` with Lip <= ``lipschitz``.

    Args:
        shape: C, H, W; the bound holds for images of this size.
        hidden_channels: h_1 ... h_n.
        kernel_sizes: n + 1 odd sizes, or pairs ``(k_h, k_w)`` of odd sizes.
        activation: a name in ``lipschitz.ACTIVATIONS``.
        lipschitz: the bound L in (0, 1); each of the n+1 layers gets its (n+1)-th root.
        context: M, features of a context vector; 0 for none.
        normalisation: how layers keep their norms, ``SpectralNorm()`` or ``AOL()``.

    Raises:
        NotContractiveError: L is not in (0, 1).
        ConfigurationError: a kernel is even, or their number does not fit.

    Example:
        >>> branch = ConvBranch((1, 8, 8), (16, 16), lipschitz=0.9)
        >>> branch.prepare()(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, appendix C; Chen et al. 2019,
        arXiv:1906.02735, appendix E.
    """

    channel_dim = -3

    def __init__(
        self,
        shape: Sequence[int],
        hidden_channels: Sequence[int] = (64, 64),
        kernel_sizes: Sequence[int | Sequence[int]] = (3, 1, 3),
        activation: str = "lipswish",
        lipschitz: float = 0.98,
        context: int = 0,
        normalisation: Normalisation = SpectralNorm(),
    ) -> None:
        super().__init__()
        self.normalisation = normalisation
        channels, height, width = shape
        self.shape = (channels, height, width)
        self.hidden_channels = _widths("hidden_channels", hidden_channels)
        self.kernel_sizes = tuple(k if isinstance(k, int) else odd_pair(k) for k in kernel_sizes)
        if len(self.kernel_sizes) != len(self.hidden_channels) + 1:
            raise ConfigurationError(
                f"got {len(self.kernel_sizes)} kernel sizes for {len(self.hidden_channels)} "
                f"hidden layers; expected {len(self.hidden_channels) + 1}."
            )
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.event_shape = self.shape
        max_norm = lipschitz ** (1 / len(self.kernel_sizes))
        self.activations = nn.ModuleList(build_activation(activation) for _ in hidden_channels)
        self.layers = nn.ModuleList()
        size = (height, width)
        inputs = channels
        for out, kernel, act in zip(
            self.hidden_channels, self.kernel_sizes, self.activations, strict=False
        ):
            self.layers.append(normalisation.conv2d(inputs, out, kernel, size, max_norm))
            inputs = out * _expansion(act)
        last = self.kernel_sizes[-1]
        self.layers.append(normalisation.conv2d(inputs, channels, last, size, max_norm))
        self.context_net = _context_net(context, self.hidden_channels)


def _expansion(act: nn.Module) -> int:
    assert isinstance(act, Activation)
    return act.expansion


def _widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    if len(widths) == 0:
        raise ConfigurationError("a branch needs at least one hidden layer, such as (128, 128).")
    return check_widths(name, widths)


def _context_net(context: int, widths: Sequence[int]) -> nn.Module | None:
    if context == 0:
        return None
    hidden = max(32, 2 * context)
    return nn.Sequential(nn.Linear(context, hidden), nn.SiLU(), nn.Linear(hidden, sum(widths)))


def _check_contractive(lipschitz: float) -> float:
    if not 0 < lipschitz < 1:
        raise NotContractiveError(
            f"lipschitz={lipschitz}; expected a bound in (0, 1), such as 0.9 or 0.98: "
            "id + g is provably invertible only when g contracts."
        )
    return lipschitz
