"""Gradients through a root, by the implicit function theorem.

At a root of ``x = f(x; t)``, with J the Jacobian of ``-f``, every change obeys
``(I + J) dx = f_t dt``. So the detached root plus a correction of value zero,
``(I + J)^{-1} (f(x; t) - x)`` with I + J held constant, has the root's exact first derivatives
in t, at the memory of one evaluation; the transposed system is one more contraction, solved by
the same driver. A second such correction from there makes the second derivatives exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.jacobian import Jacobian
from contraflow.solvers.auto import Auto
from contraflow.solvers.driver import solve
from contraflow.solvers.problem import RowMap

_ADJOINT_ULPS = 100.0  # tolerance of the adjoint, relative to the incoming gradient


def attach_root(f: RowMap, root: Tensor, *, lipschitz: float) -> Tensor:
    """Return ``root`` with the first and second derivatives of the implicit function.

    Args:
        f: the contraction whose root it is, with its graph.
        root: ``[B, *E]``, detached.
        lipschitz: bound L of f.

    Raises:
        ConvergenceError: in backward, when the adjoint misses its tolerance.
        ConfigurationError: in backward, when third derivatives are asked for.

    Reference:
        Bai et al. 2019, arXiv:1909.01377, Theorem 1.
    """
    if not torch.is_grad_enabled():
        return root
    value, jacobian = f.linearize(root)
    if not value.requires_grad:
        return root
    once = root + _Later.apply(_Correction.apply(value - root, jacobian, lipschitz))
    return once + _Correction.apply(f(once) - once, jacobian, lipschitz)


class _Later(torch.autograd.Function):
    """The identity, for derivatives of which only those of second order count.

    The second correction alone carries the whole first derivative: a first pass that will not
    be differentiated stops here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.differentiated = False
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor | None:
        # The second pass runs without create_graph as well, but after one that had it.
        ctx.differentiated |= torch.is_grad_enabled()
        return grad_outputs[0] if ctx.differentiated else None


class _Correction(torch.autograd.Function):
    """Zero, with the derivative ``(I + J)^{-1}`` in the gap, J held constant."""

    @staticmethod
    def forward(ctx: Any, gap: Tensor, jacobian: Jacobian, lipschitz: float) -> Tensor:
        ctx.jacobian, ctx.lipschitz = jacobian, lipschitz
        ctx.set_materialize_grads(False)
        return torch.zeros_like(gap)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        (grad,) = grad_outputs
        if grad is None:
            return None, None, None
        return _LinearSolve.apply(grad, Transposed(ctx.jacobian), ctx.lipschitz), None, None


class _LinearSolve(torch.autograd.Function):
    """``b -> (I + J)^{-1} b``, linear in b, J held constant."""

    @staticmethod
    def forward(ctx: Any, right: Tensor, jacobian: Jacobian, lipschitz: float) -> Tensor:
        ctx.jacobian, ctx.lipschitz = jacobian, lipschitz
        # The system is linear: each row is solved at scale 1, so that its tolerance is relative
        # to its own gradient whatever its neighbours' weights are.
        tiny, eps = torch.finfo(right.dtype).tiny, torch.finfo(right.dtype).eps
        scale = right.abs().amax(tuple(range(1, right.ndim)), keepdim=True).clamp_min(tiny)
        unit = right / scale
        solver = Auto(atol=_ADJOINT_ULPS * eps)
        # A backward pass may run where autocast is on: the solve needs the flow's own precision.
        with torch.autocast(right.device.type, enabled=False):
            solution = solve(
                _LinearMap(jacobian, unit),
                unit,
                solver,
                lipschitz=lipschitz,
                event_dim=jacobian.event_dim,
            )
        return solution.check("adjoint of the inverse").value * scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise ConfigurationError(
                "third derivatives through an inverse: a root is differentiable twice. Drop "
                "create_graph=True from the second derivative."
            )
        grad = grad_outputs[0]
        return _LinearSolve.apply(grad, Transposed(ctx.jacobian), ctx.lipschitz), None, None


class _LinearMap:
    """The contraction ``y -> b - J y``."""

    def __init__(self, jacobian: Jacobian, right: Tensor) -> None:
        self.jacobian, self.right = jacobian, right

    def __call__(self, x: Tensor) -> Tensor:
        return self.right - self.jacobian.mv(x)

    def rows(self, index: Tensor) -> _LinearMap:
        return _LinearMap(self.jacobian.rows(index), self.right[index])

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        return self(x), self.jacobian

    def to(self, dtype: torch.dtype) -> None:
        return None


class Transposed:
    """The transpose of a Jacobian."""

    def __init__(self, jacobian: Jacobian) -> None:
        self.jacobian, self.event_dim = jacobian, jacobian.event_dim

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J^T v``."""
        return self.jacobian.rmv(v)

    def rmv(self, u: Tensor) -> Tensor:
        """Return ``J u``."""
        return self.jacobian.mv(u)

    def trace(self) -> Tensor | None:
        """Return the trace, which is J's."""
        return self.jacobian.trace()

    def dense(self) -> Tensor:
        """Return ``[B, D, D]``."""
        return self.jacobian.dense().mT

    def rows(self, index: Tensor | slice) -> Transposed:
        """Return the transpose at some of the points."""
        return Transposed(self.jacobian.rows(index))
