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


def attach_root(root: Tensor, gap: Tensor, jacobian: Jacobian, *, lipschitz: float) -> Tensor:
    """Return ``root`` with the gradient of the implicit function.

    Args:
        root: ``[B, *E]``, detached.
        gap: ``z - x - g(x)`` at the root, ``[B, *E]``, with its graph in z and in the weights
            of g but not in x.
        jacobian: J at the root; only its values are used.
        lipschitz: bound of J.

    Raises:
        ConvergenceError: in backward, when the adjoint misses its tolerance.
    """
    return root + _Adjoint.apply(gap, jacobian, lipschitz)


class _Adjoint(torch.autograd.Function):
    """The zero correction; backward applies ``(I + J^T)^{-1}``, once differentiable."""

    @staticmethod
    def forward(ctx, gap: Tensor, jacobian: Jacobian, lipschitz: float) -> Tensor:
        ctx.jacobian, ctx.lipschitz = jacobian, lipschitz
        return torch.zeros_like(gap)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        jacobian: Jacobian = ctx.jacobian
        # The system is linear: each row is solved at scale 1, so that its tolerance is relative
        # to its own gradient whatever its neighbours' weights are.
        eps, tiny = torch.finfo(grad.dtype).eps, torch.finfo(grad.dtype).tiny
        scale = grad.abs().amax(tuple(range(1, grad.ndim)), keepdim=True).clamp_min(tiny)
        unit = grad / scale
        solver: Solver = Picard(atol=100 * eps)
        solution = solve(
            _Transposed(jacobian, unit),
            unit,
            solver,
            lipschitz=ctx.lipschitz,
            event_dim=jacobian.event_dim,
        )
        return solution.check("adjoint of the inverse").value * scale, None, None


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
