"""Upper bounds of the norm of a zero-padded, stride-1 convolution on images of a known size.

Three views of the operator T, the cheapest that is tight enough; shapes alone decide:

* Kernels that reach one pixel only: a matrix.
* Small images: ``T^T T`` itself, without slack.
* Else the symbol ``K(w) = sum_a K_a exp(-i w.a)``. Let an axis have N pixels and the kernel h
  taps on each side. T is a compression of the circular convolution on ``M = N + h`` pixels,
  the fewest at which no tap wraps onto a pixel that it should not see; the same holds for
  every theta-circular one, whose wrapped taps are multiplied by ``exp(i theta)``, for such taps
  meet padding only. Hence ``|T| <= max_j |K((2 pi j + theta) / M)|`` for every theta, the least
  of which is taken over theta in {0, pi} for each axis: the points of parity 0 and 1 among 2M.
  A kernel of ones has its norm at theta = pi exactly, where theta = 0 is loose.

On large images, a grid of n < M points an axis stands for every size: ``Re e^{i s} u^H K(w) v``
is a real trigonometric polynomial of degree h in each axis, and such a polynomial stays above
``cos(h d)`` times its maximum at distances d <= pi / h from it (M. Riesz); the next point of the
grid is at most pi / n away, whence a factor ``1 / cos(pi h / n)``.

Reference:
    Sedghi et al. 2019, arXiv:1805.10408 (circular convolutions); Delattre et al. 2023,
    arXiv:2305.16173 (Gram iteration at each frequency); Ehlich & Zeller 1964, Math. Z. 86:41
    (polynomials between grid points).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.lipschitz.norms import (
    GRAM_STEPS,
    certified_eigenvalue,
    eigenvalue_bound,
    gram_bound,
    gram_iteration,
    gram_rounding,
    leading_column,
    power_of_two_scaled,
    rounding_of,
    unit,
    working_precision,
)

# Side of T^T T up to which it is formed: a millisecond in training, a tenth of a second in the
# certificate.
DENSE_SIDE = 128
CERTIFIED_DENSE_SIDE = 1024
# Up to this many channels on the narrow side, a fine grid costs less than the convolution
# that it bounds.
FULL_GRID_CHANNELS = 12
# Most points an axis in multiples of the taps on a side: factors of 1.012, 1.0012, 1.00008.
_MANY_CHANNELS_POINTS, _TRAINING_POINTS, _CERTIFIED_POINTS = 20, 64, 256
# Both parities while 2M is at most this: beyond, the better of the two gains below 1 %.
_BOTH_PARITIES_POINTS = 36


def conv_bound(kernel: Tensor, size: tuple[int, int], steps: int = GRAM_STEPS) -> Tensor:
    """Bound the norms of zero-padded stride-1 convolutions from above.

    Args:
        kernel: ``[*G, c_out, c_in, k_h, k_w]``, odd sizes, padding ``k // 2``; one kernel, or
            equal shapes stacked. The kernel may be larger than the image.
        size: image height and width, pixels.
        steps: Gram steps, at each frequency where the symbol is taken.

    Returns:
        ``[*G]``, at least the norms; the gradient is that of ``u^T T v`` at the leading
        vectors, or of ``u^H K(w) v`` at the worst frequency.

    Example:
        >>> bound = conv_bound(torch.ones(1, 1, 3, 3), (8, 8))  # (1 + 2 cos(pi / 9))^2
        >>> f"{bound.item():.3f}"
        '8.291'
    """
    kernel, size = reduced(working_precision(kernel), size)
    if kernel.shape[-2:] == (1, 1):
        return gram_bound(kernel[..., 0, 0], steps)
    most = _TRAINING_POINTS if kernel.shape[-3] <= FULL_GRID_CHANNELS else _MANY_CHANNELS_POINTS
    grid = _grid(kernel, size, most)
    # Squarings of one matrix of side c N N', against those of a complex one of side c at each
    # frequency, which cost four times the real ones.
    dense_cost = (size[0] * size[1]) ** 3
    if _dense_side(kernel, size) <= DENSE_SIDE or dense_cost <= 4 * grid.points[0] * grid.half:
        return _dense_bound(kernel, size, steps)
    return _symbol_bound(kernel, grid, steps)


def reduced(kernel: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Return a smaller kernel and a size with the same norm, ``c_out >= c_in``.

    Taps further out than the image is long meet padding only. Exchanging input and output
    channels gives the adjoint of the reversed convolution, and exchanging the axes of kernel
    and image permutes pixels: both keep the norm. The last axis has more than one tap, if any.
    """
    for axis, pixels in zip((-2, -1), size, strict=True):
        beyond = kernel.shape[axis] // 2 - (pixels - 1)
        if beyond > 0:
            kernel = kernel.narrow(axis, beyond, kernel.shape[axis] - 2 * beyond)
    if kernel.shape[-4] < kernel.shape[-3]:
        kernel = kernel.transpose(-4, -3)
    if kernel.shape[-1] == 1:
        return kernel.mT, (size[1], size[0])
    return kernel, (size[0], size[1])


