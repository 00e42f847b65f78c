"""The exact log-determinant: closed form for d <= 3, LU of the dense Jacobian beyond."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.jacobian import Jacobian
from contraflow.kinds import Kind, Likelihood
from contraflow.registry import register


@register
@dataclass(frozen=True)
class Exact:
    """``ln det(I + J)`` from the dense Jacobian; d Jacobian columns and one LU a sample.

    The determinant is positive for every contraction (Behrmann et al. 2019, Lemma 6), so no
    absolute value is taken: a branch that does not contract gives NaN instead of a plausible
    number.

    Example:
        >>> from contraflow.jacobian import linearize
        >>> from contraflow.lipschitz import MLPBranch
        >>> _, J = linearize(MLPBranch(2, (8,)).prepare(), torch.zeros(4, 2))
        >>> Exact()(J, None, lipschitz=0.98).shape
        torch.Size([4])
    """

    def draw(
        self,
        shape: torch.Size,
        like: Tensor,
        *,
        lipschitz: float,
        generator: torch.Generator | None = None,
    ) -> None:
        """Return None: nothing is random."""
        return None

    def __call__(self, jacobian: Jacobian, noise: None, *, lipschitz: float) -> Tensor:
        """Return ``ln det(I + J)``, ``[B]`` nats."""
        return log_det_identity_plus(jacobian.dense())

    def likelihood(self, size: int, lipschitz: float) -> Likelihood:
        """Tell that the value is exact."""
        return Likelihood(Kind.EXACT)


def log_det_identity_plus(matrix: Tensor) -> Tensor:
    """Return ``ln det(I + M)`` for ``[*B, d, d]`` with positive determinant.

    Small matrices go through ``log1p`` of the determinant's excess over 1, which keeps the
    digits when M is small.
    """
    size = matrix.shape[-1]
    if matrix.dtype in (torch.float16, torch.bfloat16):  # for which there is no determinant
        return log_det_identity_plus(matrix.float()).to(matrix.dtype)
    if size == 1:
        return torch.log1p(matrix[..., 0, 0])
    if size == 2:
        trace = matrix[..., 0, 0] + matrix[..., 1, 1]
        return torch.log1p(trace + _minor(matrix, 0, 1))
    if size == 3:
        trace = matrix[..., 0, 0] + matrix[..., 1, 1] + matrix[..., 2, 2]
        minors = _minor(matrix, 0, 1) + _minor(matrix, 0, 2) + _minor(matrix, 1, 2)
        return torch.log1p(trace + minors + torch.linalg.det(matrix))
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    return _LogAbsDet.apply(identity + matrix)  # pyright: ignore[reportReturnType]


def _minor(matrix: Tensor, i: int, j: int) -> Tensor:
    return matrix[..., i, i] * matrix[..., j, j] - matrix[..., i, j] * matrix[..., j, i]


class _LogAbsDet(torch.autograd.Function):
    """``ln|det A|`` whose backward reuses one inverse, also under inductor.

    torch 2.13's inductor returned wrong gradients for ``slogdet(eye + M)`` on CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        sign, logabsdet = torch.linalg.slogdet(matrix)
        return torch.where(sign > 0, logabsdet, torch.nan)  # no contraction has this

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        (matrix,) = ctx.saved_tensors
        return grad_outputs[0][..., None, None] * torch.linalg.inv(matrix).mT
