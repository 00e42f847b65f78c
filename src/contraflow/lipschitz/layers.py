"""Linear and convolutional layers whose norm is a function of their weights.

``prepare`` divides the weight by its upper bound once a pass. It keeps no buffer, no cache
and no hook, so a fused optimiser step, a ``.data`` write, an EMA swap or a compiled graph
cannot leave a stale norm behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from contraflow.errors import ConfigurationError
from contraflow.lipschitz.convolutions import certified_conv_norm
from contraflow.lipschitz.norms import (
    certified_norm,
    margin_of,
    rounding_of,
    steps_for,
    working_precision,
)
from contraflow.lipschitz.stacked import NormProblem, TakesNorms, norm_bound, norm_bounds


class PreparedMap(Protocol):
    """An affine map with fixed weights, and its linear part as an operator."""

    weight: Tensor
    bias: Tensor

    def mv(self, v: Tensor) -> Tensor:
        """Apply the linear part."""
        ...

    def affine(self, v: Tensor, shift: Tensor) -> Tensor:
        """Apply the linear part and add what ``shift`` returned."""
        ...

    def rmv(self, u: Tensor) -> Tensor:
        """Apply the transpose of the linear part."""
        ...

    def shift(self, context: Tensor | None) -> Tensor:
        """Return bias plus projected context ``[*B, N]``, shaped for the output."""
        ...

    def certified_norm(self) -> float:
        """Return a proved bound of the linear part's norm (float64).

        It also covers the same weight prepared in another batch of norms, whose scale rounding
        may have moved.
        """
        ...

    def in_dtype(self, dtype: torch.dtype) -> PreparedMap:
        """Return the same numbers in another dtype."""
        ...


def _moved(dtype: torch.dtype) -> float:
    """Return how far another batch of norms may move the norm of a prepared weight.

    Norms of half-precision weights are taken in float32; what that moves is rounded to the next
    number, an eps at most.
    """
    if dtype in (torch.float32, torch.float64):
        return rounding_of(dtype)
    return rounding_of(torch.float32) + 2 * torch.finfo(dtype).eps


class PreparedLinear:
    """``v -> v W^T`` on the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def mv(self, v: Tensor) -> Tensor:
        """Map ``[*B, n]`` to ``[*B, m]``."""
        return v @ self.weight.mT

    def affine(self, v: Tensor, shift: Tensor) -> Tensor:
        """Map ``[*B, n]`` to ``[*B, m]`` and add a shift ``[m]`` or ``[*B, m]``."""
        if shift.ndim == 1:
            return nn.functional.linear(v, self.weight, shift)
        return self.mv(v) + shift

    def rmv(self, u: Tensor) -> Tensor:
        """Map ``[*B, m]`` to ``[*B, n]``."""
        return u @ self.weight

    def shift(self, context: Tensor | None) -> Tensor:
        """Return the bias ``[m]``, or with the context's share ``[*B, m]``."""
        return self.bias if context is None else self.bias + context

    def certified_norm(self) -> float:
        """Return a proved bound of the norm, float64."""
        return certified_norm(self.weight) * (1 + _moved(self.weight.dtype))

    def in_dtype(self, dtype: torch.dtype) -> PreparedLinear:
        """Return the same numbers in another dtype."""
        return PreparedLinear(self.weight.to(dtype), self.bias.to(dtype))


