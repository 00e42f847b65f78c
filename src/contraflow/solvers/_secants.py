"""Past steps of every row and what they did to the residual, orthogonalised.

For each row m pairs ``(p_i, q_i)`` with ``q_i ~ r(x + p_i) - r(x)`` and orthonormal q: the part
of a residual that past steps can undo is a projection, without a system of equations to solve.
A new pair takes the place of the oldest. All pairs lie in one tensor ``[R, m, 2, D]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A direction whose new part is smaller than this many units in the last place is rounding.
_NEW_ULPS = 100.0


def empty(r: Tensor, memory: int) -> Tensor:
    """Return no pairs, for residuals ``[R, D]``: zeros ``[R, m, 2, D]``."""
    return r.new_zeros(len(r), memory, 2, r.shape[1])


def add(pairs: Tensor, place: int, dx: Tensor, dr: Tensor) -> None:
    """Write the pair ``(dx, dr)``, each ``[R, D]``, in place of pair number ``place``.

    A pair that no contraction can have (``|dr| > 2 |dx|``: rounding) is left out.
    """
    pairs[:, place] = 0
    before = dr.norm(dim=1, keepdim=True)
    possible = before <= 2 * dx.norm(dim=1, keepdim=True)
    new = torch.stack([dx, dr], 1).to(pairs.dtype)  # [R, 2, D]
    new = new - _combine(_parts(pairs, new[:, 1]), pairs)
    size = new[:, 1].norm(dim=1, keepdim=True)
    usable = possible & (size > _NEW_ULPS * torch.finfo(pairs.dtype).eps * before)
    scale = torch.where(usable, 1 / size.clamp_min(torch.finfo(pairs.dtype).tiny), 0.0)
    pairs[:, place] = new * scale[..., None]


def undo(pairs: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step that undoes what past steps can undo of r ``[R, D]``, and what is left."""
    step, undone = _combine(_parts(pairs, r), pairs).unbind(1)
    return -step, r - undone


# Products and sums one by one: batches of tiny matrix products take five times as long.


def _parts(pairs: Tensor, r: Tensor) -> Tensor:
    return (pairs[:, :, 1] * r[:, None]).sum(-1)  # [R, m]


def _combine(parts: Tensor, pairs: Tensor) -> Tensor:
    return (parts[..., None, None] * pairs).sum(1)  # [R, 2, D]
