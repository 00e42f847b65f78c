"""The residual block of i-ResNet and Residual Flow: ``z = x + g(x)``, ``Lip(g) < 1``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from contraflow.errors import NotContractiveError, ShapeError
from contraflow.jacobian import Jacobian, linearize
from contraflow.kinds import Likelihood
from contraflow.lipschitz import BoundedLayer, Branch, PreparedBranch
from contraflow.logdet import Exact, LogDet, NestedRoulette, Roulette
from contraflow.registry import register
from contraflow.solvers import Iterate, Newton, Picard, Solution, Solver, attach_root, solve
from contraflow.transform import BlockCertificate, Transform


def default_log_det(size: int) -> LogDet:
    """Return the training strategy for D = ``size``: exact while the Jacobian is small."""
    return Exact() if size <= 16 else NestedRoulette()


def default_eval_log_det(size: int) -> LogDet:
    """Return the evaluation strategy for D = ``size``: exact where affordable, else unbiased."""
    return Exact() if size <= 128 else Roulette(exact_terms=10)


def default_solver(size: int) -> Solver:
    """Return the root solver for D = ``size``: Newton while its D^3 stays cheap."""
    return Newton() if size <= 128 else Picard()


@register
class ResidualBlock(Transform):
    """Map ``x`` to ``z = x + g(x)``, invertible because ``g`` contracts.

    Args:
        branch: ``g``, ``[*B, *E] -> [*B, *E]``; its ``lipschitz`` (l2 norm, dimensionless)
            must be below 1.
        log_det: strategy for ln det(I + J) in training; None for ``default_log_det(D)``.
        eval_log_det: strategy in ``eval()`` mode; None for ``default_eval_log_det(D)``.
        solver: root solver for ``inverse``; None for ``default_solver(D)``.

    Returns:
        From either direction, a point ``[*B, *E]`` and ``ladj`` ``[*B]`` in nats.

    Raises:
        NotContractiveError: the branch's bound is 1 or more.
        ConvergenceError: ``inverse`` missed the solver's tolerance.

    Example:
        >>> from contraflow.lipschitz import MLPBranch
        >>> block = ResidualBlock(MLPBranch(2, (16,), lipschitz=0.9)).double()
        >>> x = torch.randn(5, 2, dtype=torch.float64)
        >>> z, ladj = block(x)
        >>> back, _ = block.inverse(z)
        >>> bool((back - x).abs().max() < 1e-10)
        True

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, Theorem 1; Chen et al. 2019,
        arXiv:1906.02735.
    """

    stochastic = True
    takes_norms = True

    def __init__(
        self,
        branch: Branch,
        log_det: LogDet | None = None,
        eval_log_det: LogDet | None = None,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        if not branch.lipschitz < 1:
            raise NotContractiveError(
                f"branch of lipschitz={branch.lipschitz}; expected a bound below 1: id + g is "
                "provably invertible only when g contracts."
            )
        size = math.prod(branch.event_shape)
        self.branch = branch
        self.log_det = log_det or default_log_det(size)
        self.eval_log_det = eval_log_det or default_eval_log_det(size)
        self.solver = solver or default_solver(size)

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the branch's event dimensions."""
        return len(self.branch.event_shape)

    @property
    def active_log_det(self) -> LogDet:
        """Return the strategy of the current mode."""
        return self.log_det if self.training else self.eval_log_det

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + g(x)`` and ``ln det(I + J)``; g is evaluated once."""
        flat, batch, context = self._flatten(x, context)
        if noise is None:
            noise = self.draw(flat.shape, flat)
        branch = self._prepare(context, norms)
        value, jacobian = linearize(branch, flat, self.event_dim)
        ladj = self.active_log_det(jacobian, noise, lipschitz=self.branch.lipschitz)
        return (flat + value).reshape(x.shape), ladj.reshape(batch)

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the root of ``x + g(x) = z`` and ``-ln det(I + J)`` there.

        Differentiable once, by the implicit function theorem.
        """
        target, batch, context = self._flatten(z, context)
        if noise is None:
            noise = self.draw(target.shape, target)
        branch = self._prepare(context, norms)
        flat = self._solve(branch, target).check(type(self).__name__).value
        if torch.is_grad_enabled():
            value, fixed = linearize(branch, flat, self.event_dim)
            gap = target - flat - value
            flat = attach_root(flat, gap, fixed, lipschitz=self.branch.lipschitz)
        _, jacobian = linearize(branch, flat, self.event_dim)
        ladj = self.active_log_det(jacobian, noise, lipschitz=self.branch.lipschitz)
        return flat.reshape(z.shape), -ladj.reshape(batch)

    @torch.no_grad()
    def solve_inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Solution:
        """Return the root with its residual and proved error bound per row, no gradient."""
        flat, batch, context = self._flatten(z, context)
        return self._solve(self._prepare(context, norms), flat).reshape(batch)

    def invert(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Map latent to data, checked, without ladj."""
        return self.solve_inverse(z, context, norms=norms).check(type(self).__name__).value

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the branch's layers whose norms a pass takes."""
        return self.branch.bounded_layers() if self.branch.takes_norms else []

    def _prepare(self, context: Tensor | None, norms: Sequence[Tensor] | None) -> PreparedBranch:
        """Prepare the branch for one pass, with the norms that a chain bounded for it, if any."""
        if norms is None or not self.branch.takes_norms:
            return self.branch.prepare(context)
        return self.branch.prepare(context, norms=norms)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def _solve(self, branch: PreparedBranch, z: Tensor) -> Solution:
        solution = solve(
            _FixedPoint(branch, z, self.event_dim),
            z,
            self.solver,
            lipschitz=self.branch.lipschitz,
            event_dim=self.event_dim,
        )
        double = getattr(branch, "double", None)
        if z.dtype == torch.float64 or double is None or len(z) == 0:
            return solution
        return self._polish(solution, _FixedPoint(double(), z.double(), self.event_dim))

    def _polish(self, solution: Solution, problem: _FixedPoint) -> Solution:
        """Take one more step in float64, where the residual is not made of rounding.

        The bound of the error is that residual's; a row whose residual does not fall keeps
        its value.
        """

        def residual(x: Tensor) -> tuple[Tensor, Tensor]:
            image = problem(x.double())
            return image, (image - x).flatten(1).norm(dim=1)

        x = solution.value
        image, before = residual(x)
        step = self.solver.step(problem, Iterate(x.double(), image)).to(x.dtype)
        after = residual(step)[1]
        better = after < before
        value = torch.where(better.reshape(-1, *(1,) * self.event_dim), step, x)
        bound = torch.where(better, after, before) / (1 - self.branch.lipschitz)
        return replace(solution, value=value, error_bound=bound.to(x.dtype))

    def _flatten(
        self, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, torch.Size, Tensor | None]:
        event = self.branch.event_shape
        if tuple(x.shape[x.ndim - len(event) :]) != tuple(event):
            raise ShapeError(
                f"{type(self).__name__}: got events in a tensor {tuple(x.shape)}; expected "
                f"{('*B', *event)}."
            )
        batch = x.shape[: x.ndim - len(event)]
        if context is not None:
            context = context.expand(*batch, context.shape[-1]).reshape(-1, context.shape[-1])
        return x.reshape(-1, *event), batch, context

    def draw(
        self, shape: torch.Size, like: Tensor, generator: torch.Generator | None = None
    ) -> Any:
        """Draw the active strategy's noise for a flat batch ``[B, *E]``."""
        return self.active_log_det.draw(
            shape, like, lipschitz=self.branch.lipschitz, generator=generator
        )

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the event shape, which the branch fixes."""
        if tuple(shape) != tuple(self.branch.event_shape):
            raise ShapeError(
                f"{type(self).__name__}: got events {tuple(shape)}; expected "
                f"{tuple(self.branch.event_shape)}."
            )
        return torch.Size(shape)

    def likelihood(self, shape: Sequence[int]) -> Likelihood:
        """Tell how exact ladj is in the current mode."""
        return self.active_log_det.likelihood(math.prod(shape), self.branch.lipschitz)

    @torch.no_grad()
    def certificates(self, name: str) -> list[BlockCertificate]:
        """Prove the bound of the weights as prepared, in float64."""
        bound = self.branch.prepare(self._any_context()).certified_bound()
        contracts = bound < 1
        return [
            BlockCertificate(
                name,
                lipschitz=bound if math.isfinite(bound) else None,
                method="product of certified layer norms",
                forward=1 + bound if math.isfinite(bound) else None,
                inverse=1 / (1 - bound) if contracts else None,
                contractive=True,
            )
        ]

    def _any_context(self) -> Tensor | None:
        """Return some context: the bound does not depend on it."""
        features = getattr(self.branch, "context", 0)
        if not features:
            return None
        return next(self.branch.parameters()).new_zeros(1, features)

    def enforce_bounds_(self) -> None:
        """Write the branch's normalised weights back; f does not change."""
        with torch.no_grad():
            self.branch.enforce_bounds_()

    def extra_repr(self) -> str:
        """Return the strategies, for ``print``."""
        return f"log_det={self.log_det}, eval_log_det={self.eval_log_det}, solver={self.solver}"


class _FixedPoint:
    """The contraction ``x -> z - g(x)``, whose fixed point is the inverse at z."""

    def __init__(self, branch: PreparedBranch, z: Tensor, event_dim: int) -> None:
        self.branch, self.z, self.event_dim = branch, z, event_dim

    def __call__(self, x: Tensor) -> Tensor:
        return self.z - self.branch(x)

    def rows(self, index: Tensor) -> _FixedPoint:
        return _FixedPoint(self.branch.rows(index), self.z[index], self.event_dim)

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        value, jacobian = linearize(self.branch, x, self.event_dim)
        return self.z - value, jacobian
