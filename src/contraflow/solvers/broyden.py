"""Broyden's method, row by row: limited memory and a line search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.registry import register
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver, check_memory

_DECREASE = 1e-4  # share of the predicted decrease that a step must bring (Armijo)


@register
@dataclass(frozen=True)
class Broyden(Solver):
    """Find ``x = f(x)`` with a rank-m model of the inverse Jacobian, the "good" update.

    With ``F(x) = f(x) - x`` the model starts at ``-I``, which makes the first step Picard's.
    Here so that the solver of Implicit Normalizing Flows can be compared; ``Anderson`` needs
    fewer evaluations.

    Args:
        atol, max_steps: as in ``Solver``.
        memory: rank-one updates kept; the newest takes the place of the oldest.
        halvings: how often the line search may halve a step that brings no decrease.

    Raises:
        ConfigurationError: ``memory`` is below 1 or ``halvings`` below 0.

    Reference:
        Broyden 1965, doi:10.1090/S0025-5718-1965-0198670-6; Lu et al. 2021, arXiv:2103.10822,
        section 4.3 and appendix.
    """

    memory: int = 20
    halvings: int = 3

    def __post_init__(self) -> None:
        """Check the limits."""
        super().__post_init__()
        check_memory(self, self.memory)
        if self.halvings < 0:
            raise ConfigurationError(f"Broyden: halvings={self.halvings}; expected 0 or more.")

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Propose the point ``[R, *E]`` that the line search ends with."""
        x = iterate.x.flatten(1)
        r = iterate.fx.flatten(1) - x  # F(x), [R, D]
        if iterate.memory:
            left, right = (kept.to(r.dtype) for kept in iterate.memory)
        else:
            left = r.new_zeros(len(r), self.memory, r.shape[1])
            right = torch.zeros_like(left)
        if iterate.previous is not None:
            before, image = (t.flatten(1) for t in iterate.previous)
            place = (iterate.step - 1) % self.memory
            _update(left, right, place, x - before, r - (image - before))
        direction = -_apply(left, right, r)
        found, image, evaluations = self._search(f, iterate, direction.reshape(iterate.x.shape))
        return Proposal(found, image, (left, right), evaluations)

    def _search(
        self, f: RowMap, iterate: Iterate, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Halve the rows' steps until the residual falls; return x, f(x) and evaluations."""
        before = (iterate.fx - iterate.x).flatten(1).norm(dim=1)
        x = iterate.x + direction
        fx = f(x)
        evaluations = torch.ones(len(x), dtype=torch.long, device=x.device)
        scale = 1.0
        for _ in range(self.halvings):
            after = (fx - x).flatten(1).norm(dim=1)
            poor = (~(after <= (1 - _DECREASE * scale) * before)).nonzero().reshape(-1)
            if len(poor) == 0:
                break
            scale /= 2
            x[poor] = iterate.x[poor] + scale * direction[poor]
            fx[poor] = f.rows(poor)(x[poor])
            evaluations[poor] += 1
        return x, fx, evaluations


def _apply(left: Tensor, right: Tensor, r: Tensor) -> Tensor:
    """Return ``B r`` with ``B = -I + sum_i left_i right_i^T``, ``[R, D]``."""
    parts = (right * r[:, None]).sum(-1)  # [R, m]
    return (parts[..., None] * left).sum(1) - r


def _update(left: Tensor, right: Tensor, place: int, dx: Tensor, dr: Tensor) -> None:
    """Write ``(dx - B dr) (B^T dx)^T / (dx^T B dr)`` in place of update number ``place``."""
    left[:, place], right[:, place] = 0, 0
    model = _apply(left, right, dr)
    transposed = _apply(right, left, dx)
    denominator = (dx * model).sum(1, keepdim=True)  # [R, 1]
    # A model that does not see dr at all would divide by nothing: such rows keep theirs.
    sizes = dx.norm(dim=1, keepdim=True) * model.norm(dim=1, keepdim=True)
    least = torch.finfo(dx.dtype).eps * sizes
    usable = denominator.abs() > least
    safe = torch.where(usable, denominator, 1.0)
    left[:, place] = torch.where(usable, (dx - model) / safe, 0.0)
    right[:, place] = torch.where(usable, transposed, 0.0)
