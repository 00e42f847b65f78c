"""Upper bounds of operator norms: cheap ones for every pass, certified ones in float64.

Nothing here is an estimate. ``*_bound`` is meant for ``prepare``: a pure function of the
weight, free of host synchronisation, whose value bounds the norm from above (up to float32
rounding, which ``MARGIN`` covers) and whose gradient is that of ``u^T W v`` at the leading
singular vectors. ``certified_*`` is meant for the certificate.

Reference:
    Delattre et al. 2023, arXiv:2305.16173 (Gram iteration); Sedghi et al. 2019,
    arXiv:1805.10408 (circular convolutions); Singla & Feizi 2021, arXiv:1911.10258.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 1e-5  # ask for c * (1 - MARGIN), so that float32 rounding cannot break c
GRAM_STEPS = 6
# Up to this many channels on the narrow side, the full frequency grid costs less than the
# convolution that it bounds.
FULL_GRID_CHANNELS = 12
_COARSE_GRID = 20
# Beyond this many pixels squared a grid of this side stands for every size, at a factor of
# 1.008 for 3x3 kernels: no image, however large a file says it is, costs more.
_LARGEST_GRID = 256


def gram_bound(weight: Tensor, steps: int = GRAM_STEPS) -> Tensor:
    """Bound the spectral norm of a matrix from above.

    Gram iteration: ``G <- G^T G`` squares every singular value, and the Frobenius norm,
    an upper bound, loses its slack: the excess is at most ``n**(1 / 2**(steps + 1)) - 1``.

    Args:
        weight: ``[m, n]``, real.
        steps: number of squarings.

    Returns:
        Scalar, at least the norm; its gradient is that of ``u^T W v``.

    Example:
        >>> bound = gram_bound(torch.diag(torch.tensor([3.0, 1.0])))
        >>> 3.0 <= bound.item() < 3.0001
        True
    """
    narrow = weight if weight.shape[0] >= weight.shape[1] else weight.mT  # [m, n], m >= n
    with torch.no_grad():
        bound, gram = _gram_iteration(narrow, steps)
        right = _leading_column(gram)  # [n]
        left = narrow @ right
        left = left / left.abs().max().clamp_min(torch.finfo(left.dtype).tiny)
        left = left / left.norm().clamp_min(torch.finfo(left.dtype).tiny)
    estimate = left @ (narrow @ right)
    return bound + (estimate - estimate.detach())


def _gram_iteration(weight: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the bound ``[*G]`` and the last Gram matrix ``[*G, n, n]``, scaled."""
    tiny = torch.finfo(weight.dtype).tiny
    # Entries of at most 1: squares of 1e30 would overflow, and logarithms of it lose digits.
    top = weight.abs().amax((-2, -1)).clamp_min(tiny)
    gram = weight / top[..., None, None]
    log_scale = torch.zeros_like(top)
    for _ in range(steps):
        scale = torch.linalg.matrix_norm(gram).clamp_min(tiny)
        gram = gram / scale[..., None, None]
        gram = gram.mH @ gram
        log_scale = 2 * (log_scale + torch.log(scale))
    # sigma <= exp(2^-t (l + ln |G_t|_F))
    exponent = (log_scale + torch.log(torch.linalg.matrix_norm(gram).clamp_min(tiny))) / 2**steps
    return top * torch.exp(exponent), gram


def _leading_column(gram: Tensor) -> Tensor:
    """Return the unit leading eigenvector ``[n]`` of a nearly rank-one Gram matrix."""
    index = gram.diagonal().real.argmax()
    column = gram.index_select(1, index.reshape(1)).squeeze(1)
    return column / column.norm().clamp_min(torch.finfo(gram.dtype).tiny)


def conv_bound(kernel: Tensor, size: tuple[int, int], steps: int = GRAM_STEPS) -> Tensor:
    """Bound the norm of a zero-padded stride-1 convolution from above.

    A zero-padded convolution is a compression of the circular one on an image larger by
    ``k - 1``, so the largest norm on that frequency grid bounds it. With many channels a
    coarse grid with its resolution-free factor, or the norms of the four unfoldings, is
    taken instead: looser, never lower.

    Args:
        kernel: ``[c_out, c_in, k_h, k_w]``, odd sizes, padding ``k // 2``.
        size: image height and width, pixels.
        steps: Gram steps at each frequency.

    Returns:
        Scalar, at least the norm; its gradient is that of ``u^T K(w) v`` at the worst
        frequency.

    Example:
        >>> bound = conv_bound(torch.ones(1, 1, 3, 3), (8, 8))  # all-ones kernel: below 9
        >>> 8.0 < bound.item() <= 9.0001
        True
    """
    if kernel.shape[-2:] == (1, 1):
        return gram_bound(kernel[:, :, 0, 0], steps)
    grid, factor = _bounded_grid(kernel, _full_grid(kernel, size))
    if min(kernel.shape[:2]) > FULL_GRID_CHANNELS:
        coarse_grid, coarse_factor = _coarse_grid(kernel, _COARSE_GRID)
        if coarse_grid[0] * coarse_grid[1] < grid[0] * grid[1]:
            grid, factor = coarse_grid, coarse_factor
    with torch.no_grad():
        symbols = _symbols(kernel, grid)  # [F, m, n], m >= n
        bounds, _ = _gram_iteration(symbols, steps)  # [F]
        bound = bounds.max() * factor
        worst = bounds.argmax()
        if factor > 1:
            bound = torch.minimum(bound, _unfolding_bound(kernel, steps))
    estimate = _norm_at(kernel, grid, worst, steps)
    return bound + (estimate - estimate.detach())


