"""Gradients through a root, by the implicit function theorem.

At a root of ``x + g(x) = z`` every change obeys ``(I + J) dx = dz - dg``. So the detached
root plus a correction of value zero, ``(I + J)^{-1} (z - x - g(x))``, has the root's exact
first derivatives in z and in the parameters of g, at the memory of one evaluation. The
transposed system is one more contraction, solved by the same driver.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contraflow.jacobian import Jacobian
from contraflow.solvers.driver import Solver, solve
from contraflow.solvers.picard import Picard


def attach_root(
    root: Tensor, gap: Tensor, jacobian: Jacobian, *, lipschitz: float
) -> Tensor:
    """Return ``root`` with the gradient of the implicit function.

    Args:
        root: ``[B, *E]``, detached.
        gap: ``z - x - g(x)`` at the root, ``[B, *E]``, with its graph in z and in the weights
            of g but not in x.
        jacobian: J at the root, without a graph.
        lipschitz: bound of J.

    Raises:
        ConvergenceError: in backward, when the adjoint misses its tolerance.
    """
    return root + _Adjoint.apply(gap, jacobian, lipschitz)


class _Adjoint(torch.autograd.Function):
    """The zero correction; backward applies ``(I + J^T)^{-1}``, once differentiable."""

    @staticmethod
    def forward(ctx, gap: Tensor, jacobian: Jacobian, lipschitz: float) -> Tensor:  # noqa: ANN001
        ctx.jacobian, ctx.lipschitz = jacobian, lipschitz
        return torch.zeros_like(gap)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN001
        jacobian: Jacobian = ctx.jacobian
        size = grad.flatten(1).norm(dim=1).max().item() if grad.numel() else 0.0
        eps = torch.finfo(grad.dtype).eps
        solver: Solver = Picard(atol=max(size, torch.finfo(grad.dtype).tiny) * eps * 100)
        solution = solve(
            _Transposed(jacobian, grad),
            grad,
            solver,
            lipschitz=ctx.lipschitz,
            event_dim=jacobian.event_dim,
        )
        return solution.check("adjoint of the inverse").value, None, None


class _Transposed:
    """The contraction ``y -> b - J^T y``."""

    def __init__(self, jacobian: Jacobian, right: Tensor) -> None:
        self.jacobian, self.right = jacobian, right

    def __call__(self, y: Tensor) -> Tensor:
        return self.right - self.jacobian.rmv(y)

    def rows(self, index: Tensor) -> _Transposed:
        return _Transposed(self.jacobian.rows(index), self.right[index])

    def linearize(self, y: Tensor) -> tuple[Tensor, Jacobian]:
        raise AssertionError("the adjoint is solved without its own Jacobian")
