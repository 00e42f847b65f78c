"""Experimental: layers bounded in learned p-norms, by estimates that prove nothing.

A layer from a space with the p-norm to one with the q-norm has the induced norm
``max |W x|_q / |x|_p``. Computing it is NP-hard in general; the power iteration here
approaches it from below and may stop at a local maximum. What is built on it is never
certified, and it contracts, if at all, in a p-norm and not in the l2 norm in which this library
measures roots and series.

Reference:
    Chen et al. 2019, arXiv:1906.02735, section 3.2 and appendix D; Boyd 1974, Linear Algebra
    and its Applications 9 (the iteration); Johnston 2016 (p -> q norms).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow._context import expected_context
from contraflow.errors import ConfigurationError
from contraflow.lipschitz.activations import Activation
from contraflow.lipschitz.activations import activation as build_activation
from contraflow.lipschitz.branches import (
    Branch,
    PreparedChain,
    _check_contractive,
    _context_net,
    _widths,
)
from contraflow.lipschitz.layers import PreparedConv2d, PreparedLinear, PreparedMap
from contraflow.lipschitz.norms import MARGIN
from contraflow.registry import register

_STARTS = 4
# Orders of norms lie strictly between 1 / .95 and 1 / .05: at 1 and infinity the iteration
# would jump between corners.
_LOWEST, _HIGHEST = 0.05, 0.95
_FLOOR = 1e-30


def mixed_norm_estimate(
    map_: PreparedMap, shape: Sequence[int], domain: Tensor, codomain: Tensor, steps: int = 20
) -> Tensor:
    """Estimate ``max |W x|_q / |x|_p`` from below: a fixed number of steps from fixed starts.

    Args:
        map_: the linear part, with its transpose.
        shape: event shape of x.
        domain: p, scalar in (1, inf).
        codomain: q, scalar in (1, inf).
        steps: power iterations.

    Returns:
        Scalar, at most the norm; differentiable in the weight and in both orders.

    Example:
        >>> map_ = PreparedLinear(torch.tensor([[3.0, 4.0]]), torch.zeros(1))
        >>> two = torch.tensor(2.0)
        >>> f"{mixed_norm_estimate(map_, (2,), two, two).item():.4f}"
        '5.0000'
    """
    count = math.prod(shape)
    with torch.no_grad():
        phase = torch.arange(count, device=map_.weight.device, dtype=map_.weight.dtype)
        speeds = torch.arange(1, _STARTS + 1, device=phase.device, dtype=phase.dtype)
        x = 1.1 + torch.cos(1.0 + speeds[:, None] * phase)  # [S, n]
        x = x.reshape(_STARTS, *shape)
        for _ in range(steps):
            image = map_.mv(x)
            x = _power(map_.rmv(_power(image, codomain - 1)), 1 / (domain - 1))
        best = (_norm(map_.mv(x), codomain) / _norm(x, domain)).argmax()
        x = x.index_select(0, best.reshape(1))
    # At a maximum the direction does not matter to first order: the gradient is right.
    size = _norm(x, domain)[0]
    return _norm(map_.mv(x), codomain)[0] / size


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    """Return ``sign(x) |x|^exponent`` of every row scaled to a largest entry of 1."""
    x = x / _largest(x).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.sign(x) * x.abs() ** exponent


def _norm(x: Tensor, order: Tensor) -> Tensor:
    """Return the norms ``[S]`` of the rows, safe in overflow and at zero."""
    top = _largest(x.detach())  # the norm does not depend on it
    # Zeros would have a gradient of log(0) in the order.
    ratio = (x.flatten(1).abs() / top[:, None]).clamp_min(_FLOOR)
    # The largest ratio is 1, and so is the least sum; rows of zeros have less.
    return top * (ratio**order).sum(1).clamp_min(1) ** (1 / order)


def _largest(x: Tensor) -> Tensor:
    return x.abs().flatten(1).amax(1).clamp_min(_FLOOR)


class PreparedMixedNorms(PreparedChain):
    """A chain whose bound is an estimate: it is never certified."""

    proved = False

    @property
    def lipschitz_estimate(self) -> float:
        """Return the bound asked for, in mixed norms, which estimates hold it to."""
        return self.lipschitz

    def rows(self, index: Tensor) -> PreparedMixedNorms:
        """Return the chain for the batch rows in ``index``."""
        return self._like(super().rows(index))

    def in_dtype(self, dtype: torch.dtype) -> PreparedMixedNorms:
        """Return the very same numbers in another dtype."""
        return self._like(super().in_dtype(dtype))

    def _like(self, chain: PreparedChain) -> PreparedMixedNorms:
        return PreparedMixedNorms(
            chain.maps,
            chain.activations,
            chain.shifts,
            chain.channel_dim,
            chain.batched,
            chain.lipschitz,
        )

    def certified_bound(self) -> float:
        """Return infinity: nothing is proved."""
        return math.inf


class MixedNormBranch(Branch):
    """What fully connected and convolutional branches of mixed norms share; experimental.

    Layer k maps from the norm of order p_k to that of order p_(k+1), and the last one back to
    p_0; the orders are learned. ``lipschitz`` is the estimate that is asked for, in the norm of
    order p_0. In the l2 norm g may stretch more, so that error bounds of the inverse and
    bias bounds of series, which are stated in l2, are estimates too.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    orders: nn.Parameter
    context: int
    context_net: nn.Module | None
    channel_dim: int
    widths: tuple[int, ...]
    steps: int

    def norm_orders(self) -> Tensor:
        """Return p_0 ... p_n, ``[n + 1]``; 2 at the start."""
        return 1 / (_LOWEST + (_HIGHEST - _LOWEST) * torch.sigmoid(self.orders))

    def prepare(self, context: Tensor | None = None) -> PreparedMixedNorms:
        """Divide the weights by their estimates and project the context; pure.

        Args:
            context: ``[*B, M]``; enters as a shift of every hidden layer.

        Raises:
            ShapeError: the branch was built for a context and it is missing or does not fit.
        """
        limit = _check_contractive(self.lipschitz) ** (1 / len(self.layers)) * (1 - MARGIN)
        orders = self.norm_orders()
        following = orders.roll(-1)
        maps: list[PreparedMap] = []
        for k, layer in enumerate(self.layers):
            raw = self._map(layer)
            shape = (raw.weight.shape[1], *self.event_shape[1:])
            estimate = mixed_norm_estimate(raw, shape, orders[k], following[k], self.steps)
            weight = raw.weight * (limit / estimate.clamp_min(limit))
            maps.append(self._map(layer, weight))
        projected: list[Tensor | None] = [None] * len(maps)
        context = expected_context(self, context, self.context)
        if self.context_net is not None and context is not None:
            projected[:-1] = self.context_net(context).split(self.widths, -1)
        shifts = [map_.shift(part) for map_, part in zip(maps, projected, strict=True)]
        activations = [act for act in self.activations if isinstance(act, Activation)]
        return PreparedMixedNorms(
            maps, activations, shifts, self.channel_dim, context is not None, self.lipschitz
        )

    def _map(self, layer: nn.Module, weight: Tensor | None = None) -> PreparedMap:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        weight = layer.weight if weight is None else weight
        assert layer.bias is not None
        if weight.ndim == 2:
            return PreparedLinear(weight, layer.bias)
        height, width = self.event_shape[1:]
        return PreparedConv2d(weight, layer.bias, (height, width))

    def _warn(self) -> None:
        warnings.warn(
            f"{type(self).__name__} is experimental: its norms are estimates from below, so the "
            "flow is never certified and may not be invertible. MLPBranch, DenseMLPBranch and "
            "SandwichBranch are proved.",
            stacklevel=3,
        )


