"""Does the density integrate to 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contraflow.domain import Domain
from contraflow.testing._compare import flow_of, prepared, require
from contraflow.testing.registry import Case


def check_density(
    case: Case, *, points: int = 300, tolerance: float = 1e-6, contexts: int = 2, seed: int = 0
) -> None:
    """Check that ``exp(log_prob)`` integrates to 1, by the trapezoidal rule in 1-D or 2-D.

    The grid covers the points whose latent image lies within 8 standard deviations, of which
    the base leaves out less than 1e-14.

    Args:
        case: a bijection of vectors with D <= 2 and an exact ladj; one that is not
            ``normalised`` is only asked not to exceed 1.
        points: grid points an axis in 2-D; ten times as many in 1-D.
        tolerance: largest |integral - 1|.
        contexts: how many contexts are tried, where there is one.
        seed: of the contexts.

    Raises:
        AssertionError: the integral is off.
    """
    fits = len(case.event_shape) == 1 and case.size <= 2 and case.bijective and case.exact_ladj
    require(case, "a bijection of 1 or 2 features with an exact ladj", fits)
    case, generator = prepared(case, seed)
    flow = flow_of(case)
    assert flow is not None
    for _ in range(contexts if case.context_shape else 1):
        context = case.context(generator, 1)
        with torch.no_grad():
            axes = _axes(case, context, points if case.size == 2 else 10 * points)
            grid = torch.cartesian_prod(*axes).reshape(-1, case.size)
            density = flow.log_prob(grid, context).exp().reshape([len(axis) for axis in axes])
        integral = density
        for axis in reversed(axes):
            integral = torch.trapezoid(integral, axis)
        got = integral.item()
        if (
            not math.isfinite(got)
            or got > 1 + tolerance
            or (case.normalised and got < 1 - tolerance)
        ):
            expected = "1" if case.normalised else "at most 1"
            raise AssertionError(
                f"{case.name}: the density integrates to {got:.8f} on a grid of "
                f"{density.numel()} points; expected {expected} within {tolerance:g}."
            )


def _axes(case: Case, context: Tensor | None, points: int) -> list[Tensor]:
    """Return one grid an axis that covers the inverse image of [-8, 8]^D."""
    domain = case.transform.domain
    if domain.unbounded:
        edge = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)
        latent = torch.cartesian_prod(*[edge] * case.size).reshape(-1, case.size)
        given = None if context is None else context.expand(len(latent), -1)
        image = case.transform.inverse(latent, given)[0]
        low, high = image.min(0).values, image.max(0).values
    else:
        assert isinstance(domain, Domain)  # a product's columns have densities of their own
        low, high = (torch.full((case.size,), end, dtype=torch.float64) for end in domain.ends)
    return [
        torch.linspace(a, b, points + 1, dtype=torch.float64)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    ]
