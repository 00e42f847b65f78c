"""Log-likelihoods with their errors: per row, and over a data set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from contraflow._edges import check_tensor
from contraflow.errors import ConfigurationError, DataError, ShapeError, SupportError
from contraflow.flow import Flow
from contraflow.kinds import Kind, Likelihood

_LEAST_DRAWS = 4  # fewer give no usable standard error


@dataclass(frozen=True)
class Estimate:
    """A log-likelihood per row and what is known of its error.

    Args:
        value: ``[*B]``, nats.
        stderr: ``[*B]``, standard error of ``value`` over the draws; 0 if nothing is random.
        bias_bound: largest possible |bias|, nats.
        kind: what ``value`` is.
        draws: independent evaluations behind ``value``.
    """

    value: Tensor
    stderr: Tensor
    bias_bound: float
    kind: Kind
    draws: int


class _Moments:
    """Running mean and variance of repeated evaluations (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, value: Tensor) -> None:
        self.count += 1
        delta = value - self.mean
        # -inf (outside the support) stays what it is; it has no spread.
        delta = torch.where((value == self.mean) | self.mean.isinf(), 0.0, delta)
        self.mean = self.mean + delta / self.count
        step = torch.where(self.mean.isinf(), 0.0, delta * (value - self.mean))
        self.squares = self.squares + step

    def variance_of_mean(self) -> Tensor:
        if self.count < 2:
            return torch.full_like(self.mean, math.inf)
        return self.squares / (self.count - 1) / self.count


def _most_draws(likelihood: Likelihood, max_draws: int) -> int:
    if not isinstance(max_draws, Integral) or isinstance(max_draws, bool):
        raise ConfigurationError(f"max_draws={max_draws!r}; expected a whole number.")
    if not likelihood.stochastic:
        return 1
    if max_draws < _LEAST_DRAWS:
        raise ConfigurationError(
            f"max_draws={max_draws}; expected {_LEAST_DRAWS} or more: fewer give no usable "
            "standard error."
        )
    return int(max_draws)


def _check_stderr(stderr: float) -> None:
    if not isinstance(stderr, Real) or not stderr > 0:
        raise ConfigurationError(f"stderr={stderr!r}; expected a wanted error above 0.")


