"""Newton's method with the dense Jacobian, for small d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from contraflow.registry import register
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver


@register
@dataclass(frozen=True)
class Newton(Solver):
    """Solve ``x + g(x) = z`` with ``x <- x - (I + J)^{-1} (x + g(x) - z)``.

    I + J is invertible wherever g contracts. Convergence is quadratic, at the price of D
    products with J and a D x D system a row and step.

    Args:
        atol, max_steps: as in ``Solver``.

    Raises:
        ConfigurationError: the map offers no ``linearize``.

    Reference:
        Ortega & Rheinboldt 1970, Iterative Solution of Nonlinear Equations, chapter 7.
    """

    linearizes: ClassVar[bool] = True

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Propose the Newton iterate ``[R, *E]``."""
        assert iterate.jacobian is not None
        matrix = iterate.jacobian.dense()  # [R, D, D]
        size = matrix.shape[-1]
        gap = (iterate.fx - iterate.x).reshape(len(matrix), size, 1)
        if matrix.dtype in (torch.float16, torch.bfloat16):  # for which there is no solve
            matrix, gap = matrix.float(), gap.float()
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        step = torch.linalg.solve_ex(identity + matrix, gap).result.to(iterate.x.dtype)
        return Proposal(iterate.x + step.reshape(iterate.x.shape), products=size)
