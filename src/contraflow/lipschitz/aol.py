"""Almost-orthogonal layers: a norm of at most 1 by construction, without any iteration.

The columns of a matrix are shrunk until no row of ``|W^T W|`` weighs more than 1. The sum of a
row is a bound on its own (Gershgorin), so nothing is iterated, nothing depends on the size of
an image, and every factor needs the entries of its own column's products alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow.lipschitz.convolutions import certified_conv_norm
from contraflow.lipschitz.layers import (
    BoundedLayer,
    LipschitzConv2d,
    LipschitzLinear,
    PreparedConv2d,
    PreparedLinear,
)
from contraflow.lipschitz.norms import margin_of, working_precision

# Added to the sums: columns with entries below 1e-5 shrink to zero instead of being blown up to
# the full norm, so that their gradients stay finite. It can only lower the norm.
_FLOOR = 1e-10
# Where the frequency grid of a convolution's certificate would take more multiplications than
# this (several seconds), the sums of the overlaps stand for it.
_LARGEST_CERTIFICATE = 2e10


def overlaps(kernel: Tensor) -> Tensor:
    """Return ``sum_{o,e} K[o,i,e] K[o,j,e+d]`` for all channels i, j and shifts d.

    Args:
        kernel: ``[c_out, c_in, k_h, k_w]``.

    Returns:
        ``[c_in, c_in, 2 k_h - 1, 2 k_w - 1]``: the kernel of ``K^T K`` on an endless image.

    Example:
        >>> overlaps(torch.ones(1, 1, 1, 2)).flatten().tolist()
        [1.0, 2.0, 1.0]
    """
    columns = kernel.transpose(0, 1)  # [c_in, c_out, k_h, k_w]
    padding = (kernel.shape[2] - 1, kernel.shape[3] - 1)
    if (
        kernel.is_cuda
    ):  # where convolutions in float32 keep ten bits by default: too few for a bound
        wide = columns.double()
        return nn.functional.conv2d(wide, wide, padding=padding).to(kernel.dtype)
    return nn.functional.conv2d(columns, columns, padding=padding)


def overlap_bound(kernel: Tensor, weights: Tensor | None = None) -> Tensor:
    """Bound the norm of a convolution from above, for any image and any zero padding.

    ``K^T K`` is a symmetric operator whose row of channel i has the absolute sum
    ``s_i = sum_{j,d} |overlaps[i,j,d]| q_j / q_i``, at most; for every positive q the largest
    s is a bound of its norm. Padding less than the kernel drops outputs, which lowers it.

    Args:
        kernel: ``[c_out, c_in, k_h, k_w]``, or a matrix ``[m, n]``.
        weights: q, ``[c_in]``; None for ones.

    Returns:
        Scalar, at least the norm.
    """
    sums = _row_sums(kernel, weights)
    if weights is not None:
        sums = sums / weights
    return sums.max().sqrt()


def _row_sums(weight: Tensor, q: Tensor | None = None) -> Tensor:
    if weight.ndim == 2:
        magnitudes = (weight.mT @ weight).abs()  # [n, n]
    else:
        magnitudes = overlaps(weight).abs().sum((2, 3))  # [c_in, c_in]
    return magnitudes.sum(1) if q is None else magnitudes @ q


def _almost_orthogonal(weight: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Return the weight with its inputs rescaled, and the factors ``[n]``."""
    working = working_precision(weight)
    factors = torch.rsqrt(_row_sums(working) + _FLOOR)
    shape = (-1,) + (1,) * (weight.ndim - 2)
    scale = (max_norm * (1 - margin_of(weight.dtype)) * factors).reshape(shape)
    return (working * scale).to(weight.dtype), factors