@register
class MixedNormMLPBranch(MixedNormBranch):
    """``D -> h_1 -> ... -> h_n -> D`` in learned p-norms; experimental, never certified.

    Args:
        features: D.
        hidden_features: widths h_1 ... h_n, at least one.
        activation: a name in ``lipschitz.ACTIVATIONS`` with one output an input.
        lipschitz: the estimate asked for, in (0, 1), in the p_0-norm.
        context: M, features of the context; 0 for none.
        steps: power iterations a layer and pass.

    Raises:
        NotContractiveError: ``lipschitz`` is not in (0, 1).
        ConfigurationError: the activation joins several outputs.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     g = MixedNormMLPBranch(2, (8,)).prepare()
        >>> len(caught), g.certified_bound()
        (1, inf)

    Reference:
        Chen et al. 2019, arXiv:1906.02735, section 3.2 and appendix D.
    """

    channel_dim = -1

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (128, 128),
        activation: str = "lipswish",
        lipschitz: float = 0.98,
        context: int = 0,
        steps: int = 20,
    ) -> None:
        super().__init__()
        self.features = features
        self.hidden_features = self.widths = _widths("hidden_features", hidden_features)
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.steps = _check_steps(steps)
        self.event_shape = (features,)
        self.activations = nn.ModuleList(_single(activation) for _ in self.widths)
        self.layers = nn.ModuleList()
        for n, m in zip((features, *self.widths), (*self.widths, features), strict=True):
            self.layers.append(nn.Linear(n, m))
        self.orders = nn.Parameter(torch.zeros(len(self.layers)))
        self.context_net = _context_net(context, self.widths)
        self._warn()


