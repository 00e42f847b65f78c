"""Checks of values at a flow's edges: what comes in, and why what came out is not finite.

Values are looked at only in eager mode, and the inputs only once a result is not finite: a
call without trouble costs one reduction over its rows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contraflow.errors import (
    ConvergenceError,
    DivergenceError,
    DtypeError,
    ShapeError,
    SupportError,
)


def is_eager(x: Tensor) -> bool:
    """Tell whether values can be looked at: nothing compiles, traces, captures or transforms."""
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def check_tensor(name: str, x: Any) -> None:
    """Refuse what is no dense tensor.

    Raises:
        DtypeError: x is a list, an array, a sparse tensor, ...
    """
    if not isinstance(x, Tensor):
        raise DtypeError(
            f"flow: {name} is a {type(x).__name__}; expected a torch.Tensor, such as "
            f"torch.as_tensor({name}) of the flow's dtype."
        )
    if x.layout != torch.strided:
        raise DtypeError(f"flow: {name} is {x.layout}; expected a dense tensor: {name}.to_dense().")


def checked_shape(shape: Any) -> torch.Size:
    """Return a sample shape: an integer n stands for ``(n,)``.

    Raises:
        ShapeError: it is no whole number of 0 or more and no sequence of such.

    Example:
        >>> checked_shape(3), checked_shape([2, 0])
        (torch.Size([3]), torch.Size([2, 0]))
    """
    sizes: Any = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    try:
        numbers = [operator.index(size) for size in sizes]
    except TypeError:
        numbers = [-1]
    if any(isinstance(size, bool) for size in sizes) or any(n < 0 for n in numbers):
        raise ShapeError(
            f"sample: got the shape {shape!r}; expected a whole number of 0 or more, or a "
            "sequence of such, for example 64 or (8, 8)."
        )
    if max(numbers, default=0) >= 2**63:
        raise ShapeError(f"sample: got the shape {shape!r}; expected sizes below 2**63.")
    return torch.Size(numbers)


def check_context(context: Tensor) -> None:
    """Refuse rows ``[R, M]`` that are not finite.

    Raises:
        SupportError: names the first row.
    """
    bad = ~context.isfinite()
    if bool(bad.any()):
        row = int(bad.any(-1).nonzero()[0])
        raise SupportError(
            f"flow: row {row} of the context is {context[row].tolist()}; expected finite numbers. "
            "Remove or impute it."
        )


def check_draws(x: Tensor, log_prob: Tensor | None = None) -> Tensor:
    """Return draws ``[R, *E]`` if they, and their log-densities, are numbers.

    Raises:
        ConvergenceError: a draw, or its log-density, is not finite.
    """
    finite = x.isfinite().flatten(1).all(-1)
    if log_prob is not None:
        finite = finite & log_prob.isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ConvergenceError(
            f"sample: {int((~finite).sum())} of {len(x)} draws are not finite (first: {row}); "
            f"the inverse overflows {x.dtype}. Check the weights and the context, or use "
            "flow.double()."
        )
    return x


def explained(log_prob: Tensor, x: Tensor, context: Tensor | None, flow: nn.Module) -> Tensor:
    """Return log-densities ``[R]`` without NaN, -inf where x is too far out; or say what is wrong.

    Args:
        log_prob: with entries that are not finite.
        x: ``[R, *E]``.
        context: ``[R, M]`` or None.
        flow: whose weights are to blame if no input is.

    Raises:
        SupportError: a row of x holds NaN, a context is not finite, or a moderate x overflows.
        DivergenceError: a weight is not finite.
    """
    missing = x.isnan().flatten(1).any(-1)
    if bool(missing.any()):
        row = int(missing.nonzero()[0])
        raise SupportError(
            f"log_prob: {int(missing.sum())} of {len(x)} rows of x hold NaN (first: row {row}); "
            "expected numbers. Remove or impute them."
        )
    if context is not None:
        check_context(context)
    broken = ~(log_prob < math.inf)  # NaN or +inf
    if not bool(broken.any()):
        return log_prob
    for name, weight in flow.named_parameters():
        if not bool(weight.isfinite().all()):
            raise DivergenceError(
                f"log_prob: {name} of the flow is not finite; training diverged. Lower the "
                "learning rate, clip gradients, or go back to an earlier checkpoint."
            )
    # The square of such an x overflows, and with it minus the log-density.
    far = x.abs().flatten(1).amax(-1) > math.sqrt(torch.finfo(x.dtype).max)
    if bool((broken & ~far).any()):
        row = int((broken & ~far).nonzero()[0])
        raise SupportError(
            f"log_prob: the density of row {row} is not a number in {x.dtype}, though x and the "
            "weights are: something overflows on the way. Use flow.double(), or data, context "
            "and weights of a moderate size; certify(flow) shows whether every block contracts."
        )
    return torch.where(broken, -math.inf, log_prob)