class PreparedAOLConv2d(PreparedConv2d):
    """A convolution that keeps its factors, with which the sums of its overlaps are even."""

    def __init__(
        self, weight: Tensor, bias: Tensor, size: tuple[int, int], factors: Tensor
    ) -> None:
        super().__init__(weight, bias, size)
        self.factors = factors

    def certified_norm(self) -> float:
        """Return a proved bound of the norm, float64; on large images from the overlaps alone."""
        kernel, q = self.weight.detach().double(), 1 / self.factors.detach().double()
        # Sums of products of c_out k^2 terms, all of one sign after the absolute value.
        rounding = 4 * (kernel[0].numel() + kernel[:, 0].numel()) * 2.0**-53
        largest = overlap_bound(kernel, q).item() * (1 + max(1e-10, rounding))
        narrow, wide = sorted(kernel.shape[:2])
        pixels = (self.size[0] + kernel.shape[2]) * (self.size[1] + kernel.shape[3])
        if pixels * narrow * narrow * (wide + 10 * narrow) > _LARGEST_CERTIFICATE:
            return largest
        return min(largest, certified_conv_norm(kernel, self.size))

    def in_dtype(self, dtype: torch.dtype) -> PreparedAOLConv2d:
        """Return the same numbers in another dtype."""
        return PreparedAOLConv2d(
            self.weight.to(dtype), self.bias.to(dtype), self.size, self.factors.to(dtype)
        )


class AOLLinear(BoundedLayer):
    """An affine layer whose matrix is ``max_norm W diag(sum_j |W^T W|_ij)^(-1/2)``.

    Args:
        in_features: n.
        out_features: m.
        max_norm: the norm that is not exceeded, dimensionless.

    Example:
        >>> layer = AOLLinear(3, 2, max_norm=0.5)
        >>> _ = layer.weight.data.fill_(7.0)
        >>> f"{torch.linalg.matrix_norm(layer.prepare().weight, 2).item():.4f}"
        '0.5000'

    Reference:
        Prach & Lampert 2022, arXiv:2208.03160, Theorem 1.
    """

    rescales = False

    def __init__(self, in_features: int, out_features: int, max_norm: float) -> None:
        super().__init__()
        self.max_norm = max_norm
        like = LipschitzLinear(in_features, out_features, max_norm)
        self.weight, self.bias = like.weight, like.bias

    def prepare(self, max_norm: float | None = None, norm: Tensor | None = None) -> PreparedLinear:
        """Rescale the columns for one pass; a pure function of the weight.

        Args:
            max_norm: the largest norm for this pass; None for the layer's own.
            norm: not needed.
        """
        limit = self.max_norm if max_norm is None else max_norm
        return PreparedLinear(_almost_orthogonal(self.weight, limit)[0], self.bias)

    def extra_repr(self) -> str:
        """Return sizes and the norm, for ``print``."""
        out, inp = self.weight.shape
        return f"{inp}, {out}, max_norm={self.max_norm:.4g}"


class AOLConv2d(BoundedLayer):
    """A zero-padded, stride-1 convolution of norm at most ``max_norm`` on images of any size.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd.
        size: image height and width, pixels; for the certificate, which may be tighter there.
        max_norm: the norm that is not exceeded, dimensionless.

    Raises:
        ConfigurationError: the kernel is even.

    Reference:
        Prach & Lampert 2022, arXiv:2208.03160, Theorem 2.
    """

    rescales = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        size: tuple[int, int],
        max_norm: float,
    ) -> None:
        super().__init__()
        like = LipschitzConv2d(in_channels, out_channels, kernel_size, size, max_norm)
        self.size = like.size
        self.max_norm = max_norm
        self.weight, self.bias = like.weight, like.bias

    def prepare(
        self, max_norm: float | None = None, norm: Tensor | None = None
    ) -> PreparedAOLConv2d:
        """Rescale the input channels for one pass; a pure function of the kernel.

        Args:
            max_norm: the largest norm for this pass; None for the layer's own.
            norm: not needed.
        """
        limit = self.max_norm if max_norm is None else max_norm
        # [c_out, c_in, k_h, k_w] with one factor for each input channel
        weight, factors = _almost_orthogonal(self.weight, limit)
        return PreparedAOLConv2d(weight, self.bias, self.size, factors)

    def extra_repr(self) -> str:
        """Return sizes and the norm, for ``print``."""
        out, inp, *kernel = self.weight.shape
        return (
            f"{inp}, {out}, kernel_size={tuple(kernel)}, size={self.size}, "
            f"max_norm={self.max_norm:.4g}"
        )