class PreparedConv2d:
    """A zero-padded stride-1 convolution ``[*B, c_in, H, W] -> [*B, c_out, H, W]``."""

    def __init__(self, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> None:
        self.weight = weight
        self.bias = bias
        self.size = size
        self.padding = (weight.shape[2] // 2, weight.shape[3] // 2)

    def mv(self, v: Tensor) -> Tensor:
        """Map ``[*B, c_in, H, W]`` to ``[*B, c_out, H, W]``."""
        flat = v.reshape(-1, *v.shape[-3:])
        out = nn.functional.conv2d(flat, self.weight, padding=self.padding)
        return out.reshape(*v.shape[:-3], *out.shape[1:])

    def affine(self, v: Tensor, shift: Tensor) -> Tensor:
        """Map ``[*B, c_in, H, W]`` to ``[*B, c_out, H, W]`` and add the shift."""
        return self.mv(v) + shift

    def rmv(self, u: Tensor) -> Tensor:
        """Map ``[*B, c_out, H, W]`` to ``[*B, c_in, H, W]``."""
        flat = u.reshape(-1, *u.shape[-3:])
        out = nn.functional.conv_transpose2d(flat, self.weight, padding=self.padding)
        return out.reshape(*u.shape[:-3], *out.shape[1:])

    def shift(self, context: Tensor | None) -> Tensor:
        """Return ``[c_out, 1, 1]``, or with the context's share ``[*B, c_out, 1, 1]``."""
        total = self.bias if context is None else self.bias + context
        return total[..., None, None]

    def certified_norm(self) -> float:
        """Return a proved bound of the norm on images of ``size``, float64."""
        norm = certified_conv_norm(self.weight, self.size)
        return norm * (1 + _moved(self.weight.dtype))

    def in_dtype(self, dtype: torch.dtype) -> PreparedConv2d:
        """Return the same numbers in another dtype."""
        return PreparedConv2d(self.weight.to(dtype), self.bias.to(dtype), self.size)


class BoundedLayer(TakesNorms, nn.Module):
    """An affine layer that is normalised once a pass by a bound of its raw weight's norm.

    A subclass gives ``norm_problem`` and ``prepare``; one that bounds its norm in another way
    overrides ``norm_bound``.
    """

    weight: nn.Parameter
    max_norm: float
    rescales: bool = True
    """Whether the prepared weight is the raw one times a number, and may take its place."""

    def norm_problem(self) -> NormProblem:
        """Return the raw weight as an operator whose norm is wanted."""
        raise NotImplementedError(f"{type(self).__name__}.norm_problem")

    def norm_bound(self) -> Tensor:
        """Return an upper bound of the raw weight's norm, scalar, differentiable."""
        return norm_bound(self.norm_problem())

    def prepare(self, max_norm: float | None = None, norm: Tensor | None = None) -> PreparedMap:
        """Normalise the weight for one pass; a pure function of the weight.

        Args:
            max_norm: the largest norm for this pass; None for the layer's own.
            norm: what ``norm_bound`` would return, where it was bounded with others.
        """
        raise NotImplementedError(f"{type(self).__name__}.prepare")

    def _limited(self, max_norm: float | None, norm: Tensor | None) -> Tensor:
        """Return the weight, shrunk to ``max_norm`` where its bound exceeds it."""
        bound = self.norm_bound() if norm is None else norm
        limit = self.max_norm if max_norm is None else max_norm
        target = limit * (1 - margin_of(self.weight.dtype))
        # The factor of a large weight is below the normal numbers of float16.
        limited = working_precision(self.weight) * (target / bound.clamp_min(target))
        return limited.to(self.weight.dtype)


class LipschitzLinear(BoundedLayer):
    """An affine layer whose matrix has spectral norm at most ``max_norm``.

    Args:
        in_features: n.
        out_features: m.
        max_norm: largest norm, dimensionless; smaller weights are left as they are.
        steps: of the Gram iteration; None for 6, and 12 or 16 near a norm of 1.

    Example:
        >>> layer = LipschitzLinear(3, 2, max_norm=0.5)
        >>> _ = layer.weight.data.fill_(7.0)
        >>> bool(torch.linalg.matrix_norm(layer.prepare().weight, 2) <= 0.5)
        True

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, section 2.1, with an upper bound in place of
        power iteration.
    """

    takes_norms = True

    def __init__(
        self, in_features: int, out_features: int, max_norm: float, steps: int | None = None
    ) -> None:
        super().__init__()
        self.steps = steps
        self.in_features = in_features
        self.out_features = out_features
        self.max_norm = max_norm
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``torch.nn.Linear`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        _reset_bias(self.bias, self.in_features)

    def norm_problem(self) -> NormProblem:
        """Return the matrix."""
        return NormProblem.matrix(self.weight, self.steps or steps_for(self.max_norm))

    def prepare(self, max_norm: float | None = None, norm: Tensor | None = None) -> PreparedLinear:
        """Normalise the weight for one pass; see ``BoundedLayer.prepare``."""
        return PreparedLinear(self._limited(max_norm, norm), self.bias)

    def extra_repr(self) -> str:
        """Return sizes and the norm, for ``print``."""
        return f"{self.in_features}, {self.out_features}, max_norm={self.max_norm:.4g}"


class LipschitzConv2d(BoundedLayer):
    """A zero-padded, stride-1 convolution of norm at most ``max_norm`` on images of ``size``.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd, or a pair ``(k_h, k_w)`` of odd sizes; may exceed the image.
        size: image height and width, pixels; the bound depends on it.
        max_norm: largest norm, dimensionless.
        steps: of the Gram iteration; None for 6, and 12 or 16 near a norm of 1.

    Raises:
        ConfigurationError: the kernel is even.

    Example:
        >>> layer = LipschitzConv2d(1, 1, (1, 3), size=(1, 2), max_norm=0.5)
        >>> _ = layer.weight.data.fill_(7.0)  # on two pixels: [[7, 7], [7, 7]]
        >>> f"{layer.norm_bound().item():.3f}", f"{layer.prepare().weight[0, 0, 0, 0].item():.4f}"
        ('14.000', '0.2500')
    """

    takes_norms = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        size: tuple[int, int],
        max_norm: float,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = odd_pair(kernel_size)
        self.size = (size[0], size[1])
        self.max_norm = max_norm
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        _reset_bias(self.bias, self.in_channels * math.prod(self.kernel_size))

    def norm_problem(self) -> NormProblem:
        """Return the kernel and the size of the image."""
        return NormProblem.convolution(
            self.weight, self.size, self.steps or steps_for(self.max_norm)
        )

    def prepare(self, max_norm: float | None = None, norm: Tensor | None = None) -> PreparedConv2d:
        """Normalise the kernel for one pass; see ``BoundedLayer.prepare``."""
        return PreparedConv2d(self._limited(max_norm, norm), self.bias, self.size)

    def extra_repr(self) -> str:
        """Return sizes and the norm, for ``print``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"size={self.size}, max_norm={self.max_norm:.4g}"
        )


def layers_of(modules: nn.ModuleList) -> list[BoundedLayer]:
    """Return a branch's layers by their type."""
    return [layer for layer in modules if isinstance(layer, BoundedLayer)]


def prepare_layers(
    layers: Sequence[BoundedLayer], max_norms: Sequence[float], norms: Sequence[Tensor] | None
) -> list[PreparedMap]:
    """Prepare every layer, those that take norms with norms that were bounded together.

    Args:
        layers: any number of layers.
        max_norms: the largest norm of each.
        norms: a bound for every layer that takes one; None to bound them here.
    """
    takers = [layer for layer in layers if layer.takes_norms]
    bounds = iter(norm_bounds(takers) if norms is None else norms)
    return [
        layer.prepare(max_norm, next(bounds)) if layer.takes_norms else layer.prepare(max_norm)
        for layer, max_norm in zip(layers, max_norms, strict=True)
    ]


def shifts_size(maps: Sequence[PreparedMap], shifts: Sequence[Tensor], channel_dim: int) -> Tensor:
    """Return the sum of the norms of the shifts, each at every pixel: ``[*B]`` or a scalar."""
    total = shifts[0].new_zeros(())
    for map_, shift in zip(maps, shifts, strict=True):
        size = getattr(map_, "size", (1, 1))
        norm = shift.detach().flatten(channel_dim).norm(dim=-1)
        total = total + norm * math.sqrt(size[0] * size[1])
    return total


def write_back_(layers: Sequence[BoundedLayer], prepared: Sequence[PreparedMap]) -> None:
    """Write normalised weights back, where they are the raw ones times a number."""
    for layer, map_ in zip(layers, prepared, strict=True):
        if layer.rescales:
            layer.weight.data.copy_(map_.weight)


def odd_pair(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    """Return ``(k_h, k_w)``.

    Raises:
        ConfigurationError: a size is even or below 1, or there are not two of them.
    """
    pair = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(pair) != 2 or any(k % 2 == 0 or k < 1 for k in pair):
        raise ConfigurationError(
            f"kernel_size={kernel_size}; expected an odd size such as 1, 3 or 5, or a pair of "
            "them, so that zero padding keeps the image's size."
        )
    return pair[0], pair[1]


def _reset_bias(bias: Tensor, fan_in: int) -> None:
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(bias, -bound, bound)
