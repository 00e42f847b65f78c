"""The Neumann loop that every stochastic strategy runs.

One pass without a graph gives the value ``sum_k (-1)^{k+1} c_k / k v^T (J^T)^k v`` and the
vector ``w = sum_k (-1)^k c_k (J^T)^k v``; the surrogate ``w^T J v``, w held constant, then
carries the gradient at the memory of a single product (Chen et al. 2019, arXiv:1906.02735,
Theorem 2). Where the branch knows its exact trace, that replaces the first term.

The surrogate is an ordinary differentiable expression per sample, so any per-sample
cotangent is right. It is not meant to be differentiated twice: w is a constant.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contraflow.jacobian import Jacobian
from contraflow.logdet._strategy import event_sum


class Terms(NamedTuple):
    """Which rows take part in which term of the series.

    Args:
        counts: rows that take part in term k = 1, 2, ...; non-increasing.
        weights: c_k, the reciprocal of the probability with which a row takes part.
        order: ``[B]`` the first ``counts[k-1]`` rows of this permutation take part in term
            k; None when all rows take part in every term.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    order: Tensor | None = None


class Noise(NamedTuple):
    """Everything random about one evaluation: S probes ``[B, *E]`` and their terms."""

    probes: tuple[Tensor, ...]
    terms: tuple[Terms, ...]


def series_log_det(jacobian: Jacobian, noise: Noise) -> Tensor:
    """Return the mean over probes of the weighted series, ``[B]`` nats."""
    trace = jacobian.trace()
    estimates = [
        _one_probe(jacobian, probe, terms, skip_first=trace is not None)
        for probe, terms in zip(noise.probes, noise.terms, strict=True)
    ]
    rest = torch.stack(estimates).mean(0) if len(estimates) > 1 else estimates[0]
    return rest if trace is None else trace + rest


def _one_probe(jacobian: Jacobian, probe: Tensor, terms: Terms, *, skip_first: bool) -> Tensor:
    value, cotangent = _loop(jacobian, probe, terms, skip_first=skip_first)
    if not torch.is_grad_enabled():
        return value
    surrogate = event_sum(cotangent * jacobian.mv(probe), jacobian.event_dim)
    return value + (surrogate - surrogate.detach())


@torch.no_grad()
def _loop(
    jacobian: Jacobian, probe: Tensor, terms: Terms, *, skip_first: bool
) -> tuple[Tensor, Tensor]:
    rows = len(probe)
    active, product = jacobian, probe
    if terms.order is not None:
        active, product = jacobian.rows(terms.order), probe[terms.order]
    start = product
    value = event_sum(torch.zeros_like(probe), jacobian.event_dim)  # [B]
    cotangent = torch.zeros_like(probe) if skip_first else start.clone()
    for k, (count, weight) in enumerate(zip(terms.counts, terms.weights, strict=True), start=1):
        if count < len(product):
            active, product, start = active.rows(slice(0, count)), product[:count], start[:count]
        product = active.rmv(product)  # (J^T)^k v
        sign = -1.0 if k % 2 else 1.0
        if not (skip_first and k == 1):
            term = event_sum(start * product, jacobian.event_dim) * (-sign * weight / k)
            value = _add_to_head(value, term, rows)
        cotangent = _add_to_head(cotangent, product * (sign * weight), rows)
    if terms.order is None:
        return value, cotangent
    inverse = torch.empty_like(terms.order)
    inverse[terms.order] = torch.arange(rows, device=inverse.device)
    return value[inverse], cotangent[inverse]


def _add_to_head(total: Tensor, part: Tensor, rows: int) -> Tensor:
    if len(part) == rows:
        return total + part
    total[: len(part)] += part
    return total