@torch.no_grad()
def estimate_log_prob(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    stderr: float = 1e-2,
    max_draws: int = 4096,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Average independent evaluations of ``log_prob`` until every row is known well enough.

    Args:
        flow: used in its current mode (call ``flow.eval()`` for the evaluation strategy).
        x: ``[*B, *E]``.
        context: ``[*B, M]``.
        stderr: wanted standard error of every row, nats.
        max_draws: limit; when it is reached, ``Estimate.stderr`` says what was reached.
        generator: source of randomness.

    Returns:
        The estimate. A deterministic flow is evaluated once.

    Raises:
        ConfigurationError: the wanted error is not positive, or too few draws are allowed.

    Example:
        >>> import contraflow as cf
        >>> estimate = estimate_log_prob(cf.flows.MAF(features=2), torch.zeros(3, 2))
        >>> estimate.kind.value, estimate.stderr.tolist()
        ('exact', [0.0, 0.0, 0.0])
    """
    _check_stderr(stderr)
    likelihood = flow.likelihood
    moments = _Moments()
    while moments.count < _most_draws(likelihood, max_draws):
        moments.add(flow.log_prob(x, context, generator=generator).double())
        if moments.count >= _LEAST_DRAWS:
            if bool((moments.variance_of_mean() <= stderr**2).all()):
                break
    if likelihood.stochastic:
        error = moments.variance_of_mean().sqrt()
    else:
        error = torch.zeros_like(moments.mean)
    return Estimate(moments.mean, error, likelihood.bias_bound, likelihood.kind, moments.count)


@dataclass(frozen=True)
class Evaluation:
    """A mean negative log-likelihood over a data set, with everything that belongs to it.

    Args:
        value: mean, in ``unit``.
        unit: ``bits_per_dim`` (-log2 p / D, data on their integer scale) or ``nats`` (ln p).
        kind: kind of likelihood.
        stderr: Monte-Carlo error of the mean over this fixed set, in ``unit``.
        stderr_data: sampling error of the set, in ``unit``; None for a single row.
        bias_bound: largest possible |bias|, in ``unit``.
        n: rows.
        draws: evaluations of every row (dequantisation and log-determinant noise).
        value_protocol: the value in the units of the paper's protocol.
    """

    value: float
    unit: str
    kind: str
    stderr: float
    stderr_data: float | None
    bias_bound: float
    n: int
    draws: int
    value_protocol: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one line with value, kind and errors."""
        unit = "bits/dim" if self.unit == "bits_per_dim" else "nats"
        bias = f", bias <= {self.bias_bound:.1e}" if self.bias_bound else ""
        return (
            f"{self.value:.4f} {unit} ({self.kind}; +- {self.stderr:.1g} Monte Carlo, "
            f"+- {self.stderr_data or math.nan:.2g} from {self.n} rows{bias})"
        )


@torch.no_grad()
def evaluate_likelihood(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    stderr: float = 1e-3,
    max_draws: int = 256,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Evaluation:
    """Return the mean likelihood of a data set: bits/dim for integer data, nats otherwise.

    Args:
        flow: used in its current mode.
        x: ``[N, *E]``.
        context: ``[N, M]``.
        weights: how much each row counts in the mean, ``[N]``; None for equal weights. The
            sampling error is then that of a weighted mean.
        stderr: wanted Monte-Carlo error of the mean, in the unit of the value.
        max_draws: most evaluations of the whole set.
        generator: source of randomness.

    Raises:
        ConfigurationError: the wanted error is not positive, or too few draws are allowed.
        DataError: there is no row.
        ShapeError: x is not ``[N, *E]``, or the context does not fit.
        SupportError: a row has probability zero or a value that is not finite.
    """
    _check_stderr(stderr)
    check_tensor("x", x)
    if x.ndim != 1 + len(flow.event_shape):
        raise ShapeError(
            f"evaluation: got x of shape {tuple(x.shape)}; expected [N, "
            f"{', '.join(map(str, flow.event_shape))}]."
        )
    if len(x) == 0:
        raise DataError("evaluation: got 0 rows; expected 1 or more.")
    likelihood = flow.likelihood
    bits = flow.transform.domain.integer
    scale = -1 / (flow.size * math.log(2)) if bits else 1.0
    moments = _Moments()
    error = 0.0
    count = torch.ones(len(x)) if weights is None else weights
    shares = count.double() / count.double().sum()
    while moments.count < _most_draws(likelihood, max_draws):
        moments.add(flow.log_prob(x, context, generator=generator).double() * scale)
        if not bool(moments.mean.isfinite().all()):
            bad = (~moments.mean.isfinite()).nonzero().reshape(-1)
            raise SupportError(
                f"evaluation: {len(bad)} of {len(x)} rows have no finite log-likelihood (first: "
                f"row {int(bad[0])}); expected finite values inside the support."
            )
        if likelihood.stochastic and moments.count >= _LEAST_DRAWS:
            error = (moments.variance_of_mean() * shares**2).sum().sqrt().item()
            if error <= stderr:
                break
    value = (moments.mean * shares).sum().item()
    spread = None
    counted = int((count > 0).sum())
    if counted > 1:
        # Of a ratio of means, with the factor that makes it the usual one for equal weights.
        squares = (shares * (moments.mean - value)).square().sum().item()
        spread = math.sqrt(squares * counted / (counted - 1))
    return Evaluation(
        value=value,
        unit="bits_per_dim" if bits else "nats",
        kind=str(likelihood.kind),
        stderr=error,
        stderr_data=spread,
        bias_bound=likelihood.bias_bound * abs(scale),
        n=len(x),
        draws=moments.count,
        value_protocol=value,
    )
