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
            residual / (1 - L), the residual of a residual block taken in float64. The rounding
            of closed forms is not in it: they count 0.
        residual: ``[*B]``, ``|f(x) - x|`` at ``value``.
        steps: ``[*B]``, evaluations of f per row.
        converged: ``[*B]``, whether the row met its tolerance.
    """

    value: Tensor
    error_bound: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor

    @staticmethod
    def closed_form(value: Tensor, batch: torch.Size) -> Solution:
        """Wrap a value that needed no iteration."""
        zeros = value.new_zeros(batch)
        steps = torch.zeros(batch, dtype=torch.long, device=value.device)
        finite = value.isfinite()
        if value.ndim > len(batch):
            finite = finite.flatten(len(batch)).all(-1)
        return Solution(value, zeros, zeros, steps, finite)

    def check(self, name: str) -> Solution:
        """Return self, or raise if a row did not converge.

        Raises:
            ConvergenceError: names the rows; the error keeps this solution.
        """
        if bool(self.converged.all()):
            return self
        failed = (~self.converged).reshape(-1).nonzero().reshape(-1)
        bounds = self.error_bound.reshape(-1)[failed]
        listed = ", ".join(str(i) for i in failed[:8].tolist())
        raise ConvergenceError(
            f"{name}: {len(failed)} of {self.converged.numel()} rows did not converge "
            f"(rows {listed}{', ...' if len(failed) > 8 else ''}); worst error bound "
            f"{bounds.max().item():.1e} after {int(self.steps.max())} evaluations. Check the "
            "input for NaN or values far outside the data, run certify(flow), raise "
            "max_steps, or work in float64.",
            solution=self,
        )

    def reshape(self, batch: torch.Size) -> Solution:
        """Return the solution with its batch axis reshaped to ``batch``."""
        event = self.value.shape[self.converged.ndim :]
        return Solution(
            self.value.reshape(*batch, *event),
            self.error_bound.reshape(batch),
            self.residual.reshape(batch),
            self.steps.reshape(batch),
            self.converged.reshape(batch),
        )

    def then(self, value: Tensor, stretch: float | None) -> Solution:
        """Carry the error through a closed-form map that stretches by at most ``stretch``."""
        factor = float("inf") if stretch is None else stretch
        bound = torch.where(self.error_bound > 0, self.error_bound * factor, self.error_bound)
        return replace(self, value=value, error_bound=bound)