def _full_grid(kernel: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + kernel.shape[2] - 1, size[1] + kernel.shape[3] - 1


def _bounded_grid(kernel: Tensor, grid: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """Return the grid with factor 1, or a smaller one with its factor in place of a huge one."""
    coarse, factor = _coarse_grid(kernel, _LARGEST_GRID)
    most = max(_LARGEST_GRID**2, coarse[0] * coarse[1])
    return (coarse, factor) if grid[0] * grid[1] > most else (grid, 1.0)


def _coarse_grid(kernel: Tensor, side: int) -> tuple[tuple[int, int], float]:
    """Return a grid that does not depend on the image, and the factor that pays for it."""
    half = [k // 2 for k in kernel.shape[2:]]
    sides = [max(side, 20 * h) if h else 1 for h in half]
    factor = 1.0
    for h, n in zip(half, sides, strict=True):
        # u^H K(w) v is a trigonometric polynomial of degree h along each axis
        # (Pfister & Bresler 2018, arXiv:1807.10807).
        factor *= (1 - 2 * h / n) ** -0.5
    return (sides[0], sides[1]), factor


def _symbols(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the matrices of a half plane of frequencies, ``[F, m, n]`` with m >= n.

    A real kernel has conjugate matrices at opposite frequencies, with equal norms.
    """
    symbols = torch.fft.rfft2(kernel, s=grid).permute(2, 3, 0, 1).flatten(0, 1)
    return symbols if symbols.shape[1] >= symbols.shape[2] else symbols.mT


def _unfolding_bound(kernel: Tensor, steps: int) -> Tensor:
    out, inp, height, width = kernel.shape
    unfoldings = (
        kernel.reshape(out, inp * height * width),
        kernel.permute(0, 2, 3, 1).reshape(out * height * width, inp),
        kernel.permute(0, 2, 1, 3).reshape(out * height, inp * width),
        kernel.permute(0, 3, 1, 2).reshape(out * width, inp * height),
    )
    norms = [gram_bound(matrix, steps) for matrix in unfoldings]
    return torch.stack(norms).min() * (height * width) ** 0.5


def _norm_at(kernel: Tensor, grid: tuple[int, int], index: Tensor, steps: int) -> Tensor:
    """Return ``Re u^H K(w) v`` at one frequency, differentiable in the kernel, real arithmetic."""
    half = grid[1] // 2 + 1
    row, column = index // half, index % half
    like = {"device": kernel.device, "dtype": kernel.dtype}
    rows = torch.arange(kernel.shape[2], **like) * row / grid[0]
    columns = torch.arange(kernel.shape[3], **like) * column / grid[1]
    angle = -2 * torch.pi * (rows[:, None] + columns)  # [k_h, k_w]
    real = (kernel * torch.cos(angle)).sum((2, 3))  # [c_out, c_in]
    imaginary = (kernel * torch.sin(angle)).sum((2, 3))
    # [[A, -B], [B, A]] has the singular values of A + iB, each twice.
    top = torch.cat([real, -imaginary], 1)
    bottom = torch.cat([imaginary, real], 1)
    return gram_bound(torch.cat([top, bottom], 0), steps)


def certified_norm(weight: Tensor) -> float:
    """Return a proved upper bound of the spectral norm of ``[m, n]``, computed in float64.

    Example:
        >>> f"{certified_norm(torch.diag(torch.tensor([3.0, 4.0]))):.6f}"
        '4.000000'
    """
    matrix = weight.detach().double()
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    top = torch.linalg.eigvalsh(matrix.mT @ matrix)[-1].clamp_min(0).sqrt().item()
    return top * (1 + _gram_rounding(weight.shape[0] * weight.shape[1]))


def _gram_rounding(entries: int) -> float:
    return max(1e-10, entries * 2.0**-53)


def certified_conv_norm(kernel: Tensor, size: tuple[int, int]) -> float:
    """Return a proved upper bound of a zero-padded convolution's norm, float64, full grid.

    For 'same' padding a circular image of ``N + k // 2`` avoids the wrap already: a second
    bound, and the smaller of the two holds.

    Args:
        kernel: ``[c_out, c_in, k_h, k_w]``, odd sizes, padding ``k // 2``.
        size: image height and width, pixels.
    """
    kernel = kernel.detach().double()
    if kernel.shape[-2:] == (1, 1):
        return certified_norm(kernel[:, :, 0, 0])
    tight = (size[0] + kernel.shape[2] // 2, size[1] + kernel.shape[3] // 2)
    grids = [_full_grid(kernel, size)]
    if tight[0] >= kernel.shape[2] and tight[1] >= kernel.shape[3]:  # the kernel must not alias
        grids.append(tight)
    bounded = [_bounded_grid(kernel, grid) for grid in grids]
    return min(factor * _largest_symbol(kernel, grid) for grid, factor in bounded)


def _largest_symbol(kernel: Tensor, grid: tuple[int, int]) -> float:
    top = 0.0
    for symbols in _symbols(kernel, grid).split(4096):
        gram = symbols.mH @ symbols
        top = max(top, torch.linalg.eigvalsh(gram)[:, -1].max().clamp_min(0).item())
    # The transform's own rounding grows with the logarithm of the grid: 1e-10 covers it.
    return top**0.5 * (1 + _gram_rounding(kernel.shape[0] * kernel.shape[1] * 16))
