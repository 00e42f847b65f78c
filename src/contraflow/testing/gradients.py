"""Are gradients right, for any weights of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck

from contraflow.logdet import Exact, LogDet, NestedRoulette, PowerSeries, Roulette
from contraflow.testing._compare import close, prepared, require, row_of
from contraflow.testing.registry import Case
from contraflow.transforms import ResidualBlock

STRATEGIES: tuple[LogDet, ...] = (
    Exact(),
    PowerSeries(terms=6, probes=2),
    PowerSeries(bias=1e-2),
    Roulette(probes=2),
    NestedRoulette(),
)


def check_gradients(
    case: Case,
    *,
    rows: int = 2,
    eps: float = 1e-5,
    atol: float = 1e-6,
    rtol: float = 1e-4,
    seed: int = 0,
) -> None:
    """Run ``gradcheck`` on point and ladj in x, context and parameters, both directions.

    The parameters move together along two random directions, which a wrong gradient of any
    one of them spoils. Both outputs are one vector, so that a detached one does not go unseen.

    Args:
        case: one with an exact ladj: an estimate's gradient is not that of its value.
        rows: points.
        eps: step of the central differences; they err by ``eps**2``, and by a solver's
            tolerance over eps.
        atol: allowed absolute error.
        rtol: allowed relative error.
        seed: of the points.

    Raises:
        AssertionError: a gradient differs from the central difference.
    """
    require(case, "an exact ladj", case.exact_ladj)
    case, generator = prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    with torch.no_grad():
        z = case.forward(x, context, noise)[0]
    both = _BothDirections(case)
    values = dict(both.named_parameters())
    directions = [
        {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in values.items()
        }
        for _ in range(2)
    ]
    for direction, point in {"forward": x, "inverse": z}.items():
        if direction == "inverse" and not case.bijective:
            continue

        def moved(
            point: Tensor, steps: Tensor, given: Tensor | None = None, direction: str = direction
        ) -> Tensor:
            shifted = {
                name: value.detach()
                + sum(t * d[name] for t, d in zip(steps, directions, strict=True))
                for name, value in values.items()
            }
            return torch.func.functional_call(both, shifted, (direction, point, given, noise))

        inputs = [point, torch.zeros(2, dtype=point.dtype), *([] if context is None else [context])]
        inputs = [value.detach().clone().requires_grad_() for value in inputs]
        fast = sum(value.numel() for value in inputs) > 20
        try:
            gradcheck(moved, inputs, eps=eps, atol=atol, rtol=rtol, fast_mode=fast)
        except GradcheckError as error:
            raise AssertionError(
                f"{case.name}: gradient through {direction} (inputs: the point, two directions of "
                f"the parameters, the context) differs from central differences; expected "
                f"agreement within rtol={rtol:g}. {error}"
            ) from error


class _BothDirections(nn.Module):
    """Both directions as one flat output, so that ``functional_call`` reaches either."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.transform = case.transform

    def forward(self, direction: str, point: Tensor, given: Tensor | None, noise: Any) -> Tensor:
        if direction == "forward":
            point, ladj = self.case.forward(point, given, noise)
        else:
            point, ladj = self.transform.inverse(point, given)
        return torch.cat([point.flatten(), ladj])


def check_weighted_gradients(
    case: Case,
    *,
    strategies: Sequence[LogDet] = STRATEGIES,
    rows: int = 3,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> None:
    """Check that ``grad sum_i w_i ladj_i = sum_i w_i grad ladj_i``, each row computed alone.

    The noise is drawn once for the batch and cut into rows. Every residual block runs with
    every strategy; a transform without one runs once.

    Args:
        case: what to check.
        strategies: log-determinant strategies; an iterative case, whose ``forward`` cannot be
            handed noise, only takes those whose value is deterministic.
        rows: points.
        tolerance: largest error, relative to ``1 + max |expected|``.
        seed: of points, weights and noise.

    Raises:
        AssertionError: an error exceeds the tolerance.
    """
    original = case
    if not any(isinstance(part, ResidualBlock) for part in case.transform.modules()):
        strategies = (Exact(),)
    for strategy in strategies:
        if case.iterative and strategy.likelihood(case.size, 0.5).stochastic:
            continue
        case, generator = prepared(original, seed)
        for part in case.transform.modules():
            if isinstance(part, ResidualBlock):
                part.log_det = part.eval_log_det = strategy
        x, context = case.x(generator, rows), case.context(generator, rows)
        weights = torch.tensor([1.0, -2.5, 0.3] * rows, dtype=torch.float64)[:rows]
        noise = case.noise(x, generator)
        whole, whole_gradients = _weighted_ladj(case, x, context, noise, weights)
        alone, gradients = [], [torch.zeros_like(value) for value in whole_gradients]
        for i in range(rows):
            here = slice(i, i + 1)
            given = None if context is None else context[here]
            ladj, parts = _weighted_ladj(case, x[here], given, row_of(noise, i), weights[here])
            alone.append(ladj)
            gradients[0][here] += parts[0]
            for total, part in zip(gradients[1:], parts[1:], strict=True):
                total += part
        close(case, f"ladj of a batch with {strategy}", whole, torch.cat(alone), tolerance)
        names = ["x", *(name for name, _ in case.transform.named_parameters())]
        for name, got, expected in zip(names, whole_gradients, gradients, strict=True):
            what = f"weighted gradient of ladj in {name} with {strategy}"
            close(case, what, got, expected, tolerance)


def _weighted_ladj(
    case: Case, x: Tensor, context: Tensor | None, noise: Any, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    x = x.detach().clone().requires_grad_()
    inputs = [x, *case.transform.parameters()]
    ladj = case.forward(x, context, noise)[1]
    if not ladj.requires_grad:  # a volume-preserving map
        return ladj, [torch.zeros_like(value) for value in inputs]
    found = torch.autograd.grad((weights * ladj).sum(), inputs, allow_unused=True)
    gradients = [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(inputs, found, strict=True)
    ]
    return ladj.detach(), gradients
