"""Gradients through a root, by the implicit function theorem.

At a root of ``x = f(x; t)`` every change obeys ``(I - f_x) dx = f_t dt``. So a cotangent ``u`` of
x becomes ``w = (I - f_x^T)^{-1} u``, and ``f_t^T w`` is the cotangent of t: one evaluation of f and
the root of ``w = u + f_x^T w``, another contraction of the same bound, solved by the same driver.
Nothing of the forward solve is kept, and because the adjoint is a root like any other, it is
differentiated in the same way: derivatives of every order are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.jacobian import Jacobian
from contraflow.solvers.auto import Auto
from contraflow.solvers.driver import solve
from contraflow.solvers.problem import RowMap

_ADJOINT_ULPS = 100.0  # tolerance of the adjoint, relative to the incoming gradient


class Differentiable(RowMap, Protocol):
    """A contraction that names the tensors it is computed from."""

    def tensors(self) -> Sequence[Tensor]:
        """Return every tensor that f(x) depends on besides x."""
        ...


def attach_root(f: Differentiable, root: Tensor, *, lipschitz: float, event_dim: int = 1) -> Tensor:
    """Return ``root`` with the gradients of the implicit function, of every order.

    Args:
        f: the contraction whose root it is, with its graph.
        root: ``[B, *E]``, detached.
        lipschitz: bound L of f.
        event_dim: number of dimensions of E.

    Raises:
        ConvergenceError: in backward, when the adjoint misses its tolerance.
        ConfigurationError: in backward, when f depends on a tensor that it does not name.

    Reference:
        Bai et al. 2019, arXiv:1909.01377, Theorem 1.
    """
    tensors = tuple(f.tensors())
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return root
    return _Root.apply(f, lipschitz, event_dim, root, *tensors)


class _Root(torch.autograd.Function):
    """The identity of the root; backward solves the adjoint."""

    @staticmethod
    def forward(
        ctx: Any,
        f: Differentiable,
        lipschitz: float,
        event_dim: int,
        root: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.f, ctx.lipschitz, ctx.event_dim = f, lipschitz, event_dim
        ctx.wanted = [t.requires_grad for t in tensors]
        x = root.clone()
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        f: Differentiable = ctx.f
        (x,), (grad,) = ctx.saved_tensors, grad_outputs
        again = torch.is_grad_enabled()  # create_graph: x comes with its own graph
        adjoint = _solve_adjoint(f, x, grad, ctx.lipschitz, ctx.event_dim)
        tensors = [t for t, wanted in zip(f.tensors(), ctx.wanted, strict=True) if wanted]
        with torch.enable_grad():
            value = f(x if again else x.detach())
        _check_complete(value, (x, *tensors) if again else tensors)
        found = iter(
            torch.autograd.grad(value, tensors, adjoint, create_graph=again, allow_unused=True)
        )
        return (None,) * 4 + tuple(next(found) if wanted else None for wanted in ctx.wanted)


def _solve_adjoint(
    f: Differentiable, x: Tensor, grad: Tensor, lipschitz: float, event_dim: int
) -> Tensor:
    """Return w with ``w = grad + f_x^T w``, with a graph where one is wanted."""
    # The system is linear: each row is solved at scale 1, so that its tolerance is relative to
    # its own gradient whatever its neighbours' weights are.
    tiny, eps = torch.finfo(grad.dtype).tiny, torch.finfo(grad.dtype).eps
    scale = grad.detach().abs().amax(tuple(range(1, grad.ndim)), keepdim=True).clamp_min(tiny)
    adjoint = _Adjoint(f, x, grad / scale)
    start = adjoint.right.detach()
    solver = Auto(atol=_ADJOINT_ULPS * eps)
    solution = solve(adjoint, start, solver, lipschitz=lipschitz, event_dim=event_dim)
    root = solution.check("adjoint of the inverse").value
    return attach_root(adjoint, root, lipschitz=lipschitz, event_dim=event_dim) * scale


class _Adjoint:
    """The contraction ``w -> u + f_x^T w`` at a point x."""

    def __init__(
        self, f: Differentiable, x: Tensor, right: Tensor, jacobian: Jacobian | None = None
    ) -> None:
        self.f, self.x, self.right = f, x, right
        self.jacobian = f.linearize(x)[1] if jacobian is None else jacobian

    def __call__(self, w: Tensor) -> Tensor:
        return self.right - self.jacobian.rmv(w)  # J is the Jacobian of -f

    def rows(self, index: Tensor) -> _Adjoint:
        jacobian = self.jacobian.rows(index)
        return _Adjoint(self.f, self.x[index], self.right[index], jacobian)

    def linearize(self, w: Tensor) -> tuple[Tensor, Jacobian]:
        return self(w), Transposed(self.jacobian)

    def to(self, dtype: torch.dtype) -> None:
        return None

    def tensors(self) -> Sequence[Tensor]:
        return (self.x, self.right, *self.f.tensors())


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


def _check_complete(value: Tensor, tensors: Sequence[Tensor]) -> None:
    """Walk the graph of f(x): it must end in the tensors that f names.

    Raises:
        ConfigurationError: it reaches a leaf behind none of them, which would get no gradient.
    """
    seen = {t.grad_fn for t in tensors}  # the walk stops there
    leaves = {id(t) for t in tensors if t.grad_fn is None}
    todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in leaves:
            raise ConfigurationError(
                f"the gradient of a root would miss a tensor of shape {tuple(leaf.shape)}, on "
                "which the prepared branch depends without naming it in tensors()."
            )
        todo += [parent for parent, _ in node.next_functions]
