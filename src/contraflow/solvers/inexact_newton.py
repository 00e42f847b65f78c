"""Newton's method whose linear systems are solved by products with the Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.registry import register
from contraflow.solvers import _secants
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver


@register
@dataclass(frozen=True)
class InexactNewton(Solver):
    """Solve ``x + g(x) = z`` with Newton steps from a few products with J, for any d.

    A step solves ``(I + J) s = r`` only as far as it pays: to ``forcing`` times r, or further
    when r is small enough for the curvature of g not to matter. With ``memory=0`` the products
    are those of the Neumann series ``s = r - J r + J^2 r - ...``; otherwise the remembered
    products speed it up. A product reuses the slopes of the last evaluation of g, so it costs
    the matrix products alone.

    Args:
        atol, max_steps: as in ``Solver``.
        products: the most products a step.
        memory: products remembered within a step; 0 for the plain Neumann series.
        forcing: relative residual at which a linear system counts as solved, in (0, 1).

    Raises:
        ConfigurationError: ``products`` is below 1, ``memory`` below 0, or ``forcing`` not
            inside (0, 1); when run, the map offers no ``linearize``.

    Reference:
        Dembo, Eisenstat & Steihaug 1982, doi:10.1137/0719025.
    """

    products: int = 30
    memory: int = 5
    forcing: float = 0.05

    linearizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the limits."""
        super().__post_init__()
        if self.products < 1 or self.memory < 0 or not 0 < self.forcing < 1:
            raise ConfigurationError(
                f"{self}: expected products of 1 or more, a memory of 0 or more, and forcing "
                "inside (0, 1)."
            )

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Propose the inexact Newton iterate ``[R, *E]``."""
        jacobian = iterate.jacobian
        assert jacobian is not None
        shape = iterate.x.shape

        def product(v: Tensor) -> Tensor:
            return jacobian.mv(v.reshape(shape)).flatten(1)

        r = (iterate.fx - iterate.x).flatten(1)  # [R, D]
        goal = torch.maximum(self.forcing * r.norm(dim=1), 0.5 * iterate.target)
        step, rest = torch.zeros_like(r), r  # rest = r - (I + J) step
        pairs = _secants.empty(r, max(self.memory, 1))
        count = 0
        while count < self.products and bool((rest.norm(dim=1) > goal).any()):
            move = rest
            image = -(rest + product(rest))  # what the move does to the rest
            if self.memory:
                _secants.add(pairs, count % self.memory, move, image)
                undone, rest = _secants.undo(pairs, rest)
                step = step + undone
            else:
                step, rest = step + move, rest + image
            count += 1
        return Proposal(iterate.x + step.reshape(shape), products=count)
