"""Anderson acceleration, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from contraflow.registry import register
from contraflow.solvers import _secants
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solver import Solver, check_memory


@register
@dataclass(frozen=True)
class Anderson(Solver):
    """Find ``x = f(x)`` from f(x) and what the last few steps did to the residual.

    Every row has its own memory. The step minimises the linearised residual over the span of
    the remembered steps, then adds what is left of the residual; the driver takes Picard's step
    wherever that would not fall by L.

    Args:
        atol, max_steps: as in ``Solver``.
        memory: past steps remembered, m; memory of ``2 m D`` numbers a row.

    Raises:
        ConfigurationError: ``memory`` is below 1.

    Example:
        >>> from contraflow.solvers import solve
        >>> a = torch.linspace(-0.9, 0.9, 4, dtype=torch.float64)
        >>> z = torch.ones(1, 4, dtype=torch.float64)
        >>> solution = solve(lambda x: z - a * x, z, Anderson(atol=1e-9), lipschitz=0.9)
        >>> bool(solution.converged.all()), int(solution.steps.max()) < 10  # Picard takes 240
        (True, True)

    Reference:
        Walker & Ni 2011, doi:10.1137/10078356X; in this orthogonalised form He et al. 2024,
        doi:10.1137/22M1511874 (nlTGCR).
    """

    memory: int = 5

    def __post_init__(self) -> None:
        """Check the limits."""
        super().__post_init__()
        check_memory(self, self.memory)

    def step(self, f: RowMap, iterate: Iterate) -> Proposal:
        """Propose the accelerated point ``[R, *E]``."""
        x = iterate.x
        r = (iterate.fx - x).flatten(1)  # [R, D]
        if iterate.memory:
            (pairs,) = iterate.memory
        else:
            pairs = _secants.empty(r, self.memory)
        if iterate.previous is not None:
            before, image = iterate.previous
            dx, dr = (x - before).flatten(1), r - (image - before).flatten(1)
            _secants.add(pairs, (iterate.step - 1) % self.memory, dx, dr)
        # The memory keeps the dtype that it began with, which need not be that of x.
        step, rest = _secants.undo(pairs, r.to(pairs.dtype))
        return Proposal(x + (step + rest).reshape(x.shape), memory=(pairs,))