@register
class MixedNormConvBranch(MixedNormBranch):
    """Zero-padded convolutions in learned p-norms; experimental, never certified.

    Args:
        shape: C, H, W.
        hidden_channels: h_1 ... h_n.
        kernel_sizes: n + 1 odd sizes.
        activation: a name in ``lipschitz.ACTIVATIONS`` with one output an input.
        lipschitz: the estimate asked for, in (0, 1), in the p_0-norm.
        context: M, features of a context vector; 0 for none.
        steps: power iterations a layer and pass.

    Raises:
        NotContractiveError: ``lipschitz`` is not in (0, 1).
        ConfigurationError: the activation joins several outputs, or kernels do not fit.

    Reference:
        Chen et al. 2019, arXiv:1906.02735, section 3.2 and appendix D.
    """

    channel_dim = -3

    def __init__(
        self,
        shape: Sequence[int],
        hidden_channels: Sequence[int] = (64, 64),
        kernel_sizes: Sequence[int] = (3, 1, 3),
        activation: str = "lipswish",
        lipschitz: float = 0.98,
        context: int = 0,
        steps: int = 20,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.shape = (channels, height, width)
        self.hidden_channels = self.widths = _widths("hidden_channels", hidden_channels)
        self.kernel_sizes = tuple(kernel_sizes)
        fits = len(self.kernel_sizes) == len(self.widths) + 1
        if not fits or any(k < 1 or k % 2 == 0 for k in self.kernel_sizes):
            raise ConfigurationError(
                f"kernel_sizes={self.kernel_sizes} for {len(self.widths)} hidden layers; expected "
                f"{len(self.widths) + 1} odd sizes such as 1, 3 or 5."
            )
        self.activation = activation
        self.lipschitz = _check_contractive(lipschitz)
        self.context = context
        self.steps = _check_steps(steps)
        self.event_shape = self.shape
        self.activations = nn.ModuleList(_single(activation) for _ in self.widths)
        self.layers = nn.ModuleList()
        inputs = (channels, *self.widths)
        for n, m, k in zip(inputs, (*self.widths, channels), self.kernel_sizes, strict=True):
            self.layers.append(nn.Conv2d(n, m, k, padding=k // 2))
        self.orders = nn.Parameter(torch.zeros(len(self.layers)))
        self.context_net = _context_net(context, self.widths)
        self._warn()


def _single(name: str) -> Activation:
    act = build_activation(name)
    if act.expansion != 1:
        raise ConfigurationError(
            f"activation={name!r} joins {act.expansion} outputs an input, whose gain is at most "
            "1 in the l2 norm alone; take lipswish, elu, tanh, softplus or sine for mixed norms."
        )
    return act


def _check_steps(steps: int) -> int:
    if steps < 1:
        raise ConfigurationError(f"steps={steps}; expected 1 or more power iterations.")
    return steps
