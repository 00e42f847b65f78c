"""A proved bound of a whole chain of layers, tighter than the product of their norms.

An activation with slopes in [0, 1] moves no pair of points independently of its neighbours:
``dw = s dv`` with ``0 <= s <= 1`` gives ``dw (dv - dw) >= 0`` for every unit. Weighted by
multipliers and added up, these inequalities turn the bound of the composition into the
positive semidefiniteness of one matrix of the weights.

Reference:
    Fazlyab et al. 2019, arXiv:1906.04893 (the matrix); Wang & Manchester 2023,
    arXiv:2301.11526 (networks that satisfy it by construction); Rump 2006, BIT 46
    (positive definiteness proved in floating point).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from contraflow.lipschitz.norms import certified_norm

_UNIT = 2.0**-53
# How far the sum of squares in a hidden layer stays from its limit, so that rounding cannot
# make the elimination singular.
_SLACK = 1e-7
_EXCESSES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


def certified_chain_norm(weights: Sequence[Tensor], multipliers: Sequence[Tensor]) -> float:
    """Return a proved bound of Lip(``W_n phi ... phi W_0``), phi of slopes in [0, 1], float64.

    With ``V_k = S_k W_k S_{k-1}^-1`` (S a positive diagonal for every hidden layer, identity at
    both ends) the chain has Lip <= L if this matrix, here for two hidden layers, is positive
    semidefinite::

        [  I      -V_0^T/L                   ]
        [ -V_0/L   2 I     -V_1^T            ]
        [         -V_1      2 I     -V_2^T   ]
        [                  -V_2      I       ]

    For a pair of points with differences ``dx``, ``dw_k`` after and ``dv_k = W_k dw_{k-1}``
    before the activations, its quadratic form at ``(L dx, S dw, W_n dw)`` is
    ``L^2|dx|^2 - |W_n dw|^2 - 2 sum_k |S_k|^2 dw_k (dv_k - dw_k)``, and the last sum is not
    negative. Elimination from the last block gives the least L; a Cholesky factorisation of the
    matrix minus its own rounding then proves it. Any multipliers give a proof; poor ones,
    or weights that are not those they were meant for, give a larger L. It is never above the
    product of the layers' norms, which is proved separately.

    Args:
        weights: ``[m_k, m_{k-1}]``, first layer first.
        multipliers: squares of S's diagonals, ``[m_k]``, positive, one for every layer but the
            last.

    Example:
        >>> halves = [torch.tensor([[1.0], [1.0]]), torch.tensor([[0.5, -0.5]])]
        >>> product = certified_norm(halves[0]) * certified_norm(halves[1])
        >>> bound = certified_chain_norm(halves, [torch.full((2,), 0.25)])  # slope (s - s') / 2
        >>> f"{product:.4f} {bound:.4f}"
        '1.0000 0.5000'
    """
    matrices = [weight.detach().double() for weight in weights]
    product = math.prod(certified_norm(matrix) for matrix in matrices)
    if len(matrices) == 1 or not 0 < product < math.inf:
        return product
    scaled = _scaled(matrices, [m.detach().double().sqrt() for m in multipliers])
    if not all(bool(matrix.isfinite().all()) for matrix in scaled):
        return product
    scaled, least = _eliminate(scaled)
    for excess in _EXCESSES:
        bound = least * (1 + excess)
        if not bound < product:
            return product
        if _is_proved(scaled, bound):
            return bound * (1 + 8 * _UNIT)
    return product


def _scaled(matrices: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    """Return ``S_k W_k S_{k-1}^-1``, each entry with at most three roundings."""
    scaled = list(matrices)
    for k, scale in enumerate(scales):
        scaled[k] = scale[:, None] * scaled[k]
        scaled[k + 1] = scaled[k + 1] / scale
    return scaled


def _eliminate(scaled: list[Tensor]) -> tuple[list[Tensor], float]:
    """Eliminate the blocks from the last to the first; a guess, which is verified afterwards.

    ``P_n = V_n^T V_n`` and ``P_k = V_k^T (2 I - P_{k+1})^-1 V_k``; the least L is
    ``|P_0|^(1/2)``. A hidden layer whose P exceeds 2 has its multipliers raised.
    """
    scaled = list(scaled)
    gram = scaled[-1].mT @ scaled[-1]
    for k in range(len(scaled) - 2, -1, -1):
        top = torch.linalg.eigvalsh(gram)[-1].clamp_min(0)
        raised = (top / (2 * (1 - _SLACK))).clamp_min(1).sqrt()
        scaled[k], scaled[k + 1] = scaled[k] * raised, scaled[k + 1] / raised
        left = -gram / raised.square()
        left.diagonal().add_(2)
        gram = scaled[k].mT @ torch.linalg.solve(left, scaled[k])
        gram = (gram + gram.mT) / 2
    return scaled, torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt().item()


def _is_proved(scaled: Sequence[Tensor], bound: float) -> bool:
    """Tell whether the matrix is positive semidefinite, whatever was rounded on the way.

    A factorisation of an n x n matrix A that runs to its end proves
    ``lambda_min(A) >= -n u tr(A)`` up to a factor near 1; four times that, and four roundings
    of every entry, are taken off the diagonal first.
    """
    if not bound > 0:
        return False
    sizes = [scaled[0].shape[1], *(matrix.shape[0] for matrix in scaled)]
    total, start = sum(sizes), 0
    matrix = scaled[0].new_zeros(total, total)
    for k, block in enumerate(scaled):
        rows = slice(start + sizes[k], start + sizes[k] + sizes[k + 1])
        matrix[rows, start : start + sizes[k]] = -block / (bound if k == 0 else 1.0)
        start += sizes[k]
    matrix = matrix + matrix.mT
    diagonal = matrix.new_full((total,), 2.0)
    diagonal[: sizes[0]] = 1.0
    diagonal[total - sizes[-1] :] = 1.0
    off_diagonal = torch.linalg.matrix_norm(matrix).item()
    slack = 4 * _UNIT * ((total + 4) * 2 * total + 2 * off_diagonal)
    matrix.diagonal().copy_(diagonal - slack)
    return bool(torch.linalg.cholesky_ex(matrix).info == 0)
