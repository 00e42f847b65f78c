"""How the checks compare, and what they say when they fail."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from contraflow.errors import ConfigurationError
from contraflow.evaluation import Certificate
from contraflow.flow import Flow
from contraflow.testing.registry import Case
from contraflow.transform import Sequential, Transform
from contraflow.transforms import Reshape


def prepared(case: Case, seed: int) -> tuple[Case, torch.Generator]:
    return case.to(torch.float64), torch.Generator().manual_seed(seed)


def require(case: Case, what: str, holds: bool) -> None:
    if not holds:
        raise ConfigurationError(
            f"{case.name}: this check needs {what}; the case does not declare it. "
            "invariants_of(case) lists the checks that apply."
        )


def close(case: Case, what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    if got.shape != expected.shape:
        raise AssertionError(
            f"{case.name}: {what} has shape {tuple(got.shape)}; expected {tuple(expected.shape)}."
        )
    if got.numel() == 0:
        return
    error = (got - expected).abs()
    allowed = tolerance * (1 + expected.abs().max().item())
    worst = error.max().item()
    if not worst <= allowed:  # NaN fails too
        place = int(error.flatten().nan_to_num(math.inf).argmax())
        raise AssertionError(
            f"{case.name}: {what} is {got.flatten()[place].item():.10g}; expected "
            f"{expected.flatten()[place].item():.10g} (error {worst:.1e}, allowed {allowed:.1e})."
        )


def equal(case: Case, what: str, got: Tensor, expected: Tensor) -> None:
    if not same_bits(got, expected):
        raise AssertionError(
            f"{case.name}: {what} is {shown(got)}; expected {shown(expected)}, bit for bit."
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def shown(value: Tensor | None) -> str:
    if value is None:
        return "missing"
    numbers = value.flatten()[:4].tolist()
    return f"{numbers}{'...' if value.numel() > 4 else ''} ({value.dtype}, {tuple(value.shape)})"


def where(keep: Tensor, a: Any, b: Any) -> Any:
    if a is None:
        return None
    return torch.where(keep.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def dense_jacobian(case: Case, x: Tensor, context: Tensor | None, noise: Any) -> Tensor:
    """Return ``dz/dx``, ``[rows, D, D]``, each row differentiated alone."""
    rows = []
    for i in range(len(x)):
        given = None if context is None else context[i : i + 1]
        drawn = row_of(noise, i)

        def latent(row: Tensor, given: Tensor | None = given, drawn: Any = drawn) -> Tensor:
            return case.forward(row[None], given, drawn)[0].flatten()

        if case.iterative:  # torch.func cannot follow a loop whose length depends on the data
            matrix = torch.autograd.functional.jacobian(latent, x[i])
        else:
            matrix = torch.func.jacrev(latent)(x[i])
        assert isinstance(matrix, Tensor)
        rows.append(matrix.reshape(case.size, case.size).detach())
    return torch.stack(rows)


def flow_of(case: Case) -> Flow | None:
    """Return the case as a flow; None where its context is no vector."""
    if isinstance(case.module, Flow):
        return case.module
    if len(case.context_shape) > 1:
        return None
    features = case.context_shape[0] if case.context_shape else 0
    latent = case.module.latent_shape(case.event_shape)
    transform: Transform = case.module
    if len(latent) != 1:
        transform = Sequential(transform, Reshape(latent, (math.prod(latent),)))
    flow = Flow(transform, event_shape=case.event_shape, context=features)
    return flow.train(case.module.training)


def claims_a_bound(certificate: Certificate) -> bool:
    return any(
        bound is not None
        for block in certificate.blocks
        for bound in (block.lipschitz, block.forward, block.inverse)
    )


def row_of(noise: Any, index: int) -> Any:
    """Return the noise that one row of a batch sees.

    Args:
        noise: None, tensors ``[B, ...]``, a series strategy's noise, or tuples of these.
        index: the row.

    Raises:
        ConfigurationError: a value is of another type.

    Example:
        >>> row_of((None, torch.tensor([[1.0], [2.0]])), 1)
        (None, tensor([[2.]]))
    """
    if noise is None:
        return None
    if isinstance(noise, Tensor):
        return noise[index : index + 1]
    if hasattr(noise, "counts"):  # logdet.Terms: the row takes part in its first few terms
        place = index if noise.order is None else noise.order.tolist().index(index)
        taken = [k for k, count in enumerate(noise.counts) if place < count]
        return type(noise)((1,) * len(taken), tuple(noise.weights[k] for k in taken), None)
    if isinstance(noise, tuple):
        parts = [row_of(part, index) for part in noise]
        return type(noise)(*parts) if hasattr(noise, "_fields") else tuple(parts)
    raise ConfigurationError(
        f"noise of type {type(noise).__name__}; expected None, a tensor, logdet.Terms or a tuple "
        "of these."
    )
