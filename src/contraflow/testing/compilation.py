"""Does the compiled transform equal the eager one, in value and gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from contraflow.flow import Flow
from contraflow.testing._compare import close, prepared, require
from contraflow.testing.registry import Case


def check_compiled(
    case: Case,
    *,
    backend: str = "aot_eager",
    rows: int = 3,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> None:
    """Check that ``torch.compile(fullgraph=True)`` gives eager's values and gradients.

    A flow's ``log_prob`` is compiled, or a transform's ``forward``.

    Args:
        case: one whose ``forward`` does not iterate.
        backend: "inductor" generates code; "aot_eager" only traces forward and backward, in
            a fifth of the time.
        rows: points.
        tolerance: largest error, relative to ``1 + max |expected|``.
        seed: of points and noise, which is drawn outside and passed in.

    Raises:
        AssertionError: values or gradients differ, or there is no single graph.
    """
    require(case, "a forward that does not iterate", not case.iterative)
    case, generator = prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)

    def outputs(x: Tensor, context: Tensor | None, noise: Any) -> tuple[Tensor, ...]:
        if isinstance(case.module, Flow):
            return (case.module.log_prob(x, context, noise=noise),)
        return case.forward(x, context, noise)

    expected = _values_and_gradients(case, outputs, x, context, noise)
    torch.compiler.reset()
    compiled = torch.compile(outputs, fullgraph=True, backend=backend)
    try:
        with warnings.catch_warnings():
            for text in _COMPILER_WARNINGS:
                warnings.filterwarnings("ignore", text)
            got = _values_and_gradients(case, compiled, x, context, noise)
    except TorchDynamoException as error:
        raise AssertionError(
            f"{case.name}: got no single graph; expected torch.compile(fullgraph=True) to take "
            f"the noise from outside and trace everything. {error}"
        ) from error
    finally:
        torch.compiler.reset()
    for name, value in expected.items():
        close(case, f"{name} compiled by {backend}", got[name], value, tolerance)


# What torch 2.13's compiler says of its own insides.
_COMPILER_WARNINGS = (
    ".*should not be instantiated",  # any autograd.Function
    ".*_prims_common.check. is deprecated",
    ".*torch.jit.script_method. is deprecated",
    ".*does not support code generation for complex operators",  # it calls eager's FFT instead
)


def _values_and_gradients(
    case: Case,
    function: Callable[[Tensor, Tensor | None, Any], tuple[Tensor, ...]],
    x: Tensor,
    context: Tensor | None,
    noise: Any,
) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    inputs = {"x": x, **dict(case.transform.named_parameters())}
    if context is not None:
        context = inputs["context"] = context.clone().requires_grad_()
    values = function(x, context, noise)
    loss = torch.zeros((), dtype=x.dtype)
    for value in values:  # an uneven cotangent for every entry
        loss = loss + (value * torch.linspace(1, 2, value.numel()).reshape(value.shape)).sum()
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    results = {f"output {i}": value.detach() for i, value in enumerate(values)}
    for (name, value), gradient in zip(inputs.items(), found, strict=True):
        gradient = torch.zeros_like(value) if gradient is None else gradient
        results[f"gradient in {name}"] = gradient
    return results
