"""The rows of a solve that are still on their way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.jacobian import Jacobian
from contraflow.solvers.problem import Proposal, RowMap, inner_size

# Images farther apart than L allows by this many units in the last place are no rounding.
_CONTRADICTION_ULPS = 256.0


def row_norm(x: Tensor) -> Tensor:
    """Return the l2 norm of every row of ``[R, *E]``, ``[R]``."""
    return x.reshape(len(x), -1).norm(dim=1) if x.numel() else x.new_zeros(len(x))


@dataclass
class Rows:
    """Active rows, each with its place in the batch; every tensor begins with them.

    Args:
        f: the map, restricted to these rows.
        linearize: whether the solver wants the Jacobian at every point.
        index: their places in the batch, ``[R]``.
        x, fx: points and the map's values there, ``[R, *E]``.
        jacobian: J at ``x``, if wanted.
        residual: ``|f(x) - x|``, ``[R]``.
        size, scale: ``|x|`` and ``|x0|``, ``[R]``, which set what rounding can do.
        inner: the size of the map's inner values, ``[R]``, which adds to it.
        best, stalled: the least residual so far, and steps since it fell.
        broken: f has returned a value that is not finite; ``x`` is the last good point.
        contradicted: two points were stretched by more than L.
        steps, products: evaluations of f and products with J so far.
        memory: what the solver remembers.
        previous: the points before and the map's values there.
        finished: rows that have been recorded; they idle along until enough of them can leave.
    """

    f: RowMap
    linearize: bool
    index: Tensor
    x: Tensor
    fx: Tensor
    jacobian: Jacobian | None
    residual: Tensor
    size: Tensor
    scale: Tensor
    inner: Tensor
    best: Tensor
    stalled: Tensor
    broken: Tensor
    contradicted: Tensor
    steps: Tensor
    products: Tensor
    memory: tuple[Tensor, ...]
    finished: Tensor
    previous: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def begin(
        f: RowMap, x: Tensor, scale: Tensor, memory: tuple[Tensor, ...], *, linearize: bool
    ) -> Rows:
        """Evaluate the starts of all rows."""
        fx, jacobian = _evaluate(f, x, linearize)
        residual = row_norm(fx - x)
        index = torch.arange(len(x), device=x.device)
        zeros, none = torch.zeros_like(index), torch.zeros_like(index, dtype=torch.bool)
        return Rows(
            f,
            linearize,
            index,
            x,
            fx,
            jacobian,
            residual,
            row_norm(x),
            scale,
            inner_size(f, scale),
            best=residual,
            stalled=zeros,
            broken=~residual.isfinite(),
            contradicted=none,
            steps=zeros + 1,
            products=zeros.clone(),
            memory=memory,
            finished=none.clone(),
        )

    def keep(self, index: Tensor) -> Rows:
        """Return some of the rows."""
        return Rows(
            self.f.rows(index),
            self.linearize,
            self.index[index],
            self.x[index],
            self.fx[index],
            None if self.jacobian is None else self.jacobian.rows(index),
            self.residual[index],
            self.size[index],
            self.scale[index],
            self.inner[index],
            self.best[index],
            self.stalled[index],
            self.broken[index],
            self.contradicted[index],
            self.steps[index],
            self.products[index],
            tuple(kept[index] for kept in self.memory),
            self.finished[index],
            None if self.previous is None else (self.previous[0][index], self.previous[1][index]),
        )

    def ulps(self) -> Tensor:
        """Return a unit in the last place of ``|x| + |x0|``, ``[R]``."""
        return torch.finfo(self.x.dtype).eps * (self.size + self.scale)

    def inner_ulps(self) -> Tensor:
        """Return a unit in the last place of the largest values that f meets, ``[R]``."""
        return torch.finfo(self.x.dtype).eps * (self.size + self.scale + self.inner)

    def advance(self, proposal: Proposal, lipschitz: float, *, suspicious: bool) -> None:
        """Go where the solver proposes if that beats Picard's guarantee, else to f(x).

        A proposal counts only if its residual is at most L times the last one, which Picard's
        always is: so Banach's limit on the number of steps holds for every method. Two points
        whose images lie farther apart than L allows, by more than rounding, prove that f is no
        contraction of bound L; ``suspicious`` says whether to look.
        """
        x, fx, jacobian = proposal.x, proposal.fx, None
        self.steps = self.steps + proposal.evaluations
        self.products = self.products + proposal.products
        if fx is None:
            fx, jacobian = _evaluate(self.f, x, self.linearize)
            self.steps = self.steps + 1
        residual = row_norm(fx - x)
        if x is not self.fx:
            worse = ~(residual <= lipschitz * self.residual)
            refused = (worse & ~self.finished).nonzero().reshape(-1)  # the finished only idle
            if len(refused):
                x, fx, jacobian = self._picard(x, fx, jacobian, refused)
                residual = row_norm(fx - x)
        good, before = residual.isfinite(), self.inner_ulps()
        self.size = row_norm(x)
        if suspicious:
            slack = _CONTRADICTION_ULPS * torch.maximum(before, self.inner_ulps())
            stretched = row_norm(fx - self.fx) > lipschitz * row_norm(x - self.x) + slack
            self.contradicted = self.contradicted | (stretched & good)
        self.broken = self.broken | ~good
        if not bool(good.all()):
            keep = good.reshape(-1, *(1,) * (x.ndim - 1))
            x, fx = torch.where(keep, x, self.x), torch.where(keep, fx, self.fx)
            residual, self.size = torch.where(good, residual, self.residual), row_norm(x)
        self.stalled = torch.where(residual < self.best, 0, self.stalled + 1)
        self.best = torch.minimum(self.best, residual)
        self.previous = (self.x, self.fx)
        self.x, self.fx, self.jacobian, self.residual = x, fx, jacobian, residual
        self.memory = proposal.memory

    def _picard(
        self, x: Tensor, fx: Tensor, jacobian: Jacobian | None, refused: Tensor
    ) -> tuple[Tensor, Tensor, Jacobian | None]:
        """Replace the refused proposals by Picard's."""
        x, fx = x.clone(), fx.clone()
        x[refused] = self.fx[refused]
        if jacobian is not None:  # the slopes of all rows belong together
            self.steps = self.steps + 1
            return x, *_evaluate(self.f, x, linearize=True)
        self.steps[refused] += 1
        fx[refused] = self.f.rows(refused)(x[refused])
        return x, fx, None


def _evaluate(f: RowMap, x: Tensor, linearize: bool) -> tuple[Tensor, Jacobian | None]:
    return f.linearize(x) if linearize else (f(x), None)
