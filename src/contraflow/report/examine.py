"""What a report shows of a flow: samples with their solves, stages, densities, odd rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.evaluation import estimate_log_prob, split_dequantisation
from contraflow.flow import Flow
from contraflow.logdet import PowerSeries
from contraflow.report.contents import Density, Picked, Stages
from contraflow.transform import Sequential, Transform

_CHUNK = 512
_GRID = 160  # points of a density along each axis
_BETWEEN = 4  # stages between data and latent
_RADII = 3  # circles of the unit normal
_RAYS = 12


@dataclass(frozen=True, eq=False)
class Draw:
    """Samples and how each was solved for.

    Args:
        x: ``[N, *E]``, data units.
        context: ``[N, M]``.
        steps: ``[N]``, evaluations of branches; 0 where the inverse is a formula.
        residual: ``[N]``, the largest ``|x + g(x) - z|`` of any block, measured.
        error_bound: ``[N]``, proved bound of the l2 error in data units, before rounding to
            integers; infinite where no bound is known.
    """

    x: Tensor
    context: Tensor | None
    steps: Tensor
    residual: Tensor
    error_bound: Tensor

    def facts(self, *, proved: bool = True) -> dict[str, Tensor]:
        """Return what is known of each solve; nothing where the inverse is a formula.

        Args:
            proved: the flow is certified; otherwise ``error_bound`` bounds nothing.
        """
        if not bool(self.steps.any()):
            return {}
        measured = {"steps": self.steps, "residual": self.residual}
        return {**measured, "error bound": self.error_bound} if proved else measured


@torch.no_grad()
def draw_samples(
    flow: Flow,
    count: int,
    context: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draw ``count`` samples, one for each row of the context where there is one.

    Raises:
        ConvergenceError: a root missed its tolerance.
    """
    like = next(flow.parameters(), torch.empty(0))
    z = flow.base.sample((count,), like, generator)
    dequantise, transform = split_dequantisation(flow.transform)
    solutions = [
        transform.solve_inverse(
            z[start : start + _CHUNK],
            None if context is None else context[start : start + _CHUNK],
        ).check("samples")
        for start in range(0, count, _CHUNK)
    ]
    x = torch.cat([solution.value for solution in solutions])
    return Draw(
        x if dequantise is None else dequantise.inverse(x)[0],
        context,
        torch.cat([solution.steps for solution in solutions]),
        torch.cat([solution.residual for solution in solutions]),
        torch.cat([solution.error_bound for solution in solutions]),
    )


def pick_slowest(draw: Draw, count: int = 8, *, proved: bool = True) -> Picked | None:
    """Return the samples whose inverse took the most steps; None if it is a formula.

    Args:
        draw: the samples.
        count: how many to return.
        proved: the flow is certified, and the error bounds are bounds.
    """
    if not draw.facts():
        return None
    rows = draw.steps.argsort(descending=True, stable=True)[:count]
    typical = int(draw.steps.median())
    meaning = (
        "The error bound is proved, in data units: each block's residual, stretched as far as the "
        "blocks between it and the data could."
        if proved
        else "The flow is NOT certified, so a small residual bounds no error."
    )
    return Picked(
        "Slowest samples",
        f"The {len(rows)} of {len(draw.x)} samples whose inverse took the most evaluations of "
        f"residual branches, summed over the blocks; the median is {typical}. {meaning} "
        "Reconstruction, below, measures the errors that are made.",
        draw.x[rows].numpy(),
        {name: values[rows].tolist() for name, values in draw.facts(proved=proved).items()},
        None if draw.context is None else draw.context[rows].numpy(),
    )


@torch.no_grad()
def pick_least_likely(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    title: str,
    what: str,
    facts: dict[str, Tensor],
    count: int = 8,
    generator: torch.Generator | None = None,
) -> Picked:
    """Return the rows of lowest log-likelihood, evaluated anew where that is random.

    Args:
        flow: in ``eval()`` mode.
        x: ``[N, *E]``.
        context: ``[N, M]``.
        title: what the rows are.
        what: the rows in the plural, for the note.
        facts: name to ``[N]``, what else is known of the rows.
        count: rows to return.
        generator: source of the noise.
    """
    first = flow.log_prob(x, context, generator=generator)
    first = first.nan_to_num(nan=-torch.inf)  # a NaN is worse than every number, and is shown
    rows = first.argsort()[:count]
    given = None if context is None else context[rows]
    # A value that is low by chance would keep its luck: the rows are evaluated with new noise.
    estimate = estimate_log_prob(flow, x[rows], given, max_draws=16, generator=generator)
    order = estimate.value.argsort()
    rows = rows[order]
    known = {"log p": estimate.value[order]}
    note = f"The {len(rows)} of {len(x)} {what} with the lowest log-likelihood, in nats, "
    note += f"{str(estimate.kind).replace('_', ' ')}"
    if flow.likelihood.stochastic:
        known["±"] = estimate.stderr[order]
        note += f": the mean of {estimate.draws} evaluations with new noise and its standard error"
    if estimate.bias_bound:
        note += f", |bias| at most {estimate.bias_bound:.1g}"
    known |= {name: values[rows] for name, values in facts.items()}
    return Picked(
        title,
        note + ".",
        x[rows].numpy(),
        {name: values.tolist() for name, values in known.items()},
        None if context is None else context[rows].numpy(),
    )


