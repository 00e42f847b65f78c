"""Upper bounds of the spectral norm of a matrix: a cheap one for every pass, a proof in float64.

Nothing here is an estimate. ``*_bound`` is meant for ``prepare``: a pure function of the
weight, free of host synchronisation, whose value bounds the norm from above and whose gradient
is that of ``u^T W v`` at the leading singular vectors. ``certified_*`` is meant for the
certificate. Convolutions have a file of their own.

Reference:
    Delattre et al. 2023, arXiv:2305.16173 (Gram iteration); Higham 2002, Accuracy and Stability
    of Numerical Algorithms, section 3.5 (rounding of products).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN = 1e-5  # ask for c * (1 - MARGIN), so that rounding of the prepared weight cannot break c
GRAM_STEPS = 6
_STAGES = ((0.0055, GRAM_STEPS), (0.0004, 12), (0.0, 16))  # least 1 - norm, and the steps for it


def rounding_of(dtype: torch.dtype) -> float:
    """Return how far, relative to itself, rounding may move a bound computed in ``dtype``.

    The products of a Gram matrix are rounded by about ``eps sqrt(terms)``; every further step
    squares the matrix and halves what the step's own rounding adds to the root. 32 eps is ten
    times the largest error that the tests find; ``certified_norm`` relies on a proof instead.
    """
    return 32 * torch.finfo(dtype).eps


def margin_of(dtype: torch.dtype) -> float:
    """Return by how much less than c to ask for, so that rounding to ``dtype`` cannot break c.

    Rounding to half precision moves each entry by half an eps: the norm by about as much.
    """
    return max(MARGIN, 2 * torch.finfo(dtype).eps)


def gram_bound(weight: Tensor, steps: int = GRAM_STEPS) -> Tensor:
    """Bound the spectral norm of matrices from above.

    Gram iteration: ``G <- G^T G`` squares every singular value, and the Frobenius norm, an
    upper bound, loses its slack: the excess is at most ``n**(1 / 2**(steps + 1)) - 1``.

    Args:
        weight: ``[*G, m, n]``, real; one matrix, or equal shapes stacked.
        steps: number of squarings, at least 1.

    Returns:
        ``[*G]``, at least the norms; the gradient is that of ``u^T W v``.

    Example:
        >>> bound = gram_bound(torch.diag(torch.tensor([3.0, 1.0])))
        >>> 3.0 <= bound.item() < 3.0001
        True
    """
    narrow = working_precision(weight if weight.shape[-2] >= weight.shape[-1] else weight.mT)
    with torch.no_grad():
        bound, gram = gram_iteration(narrow, steps)
        right = leading_column(gram)  # [*G, n]
        left = unit((narrow @ right[..., None])[..., 0])  # [*G, m]
    estimate = (left * (narrow @ right[..., None])[..., 0]).sum(-1)
    return bound + (estimate - estimate.detach())


def steps_for(max_norm: float) -> int:
    """Return the Gram steps with which a bound is tight enough for a layer of this norm.

    What a bound leaves unused falls by half a step; near a norm of 1 it must be small beside
    ``1 - max_norm``, or L would not be what was asked for. Three stages: each is a compilation.

    Example:
        >>> steps_for(0.98 ** (1 / 3)), steps_for(0.99 ** (1 / 3)), steps_for(0.9999 ** (1 / 3))
        (6, 12, 16)
    """
    gap = 1 - max_norm if max_norm < 1 else 1.0
    return next(steps for least, steps in _STAGES if gap >= least)


def working_precision(weight: Tensor) -> Tensor:
    """Return the weight in float32 or better: half precision cannot carry a bound."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def gram_iteration(weight: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return bounds ``[*G]`` of the norms, and the last Gram matrices ``[*G, n, n]``, scaled.

    Args:
        weight: ``[*G, m, n]``, real or complex, m >= n.
        steps: number of squarings, the first of which is ``W^H W``.
    """
    # Entries of at most 1: squares of 1e30 would overflow, and logarithms of it lose digits.
    top = weight.abs().amax((-2, -1)).clamp_min(torch.finfo(weight.dtype).tiny)
    weight = weight / top[..., None, None]
    if weight.shape[-1] == 1:  # the norm of a column needs no iteration
        norm = torch.linalg.vector_norm(weight, dim=(-2, -1))
        return top * norm * (1 + rounding_of(weight.dtype)), torch.ones_like(weight[..., :1, :])
    largest, gram = eigenvalue_bound(weight.mH @ weight, steps - 1)
    return top * largest.sqrt() * (1 + rounding_of(weight.dtype)), gram


def eigenvalue_bound(gram: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """Bound the largest eigenvalue of positive semidefinite matrices from above.

    Args:
        gram: ``[*G, n, n]``, Hermitian; its entries neither overflow nor vanish when squared.
        squarings: how often to square; each halves the logarithm of the slack.

    Returns:
        Bounds ``[*G]`` and the last power of the matrix, scaled, ``[*G, n, n]``.
    """
    tiny = torch.finfo(gram.dtype).tiny
    log_scale = torch.zeros_like(gram[..., 0, 0].real)
    for _ in range(squarings):
        scale = torch.linalg.matrix_norm(gram).clamp_min(tiny)
        gram = gram / scale[..., None, None]
        gram = gram.mH @ gram
        log_scale = 2 * (log_scale + torch.log(scale))
    # The Frobenius norm and, for a Hermitian matrix, the largest row sum: the latter has no
    # slack where the former is worst, at multiples of the identity.
    row_sum = gram.abs().sum(-1).amax(-1)
    norm = torch.minimum(torch.linalg.matrix_norm(gram), row_sum).clamp_min(tiny)
    # lambda <= exp(2^-t (l + ln |G_t|))
    return torch.exp((log_scale + torch.log(norm)) / 2**squarings), gram


def leading_column(gram: Tensor) -> Tensor:
    """Return unit leading eigenvectors ``[*G, n]`` of nearly rank-one Gram matrices."""
    index = gram.diagonal(dim1=-2, dim2=-1).real.argmax(-1)  # [*G]
    index = index[..., None, None].expand(*gram.shape[:-1], 1)
    return unit(gram.gather(-1, index)[..., 0])


def unit(vectors: Tensor) -> Tensor:
    """Return vectors ``[*G, n]`` of length 1; zero stays zero."""
    tiny = torch.finfo(vectors.dtype).tiny
    vectors = vectors / vectors.abs().amax(-1, keepdim=True).clamp_min(tiny)
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(tiny)


def certified_norm(weight: Tensor) -> float:
    """Return a proved upper bound of the spectral norm of ``[m, n]``, computed in float64.

    Infinite where an entry is not finite: nothing is proved of such a weight.

    Example:
        >>> f"{certified_norm(torch.diag(torch.tensor([3.0, 4.0]))):.6f}"
        '4.000000'
    """
    matrix, scale = power_of_two_scaled(weight)
    if not math.isfinite(scale):
        return math.inf
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    top = certified_eigenvalue(matrix.mT @ matrix, terms=matrix.shape[0])
    return scale * top**0.5


def power_of_two_scaled(weight: Tensor) -> tuple[Tensor, float]:
    """Return the weight in float64 with entries of at most 1, and the power of two taken out.

    Exact, but for entries 1e-300 times the largest; without it 1e-170 would vanish squared. The
    scale is infinite where an entry is not finite.
    """
    matrix = weight.detach().double()
    top = matrix.abs().max().item() if matrix.numel() else 0.0
    if not math.isfinite(top):
        return matrix, math.inf
    exponent = math.frexp(top)[1]
    # In two halves, for 2^1074 is not a float.
    half = exponent // 2
    return matrix * 2.0**-half * 2.0 ** (half - exponent), math.ldexp(1.0, exponent)


def certified_eigenvalue(gram: Tensor, terms: int) -> float:
    """Return a proved bound of the largest eigenvalue of ``T^H T``, from its computed entries.

    Args:
        gram: ``[*F, n, n]``, float64 or complex; the largest over the batch counts.
        terms: rounded additions behind an entry of the Gram matrix.
    """
    top = torch.linalg.eigvalsh(gram)[..., -1].max().clamp_min(0).item()
    return top * (1 + gram_rounding(terms, gram.shape[-1])) ** 2


def gram_rounding(terms: int, side: int) -> float:
    """Return what rounding adds to a norm that is the root of a Gram matrix's eigenvalue.

    Entries are off by ``terms 2^-53`` times those of ``|T|^T |T|``, whose norm is at most
    ``|T|_F^2 <= side sigma^2``: half of that product on sigma. The other half is for
    ``eigvalsh``, backward stable with a factor far below ``side``.
    """
    return max(1e-10, terms * side * 2.0**-53)
