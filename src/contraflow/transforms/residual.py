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
from contraflow.solvers import Auto, Solution, Solver, attach_root, default_atol, solve
from contraflow.transform import BlockCertificate, Transform


def default_log_det(size: int) -> LogDet:
    """Return the training strategy for D = ``size``: exact while the Jacobian is small."""
    return Exact() if size <= 16 else NestedRoulette()


def default_eval_log_det(size: int) -> LogDet:
    """Return the evaluation strategy for D = ``size``: exact where affordable, else unbiased."""
    return Exact() if size <= 128 else Roulette(exact_terms=10)


@register
class ResidualBlock(Transform):
    """Map ``x`` to ``z = x + g(x)``, invertible because ``g`` contracts.

    Args:
        branch: ``g``, ``[*B, *E] -> [*B, *E]``; its ``lipschitz`` (l2 norm, dimensionless)
            must be below 1.
        log_det: strategy for ln det(I + J) in training; None for ``default_log_det(D)``.
        eval_log_det: strategy in ``eval()`` mode; None for ``default_eval_log_det(D)``.
        solver: root solver for ``inverse``; None for ``Auto()``.

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
        self.solver = solver or Auto()

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

        Differentiable twice, by the implicit function theorem; nothing of the iterations is
        kept for the gradient.
        """
        target, batch, context = self._flatten(z, context)
        if noise is None:
            noise = self.draw(target.shape, target)
        branch = self._prepare(context, norms)
        problem = _FixedPoint(branch, target, self.event_dim)
        flat = self._solve(problem).check(type(self).__name__).value
        flat = attach_root(problem, flat, lipschitz=self.branch.lipschitz)
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
        start: Tensor | None = None,
    ) -> Solution:
        """Return the root with its residual and proved error bound per row, no gradient.

        Args:
            z: ``[*B, *E]``.
            context: ``[*B, M]``.
            norms: bounds of the raw norms, where a chain has found them.
            start: ``[*B, *E]``, where to search from, such as the root of a z close by; None
                for z. It changes the evaluations, not the root.

        Raises:
            ShapeError: z or ``start`` does not fit.
        """
        flat, batch, context = self._flatten(z, context)
        if start is not None and start.shape != z.shape:
            raise ShapeError(
                f"{type(self).__name__}: got a start of shape {tuple(start.shape)}; expected that "
                f"of z, {tuple(z.shape)}."
            )
        problem = _FixedPoint(self._prepare(context, norms), flat, self.event_dim)
        return self._solve(problem, None if start is None else start.reshape(flat.shape)).reshape(
            batch
        )

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

    def _solve(self, problem: _FixedPoint, start: Tensor | None = None) -> Solution:
        solution = solve(
            problem,
            (problem.z if start is None else start).detach(),
            self.solver,
            lipschitz=self.branch.lipschitz,
            event_dim=self.event_dim,
        )
        if getattr(problem.branch, "proved", True):
            return solution
        return replace(solution, error_bound=torch.full_like(solution.error_bound, math.inf))

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
        """Prove the bound of the weights as prepared, in float64.

        What a branch prepares may say by ``certified_method`` how its bound was proved, and by
        ``lipschitz_estimate`` what it guesses where it proves nothing.
        """
        try:
            prepared = self.branch.prepare(self._any_context())
        except NotContractiveError:
            method = f"refused: the branch asks for L = {self.branch.lipschitz:g}"
            return [BlockCertificate(name, method=method, contractive=True, tolerance=None)]
        bound = prepared.certified_bound()
        method = getattr(prepared, "certified_method", "product of certified layer norms")
        estimate, proved = None, bound if math.isfinite(bound) else None
        if proved is None:
            estimate = getattr(prepared, "lipschitz_estimate", None)
            method = "not proved" if estimate is None else "an estimate, not proved"
        elif proved > self.branch.lipschitz * (1 + 1e-9):
            asked = self.branch.lipschitz
            method += f"; above the {asked:g} asked for, on which bounds of errors and biases rest"
        inverse = None
        if proved is not None and 0 <= proved < 1:
            inverse = math.nextafter(1 / (1 - proved), math.inf)
        # Round up: a bound may loosen, never tighten.
        return [
            BlockCertificate(
                name,
                lipschitz=proved,
                method=method,
                forward=None if proved is None else math.nextafter(1 + proved, math.inf),
                inverse=inverse,
                contractive=True,
                estimate=estimate,
                tolerance=self._tolerance(prepared),
            )
        ]

    def _tolerance(self, prepared: PreparedBranch) -> float:
        """Return the largest residual that the solver accepts, rounding aside."""
        dtype = next(self.branch.parameters(), torch.empty(0)).dtype
        atol = self.solver.atol
        if atol is None:  # where float64 can be had, nothing but the rounding of the root is left
            refined = dtype != torch.float64 and hasattr(prepared, "in_dtype")
            atol = 0.0 if refined else default_atol(dtype)
        return (1 - self.branch.lipschitz) * atol

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

    def inner_size(self) -> Tensor:
        known = getattr(self.branch, "inner_size", None)
        return self.z.new_zeros(()) if known is None else known()

    def to(self, dtype: torch.dtype) -> _FixedPoint | None:
        in_dtype = getattr(self.branch, "in_dtype", None)
        if in_dtype is None:
            return None
        return _FixedPoint(in_dtype(dtype), self.z.to(dtype), self.event_dim)
