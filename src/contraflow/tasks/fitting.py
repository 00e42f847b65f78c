"""Fit a flow to a tensor in one line."""

from __future__ import annotations

import re
import tempfile
from dataclasses import fields
from datetime import timedelta
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contraflow._edges import check_tensor
from contraflow.data import Part, Splits
from contraflow.data.splits import check_weights
from contraflow.errors import ConfigurationError, DataError, DtypeError, ShapeError, nearest
from contraflow.flow import Flow
from contraflow.tasks.density import Optimisation
from contraflow.tasks.training import train


def fit(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    validation: float = 0.1,
    max_epochs: int = 200,
    max_time: timedelta | str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Flow:
    """Fit a flow to rows in one line: early stopping, EMA, the best weights kept.

    Args:
        flow: any flow; trained in place and returned in ``eval()`` mode.
        x: ``[N, *E]``, data units, of the flow's dtype.
        context: ``[N, M]``.
        weights: ``[N]``, how much each row counts, 0 or more; None for equal weights.
        validation: share of the rows, chosen at random, that decides when to stop.
        max_epochs: most passes over the data.
        max_time: wall-clock limit, as ``timedelta`` or ``"DD:HH:MM:SS"``.
        seed: seed of split, order and noise.
        **settings: fields of ``Optimisation``.

    Raises:
        ConfigurationError: a setting is unknown or out of range.
        DataError: too few rows, values that are not finite or outside the support, or weights
            that are none.
        ShapeError: x is not ``[N, *E]``, or the context does not fit.
        DtypeError: dtypes differ from the flow's.
        DivergenceError: the loss became NaN or infinite.

    Example:
        >>> import contraflow as cf
        >>> flow = cf.flows.MAF(features=2, transforms=1, hidden_features=(8,))
        >>> _ = fit(flow, torch.randn(64, 2), max_epochs=1)
        >>> flow.log_prob(torch.zeros(2)).isfinite().item()
        True
    """
    optimisation = _optimisation(settings)
    _check_limits(validation, max_epochs, max_time, seed)
    rows = _checked_rows(flow, x, context, weights)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    held = min(max(1, round(validation * len(rows))), len(rows) - 2)
    held_out, rest = rows.rows(order[:held]), rows.rows(order[held:])
    splits = Splits("fit", rest, held_out, held_out)
    with tempfile.TemporaryDirectory() as folder:
        train(
            flow,
            splits,
            Path(folder),
            optimisation=optimisation,
            seed=seed,
            trainer={"max_epochs": max_epochs, "max_time": max_time},
        )
    return flow


def _optimisation(settings: dict[str, Any]) -> Optimisation:
    names = [field.name for field in fields(Optimisation)]
    for name in settings:
        if name not in names:
            raise ConfigurationError(
                f"fit takes no setting {name!r}{nearest(name, names) or '.'} Known: "
                f"{', '.join(names)}."
            )
    return Optimisation(**settings)


def _check_limits(
    validation: float, max_epochs: int, max_time: timedelta | str | None, seed: int
) -> None:
    """Refuse limits that Lightning would refuse late, or never."""
    if not isinstance(validation, Real) or not 0 < validation < 1:
        raise ConfigurationError(f"validation={validation!r}; expected a share in (0, 1).")
    for name, value, least in (("max_epochs", max_epochs, 1), ("seed", seed, 0)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not least <= value < 2**63:
            raise ConfigurationError(f"{name}={value!r}; expected a whole number from {least}.")
    spelt = isinstance(max_time, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", max_time)
    span = isinstance(max_time, timedelta) and max_time > timedelta(0)
    if max_time is not None and not (spelt or span):
        raise ConfigurationError(
            f'max_time={max_time!r}; expected a timedelta above 0 or "DD:HH:MM:SS", such as '
            '"00:00:10:00" for ten minutes.'
        )


def _checked_rows(flow: Flow, x: Tensor, context: Tensor | None, weights: Tensor | None) -> Part:
    """Return the rows that count; raise if one cannot be fitted."""
    check_tensor("x", x)
    for name, values in (("context", context), ("weights", weights)):
        if values is not None:
            check_tensor(name, values)
    if x.ndim != 1 + len(flow.event_shape):
        raise ShapeError(
            f"fit: got x of shape {tuple(x.shape)}; expected [N, "
            f"{', '.join(map(str, flow.event_shape))}]."
        )
    if not any(parameter.requires_grad for parameter in flow.parameters()):
        raise ConfigurationError("fit: the flow has no parameter to fit.")
    if weights is not None:
        if weights.is_complex():
            raise DtypeError(f"fit: weights is {weights.dtype}; expected real numbers.")
        check_weights(weights, len(x))
        weights = _plain(weights).to(flow._like().dtype)
    if len(x) > 0:
        flow.log_prob(x[:1].nan_to_num(), _first_row(context))  # shapes and dtypes
    for name, values in (("x", x), ("context", context)):
        if values is not None and not bool(values.isfinite().all()):
            row = int((~values.isfinite()).reshape(len(values), -1).any(1).nonzero()[0])
            raise DataError(f"fit: row {row} of {name} is not finite; remove or impute it.")
    inside = flow.transform.domain.contains(x, len(flow.event_shape))
    if not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        raise DataError(
            f"fit: row {row} of x lies outside the support, "
            f"{flow.transform.domain.constraint(len(flow.event_shape))}; remove it, or build the "
            "flow with the support of the data."
        )
    rows = Part(_plain(x), None if context is None else _plain(context), weights)
    if weights is not None:  # a row of weight 0 would only dilute the validation
        rows = rows.rows(weights > 0)
    if len(rows) < 3:
        raise DataError(
            f"fit: got {len(rows)} rows{' of positive weight' if weights is not None else ''}; "
            "expected 3 or more, one of them to validate."
        )
    return rows


def _plain(values: Tensor) -> Tensor:
    """Return the values without a graph, and not as an inference tensor, which no loss takes."""
    return values.clone().detach() if values.is_inference() else values.detach()


def _first_row(context: Tensor | None) -> Tensor | None:
    return None if context is None or context.ndim == 0 else context[:1].nan_to_num()