@torch.no_grad()
def trace_stages(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Stages:
    """Follow rows of a flow over the plane to latent space, and a latent lattice back.

    The stages lie behind evenly chosen blocks of the kind that holds most parameters. With a
    context each row takes its own way, so that no lattice can be drawn.

    Raises:
        ConfigurationError: the flow is not over the plane.
        ConvergenceError: a root missed its tolerance.
    """
    if flow.event_shape != (2,):
        raise ConfigurationError(f"stages: events {tuple(flow.event_shape)}; expected (2,).")
    # Points do not depend on log-determinants: take the cheapest.
    chain = flow.using(log_det=PowerSeries(terms=1)).transform
    dequantise, bijection = split_dequantisation(chain)
    if dequantise is not None:
        x, _ = dequantise(x, context, noise=dequantise.draw(x.shape, x, generator))
    chain = bijection if isinstance(bijection, Sequential) else Sequential(bijection)
    cuts, names, blocks = _cuts(chain)
    noise = chain.draw(x.shape, x, generator)
    outputs = [x, *chain.intermediates(x, context, noise=noise)]
    points = torch.stack([outputs[cut] for cut in cuts])  # [S, N, 2]
    if context is not None:
        return Stages(names, points.numpy(), blocks=blocks)
    lattice = _lattice(x)  # [R + K, P, 2]
    carried = [lattice]
    for start, stop in zip(reversed(cuts[:-1]), reversed(cuts[1:]), strict=True):
        part = chain[start:stop]
        flat = part.solve_inverse(carried[0].reshape(-1, 2)).check("lattice").value
        carried.insert(0, flat.reshape(lattice.shape))
    lines = torch.stack(carried).numpy()  # [S, R + K, P, 2]
    return Stages(names, points.numpy(), lines[:, :_RADII], lines[:, _RADII:], blocks)


def _cuts(chain: Sequential) -> tuple[list[int], list[str], str]:
    """Return where to look, the titles of these places, and which blocks they follow."""
    weights: Counter[type[Transform]] = Counter()
    for part in chain:
        weights[type(part)] += sum(p.numel() for p in part.parameters())
    main = max(weights, key=lambda kind: weights[kind])
    ends = [i + 1 for i, part in enumerate(chain) if type(part) is main]
    total = len(ends)
    count = min(_BETWEEN, total - 1)  # the last block is close to the latent vector, or is it
    chosen = [round((i + 1) * total / (count + 1)) for i in range(count)]
    blocks = f"block{'s' * (count > 1)} {', '.join(map(str, chosen))} of {total} ({main.__name__})"
    cuts = [0, *(ends[block - 1] for block in chosen), len(chain)]
    names = ["data", *(f"after block {block}" for block in chosen), "latent"]
    return cuts, names, blocks if chosen else ""


def _lattice(like: Tensor) -> Tensor:
    """Return circles of radius 1, 2, 3 and rays from the origin, ``[R + K, P, 2]``."""
    turn = torch.linspace(0, 2 * torch.pi, 181, dtype=like.dtype)
    circle = torch.stack([turn.cos(), turn.sin()], -1)  # [P, 2]
    circles = [radius * circle for radius in range(1, _RADII + 1)]
    length = torch.linspace(0, _RADII, 181, dtype=like.dtype)[:, None]
    rays = [length * circle[180 * k // _RAYS] for k in range(_RAYS)]
    return torch.stack([*circles, *rays])


@torch.no_grad()
def evaluate_density(flow: Flow, around: Tensor) -> Density:
    """Evaluate a flow over the plane on a grid around the bulk of ``around`` ``[N, 2]``."""
    low, high = around.quantile(0.001, 0), around.quantile(0.999, 0)
    margin = 0.15 * (high - low)
    axes: Sequence[Tensor] = [
        torch.linspace(float(a), float(b), _GRID, dtype=around.dtype)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    ys, xs = torch.meshgrid(axes[1], axes[0], indexing="ij")
    values = flow.log_prob(torch.stack([xs, ys], -1)).numpy()
    return axes[0].numpy(), axes[1].numpy(), np.asarray(values)