# --- the operator itself ------------------------------------------------------------------


def _dense_side(kernel: Tensor, size: tuple[int, int]) -> int:
    return kernel.shape[-3] * size[0] * size[1]


def _dense_bound(kernel: Tensor, size: tuple[int, int], steps: int) -> Tensor:
    stack, (channels, *taps) = kernel.shape[:-4], kernel.shape[-3:]
    with torch.no_grad():
        top = kernel.abs().amax((-4, -3, -2, -1)).clamp_min(torch.finfo(kernel.dtype).tiny)
        gram = _operator_gram(kernel / top[..., None, None, None, None], size)
        largest, gram = eigenvalue_bound(gram, steps - 1)
        bound = top * largest.sqrt() * (1 + rounding_of(kernel.dtype))
        right = leading_column(gram).reshape(-1, channels, *size)
        padding = (taps[0] // 2, taps[1] // 2)
        patches = torch.nn.functional.unfold(right, tuple(taps), padding=padding)
        patches = patches.reshape(*stack, *patches.shape[1:])  # [*G, c_in k_h k_w, H W]
        left = kernel.flatten(-3) @ patches  # T v, [*G, c_out, H W]
        left = unit(left.flatten(-2)).reshape(left.shape)
    estimate = (left * (kernel.flatten(-3) @ patches)).sum((-2, -1))
    return bound + (estimate - estimate.detach())


def _operator_gram(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``T^T T``, ``[*G, n, n]`` with n = c_in H W, without ever forming T.

    Entry (j, j') sums ``K_a . K_a'`` over the pairs of taps with ``j - a = j' - a'`` inside the
    image, axis by axis: two products with tables of zeros and ones.
    """
    stack, (out, channels, rows, columns) = kernel.shape[:-4], kernel.shape[-4:]
    height, width = size
    flat = kernel.reshape(*stack, out, channels * rows * columns)
    # Products of taps over the output channels: [*G, i, a, b, i', a', b'].
    taps = (flat.mT @ flat).reshape(*stack, *(channels, rows, columns) * 2)
    s = len(stack)
    taps = taps.movedim((s + 1, s + 4), (s, s + 1))  # [*G, a, a', i, b, i', b']
    taps = taps.movedim((s + 3, s + 5), (-2, -1))  # [*G, a, a', i, i', b, b']
    along_width = taps.flatten(-2) @ _meetings(columns, width, kernel).mT  # ..., W W'
    along_width = along_width.reshape(*stack, rows * rows, -1)
    gram = _meetings(rows, height, kernel) @ along_width  # [*G, H H', i i' W W']
    gram = gram.reshape(*stack, height, height, channels, channels, width, width)
    gram = gram.movedim((s + 2, s, s + 4, s + 3, s + 1, s + 5), tuple(range(s, s + 6)))
    side = channels * height * width
    return gram.reshape(*stack, side, side)


def _meetings(taps: int, pixels: int, like: Tensor) -> Tensor:
    """Return ``[N N', k k']``: 1 where tap a of pixel j and tap a' of j' meet in the image.

    Pixel j contributes to pixel ``j - a`` through the tap of offset a (cross-correlation).
    """
    pixel = torch.arange(pixels, device=like.device)
    tap = torch.arange(taps, device=like.device) - taps // 2
    place = pixel[:, None] - tap  # [N, k]
    inside = (place >= 0) & (place < pixels)
    met = place[:, None, :, None] == place[None, :, None, :]  # [N, N', k, k']
    met = met & inside[:, None, :, None]
    return met.reshape(pixels * pixels, taps * taps).to(like.dtype)


# --- the symbol ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Frequencies ``2 pi (row, column) / points``, and what their largest norm bounds.

    Args:
        points: along each axis.
        parities: 2 on an axis where even and odd points are two grids, each enough; else 1.
        factor: what the grid may miss.
    """

    points: tuple[int, int]
    parities: tuple[int, int]
    factor: float

    @property
    def half(self) -> int:
        """Columns of a half plane: opposite frequencies have conjugate matrices."""
        return self.points[1] // 2 + 1


def _grid(kernel: Tensor, size: tuple[int, int], most: int) -> _Grid:
    """Choose the points of each axis by its length, at most ``most`` for each tap on a side."""
    points, parities, factor = [], [], 1.0
    for pixels, taps in zip(size, kernel.shape[-2:], strict=True):
        half = taps // 2
        exact, limit = pixels + half, most * half
        if half == 0:
            points.append(1)
            parities.append(1)
        elif 2 * exact <= min(limit, _BOTH_PARITIES_POINTS):
            points.append(2 * exact)
            parities.append(2)
        elif exact <= limit:
            points.append(exact)
            parities.append(1)
        else:
            points.append(limit)
            parities.append(1)
            factor /= math.cos(math.pi * half / limit)
        assert points[-1] >= taps, "rfft2 would crop the kernel"
    return _Grid((points[0], points[1]), (parities[0], parities[1]), factor)


def _symbols(kernel: Tensor, grid: _Grid) -> Tensor:
    """Return the matrices of a half plane of frequencies, ``[*G, rows, columns, m, n]``."""
    return torch.fft.rfft2(kernel, s=grid.points).movedim((-2, -1), (-4, -3))


def _worst(norms: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Return the bound ``[*G]`` and the place ``[*G]``, row * half + column, that attains it.

    The largest norm of each parity bounds the operator; the least of these is taken.
    """
    values, places = [], []
    for row, column in itertools.product(*map(range, grid.parities)):
        part = norms[..., row :: grid.parities[0], column :: grid.parities[1]]
        value, index = part.flatten(-2).max(-1)
        rows = index // part.shape[-1] * grid.parities[0] + row
        columns = index % part.shape[-1] * grid.parities[1] + column
        values.append(value)
        places.append(rows * grid.half + columns)
    least, parity = torch.stack(values, -1).min(-1)
    place = torch.stack(places, -1).gather(-1, parity[..., None])[..., 0]
    return least * grid.factor, place


def _symbol_bound(kernel: Tensor, grid: _Grid, steps: int) -> Tensor:
    with torch.no_grad():
        norms, gram = gram_iteration(_symbols(kernel, grid), steps)
        bound, place = _worst(norms, grid)
        side = gram.shape[-1]
        gram = gram.flatten(-4, -3)  # [*G, F, n, n]
        index = place[..., None, None, None].expand(*place.shape, 1, side, side)
        right = leading_column(gram.gather(-3, index)[..., 0, :, :])  # [*G, n], complex
        right = torch.cat([right.real, right.imag], -1)[..., None]
        left = _real_symbol(kernel, grid, place) @ right
        left = unit(left[..., 0])[..., None]
    estimate = (left * (_real_symbol(kernel, grid, place) @ right)).sum((-2, -1))
    return bound + (estimate - estimate.detach())


def _real_symbol(kernel: Tensor, grid: _Grid, place: Tensor) -> Tensor:
    """Return ``[[A, -B], [B, A]]`` for ``K(w) = A + iB``, ``[*G, 2m, 2n]``, in real arithmetic."""
    like = {"device": kernel.device, "dtype": kernel.dtype}
    row, column = place // grid.half / grid.points[0], place % grid.half / grid.points[1]
    rows = torch.arange(kernel.shape[-2], **like) * row[..., None]  # [*G, k_h]
    columns = torch.arange(kernel.shape[-1], **like) * column[..., None]
    angle = -2 * torch.pi * (rows[..., :, None] + columns[..., None, :])
    angle = angle[..., None, None, :, :].to(kernel.dtype)
    real = (kernel * torch.cos(angle)).sum((-2, -1))  # [*G, m, n]
    imaginary = (kernel * torch.sin(angle)).sum((-2, -1))
    top = torch.cat([real, -imaginary], -1)
    return torch.cat([top, torch.cat([imaginary, real], -1)], -2)


# --- the certificate ----------------------------------------------------------------------


def certified_conv_norm(kernel: Tensor, size: tuple[int, int]) -> float:
    """Return a proved upper bound of a zero-padded convolution's norm, computed in float64.

    The norm itself, up to rounding, where the image is small: 1,024 entries on the narrow side.

    Args:
        kernel: ``[c_out, c_in, k_h, k_w]``, odd sizes, padding ``k // 2``.
        size: image height and width, pixels.

    Returns:
        The bound; infinite where an entry of the kernel is not finite.

    Example:
        >>> f"{certified_conv_norm(torch.ones(1, 1, 1, 3), (1, 2)):.6f}"  # all ones, 2 x 2
        '2.000000'
    """
    kernel, scale = power_of_two_scaled(kernel)
    if not math.isfinite(scale):
        return math.inf
    kernel, size = reduced(kernel, size)
    if _dense_side(kernel, size) <= CERTIFIED_DENSE_SIDE:
        # Sums over the output channels, then over the pairs of taps that meet.
        terms = kernel.shape[0] + kernel.shape[2] * kernel.shape[3]
        return scale * certified_eigenvalue(_operator_gram(kernel, size), terms) ** 0.5
    return scale * _certified_symbol_norm(kernel, _grid(kernel, size, _CERTIFIED_POINTS))


def _certified_symbol_norm(kernel: Tensor, grid: _Grid) -> float:
    symbols = _symbols(kernel, grid)
    gram = torch.cat([part.mH @ part for part in symbols.flatten(0, 1).split(512)])
    values = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0)
    top = _worst(values.sqrt().reshape(symbols.shape[:2]), grid)[0].item()
    # The transform's own rounding, eps times the logarithm of the grid times |K(w)|_F <=
    # sqrt(n) sigma, is far below 1e-10; a complex product has four real ones.
    return top * (1 + gram_rounding(4 * kernel.shape[0], kernel.shape[1]))
