"""The answer of every root solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contraflow.errors import ConvergenceError


@dataclass(frozen=True)
class Solution:
    """A batch of roots and what is known of them.

    Args:
        value: ``[*B, *E]``, the last iterate of every row, converged or not.
        error_bound: ``[*B]``, proved bound of ``|value - root|`` (l2, in the units of value):
            residual / (1 - L), plus what rounding the value to its dtype has cost. The rounding
            of closed forms is not in it: they count 0.
        residual: ``[*B]``, ``|f(x) - x|`` before the value was rounded to its dtype.
        steps: ``[*B]``, evaluations of f per row, in whatever dtype.
        converged: ``[*B]``, whether the row met its tolerance.
        products: ``[*B]``, products with the Jacobian or its transpose per row; D for a dense
            Jacobian.
        contradicted: ``[*B]``, rows in which two points were seen whose images lie farther
            apart than L allows: f is no contraction of bound L, and no bound of the error holds.
    """

    value: Tensor
    error_bound: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    products: Tensor
    contradicted: Tensor

    @staticmethod
    def closed_form(value: Tensor, batch: torch.Size) -> Solution:
        """Wrap a value that needed no iteration."""
        zeros = value.new_zeros(batch)
        steps = torch.zeros(batch, dtype=torch.long, device=value.device)
        finite = value.isfinite()
        if value.ndim > len(batch):
            finite = finite.flatten(len(batch)).all(-1)
        return Solution(
            value, zeros, zeros, steps, finite, steps, torch.zeros_like(steps, dtype=torch.bool)
        )

    def check(self, name: str) -> Solution:
        """Return self, or raise if a row did not converge.

        Raises:
            ConvergenceError: names the rows; the error keeps this solution.
        """
        if bool(self.converged.all()):
            return self
        failed = (~self.converged).reshape(-1).nonzero().reshape(-1)
        worst = self.error_bound.reshape(-1)[failed].max().item()
        raise ConvergenceError(
            f"{name}: {len(failed)} of {self.converged.numel()} rows did not converge "
            f"({_listed(failed)}); worst error bound {worst:.1e} after {int(self.steps.max())} "
            f"evaluations. {self._advice()}",
            solution=self,
        )

    def _advice(self) -> str:
        contradicted = self.contradicted.reshape(-1).nonzero().reshape(-1)
        if len(contradicted):
            return (
                f"In {_listed(contradicted)} two points were stretched by more than the bound L: "
                "the branch is no contraction, and its bound is wrong. Run certify(flow)."
            )
        return (
            "Check the input for NaN or values far outside the data, run certify(flow), raise "
            "max_steps, or work in float64."
        )

    def join(self, later: Solution, carried: Tensor) -> Solution:
        """Return what is known after ``later`` has started from this value.

        Args:
            later: the solution of the next part.
            carried: ``[*B]``, the error of this value, seen behind the next part.
        """
        return Solution(
            later.value,
            carried + later.error_bound,
            torch.maximum(self.residual, later.residual),
            self.steps + later.steps,
            self.converged & later.converged,
            self.products + later.products,
            self.contradicted | later.contradicted,
        )

    def reshape(self, batch: torch.Size) -> Solution:
        """Return the solution with its batch axis reshaped to ``batch``."""
        event = self.value.shape[self.converged.ndim :]
        rows = (
            field.reshape(batch)
            for field in (
                self.error_bound,
                self.residual,
                self.steps,
                self.converged,
                self.products,
                self.contradicted,
            )
        )
        return Solution(self.value.reshape(*batch, *event), *rows)

    def then(self, value: Tensor, stretch: float | None) -> Solution:
        """Carry the error through a closed-form map that stretches by at most ``stretch``."""
        factor = float("inf") if stretch is None else stretch
        bound = torch.where(self.error_bound > 0, self.error_bound * factor, self.error_bound)
        return replace(self, value=value, error_bound=bound)


def _listed(rows: Tensor) -> str:
    numbers = ", ".join(str(i) for i in rows[:8].tolist())
    return f"rows {numbers}{', ...' if len(rows) > 8 else ''}"
