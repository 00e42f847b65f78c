"""A flow: a bijection to latent space and a density there."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from contraflow._edges import (
    check_context,
    check_draws,
    check_tensor,
    checked_shape,
    explained,
    is_eager,
)
from contraflow.distributions.base import Base, StandardNormal
from contraflow.errors import DataError, DtypeError, ShapeError, SupportError
from contraflow.kinds import Kind, Likelihood
from contraflow.logdet import LogDet
from contraflow.registry import register
from contraflow.solvers import Solution, Solver
from contraflow.transform import Transform, apply_forward, apply_inverse

# Rows of one chunk: a dense Jacobian of D x D per row stays within this many numbers, and what
# a layer makes of the rows within a processor's cache.
_CHUNK_NUMBERS = 2**22
_CHUNK_ROWS = 2**11
_MOST_DRAWN = 2**40  # numbers of one call of sample: terabytes, which nobody means


@register
class Flow(nn.Module):
    """A density ``p(x | context) = base(f(x)) |det df/dx|``.

    Args:
        transform: bijection f from data to a flat latent vector ``[*B, D]``.
        base: density of the latent vector; None for a standard normal.
        event_shape: shape E of one x: ``(D,)`` or ``(C, H, W)``.
        context: M, features of the context; 0 for an unconditional density.

    Raises:
        ShapeError: the transform does not take ``event_shape`` to the base's vector.

    Example:
        >>> from contraflow.transforms import Standardise
        >>> flow = Flow(Standardise(2), event_shape=(2,))
        >>> f"{flow.log_prob(torch.zeros(2)).item():.4f}"  # -ln(2 pi)
        '-1.8379'
        >>> flow.sample((3, 4)).shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        transform: Transform,
        base: Base | None = None,
        event_shape: Sequence[int] = (),
        context: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.context = context
        if not 0 <= context < 2**31 or any(size < 1 for size in self.event_shape):
            raise ShapeError(
                f"Flow: got events {tuple(self.event_shape)} and a context of {context}; expected "
                "sizes of 1 or more, and 0 for no context."
            )
        latent = transform.latent_shape(self.event_shape)
        if len(latent) != 1:
            raise ShapeError(
                f"Flow: the transform ends in events {tuple(latent)}; expected one flat vector "
                "(append Reshape)."
            )
        self.transform = transform
        self.base = base or StandardNormal(latent[0])
        if self.base.features != latent[0]:
            raise ShapeError(
                f"Flow: the base has {self.base.features} features, the latent vector {latent[0]}."
            )

    @classmethod
    def rebuild(
        cls, transform: Transform, base: Base, event_shape: Sequence[int], context: int
    ) -> Self:
        """Assemble a flow of this class from its parts: what a saved file describes.

        Recipes (``flows``) only choose the parts, so the parts are all that is saved.
        """
        flow = cls.__new__(cls)
        Flow.__init__(flow, transform, base, event_shape, context)
        return flow

    # --- what it is ---------------------------------------------------------------------

    @property
    def likelihood(self) -> Likelihood:
        """Return kind and bias bound (nats per event) of ``log_prob`` in the current mode."""
        return self.transform.likelihood(self.event_shape)

    @property
    def kind(self) -> Kind:
        """Return the kind of ``log_prob`` in the current mode."""
        return self.likelihood.kind

    @property
    def size(self) -> int:
        """Return D, the entries of one x."""
        return math.prod(self.event_shape)

    def using(self, *, log_det: LogDet | None = None, solver: Solver | None = None) -> Self:
        """Return a view with other strategies that shares every parameter and buffer.

        Args:
            log_det: strategy for every residual block, in both modes; None keeps theirs.
            solver: root solver for every block; None keeps theirs.

        Example:
            >>> import contraflow as cf
            >>> flow = cf.flows.ResidualFlow(2, transforms=1)
            >>> view = flow.using(log_det=cf.logdet.PowerSeries(terms=5))
            >>> flow.eval().kind.value, view.eval().kind.value
            ('exact', 'truncated')
        """
        view = _shallow(self)
        for module in view.modules():
            if not isinstance(module, Transform):
                continue
            if log_det is not None and isinstance(getattr(module, "log_det", None), LogDet):
                vars(module).update(log_det=log_det, eval_log_det=log_det)
            if solver is not None and "solver" in vars(module):
                vars(module).update(solver=solver)
        return view

    # --- density ------------------------------------------------------------------------

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the log-density of ``[*B, *E]``, ``[*B]`` nats, of kind ``flow.kind``.

        Args:
            x: ``[*B, *E]`` in the data's own units; broadcasts against the context.
            context: ``[*B, M]``, finite.
            noise: what ``draw_noise`` returned, for common random numbers; one batch.
            generator: source of the noise otherwise; None for torch's global one.

        Returns:
            ``[*B]``; -inf outside the support, at infinite x, and where x is so large that its
            square and then the density itself leave the dtype. Never NaN, except under
            ``torch.compile`` and ``torch.func``, where no value can be looked at. Large inputs
            are evaluated in chunks when no gradient is wanted.

        Raises:
            ShapeError: shapes do not fit.
            DtypeError: dtypes or devices differ, or x is no tensor.
            SupportError: a row of x holds NaN, a context is not finite, or the density of a
                moderate x overflows the flow's dtype.
            DivergenceError: a weight of the flow is not finite.
        """
        flat, flat_context, batch = self._flatten(x, context)
        size = self._chunk_rows() if noise is None and not torch.is_grad_enabled() else len(flat)
        if len(flat) <= size:
            values = self._log_prob(flat, flat_context, noise, generator)
        else:
            parts = [
                self._log_prob(rows, given, None, generator)
                for rows, given in _chunks(flat, flat_context, size)
            ]
            values = torch.cat(parts)
        if is_eager(values) and not bool(values.isfinite().all()):
            values = explained(values, flat, flat_context, self)
        return values.reshape(batch)

    def _log_prob(
        self,
        x: Tensor,
        context: Tensor | None,
        noise: Any,
        generator: torch.Generator | None,
    ) -> Tensor:
        domain = self.transform.domain
        inside = None
        if not domain.unbounded:
            inside = domain.contains(x, len(self.event_shape))
            x = domain.replace_rows(x, inside)
        if noise is None and self.transform.stochastic and not torch.compiler.is_compiling():
            noise = self.transform.draw(x.shape, x, generator)
        with self._own_precision():
            z, ladj = apply_forward(self.transform, x, context, noise)
            log_prob = self.base.log_prob(z) + ladj
        return log_prob if inside is None else torch.where(inside, log_prob, -math.inf)

    def _own_precision(self) -> torch.autocast:
        """Keep autocast out: log-determinants, norms and roots need the flow's own precision."""
        return torch.autocast(self._like().device.type, enabled=False)

    def draw_noise(self, rows: int, generator: torch.Generator | None = None) -> Any:
        """Draw what ``log_prob`` of ``rows`` flat rows needs, eagerly."""
        shape = torch.Size((rows, *self.event_shape))
        return self.transform.draw(shape, self._like(), generator)

    def _chunk_rows(self) -> int:
        return max(64, min(_CHUNK_ROWS, _CHUNK_NUMBERS // max(self.size, 1) ** 2))

    # --- sampling -----------------------------------------------------------------------

    def sample(
        self,
        shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``[*shape, *C, *E]``; without gradient.

        Args:
            shape: sample shape; an integer n stands for ``(n,)``.
            context: ``[*C, M]``, finite.
            generator: source of the randomness.

        Raises:
            ShapeError: ``shape`` is no shape, or the context does not fit.
            SupportError: a context is not finite.
            ConvergenceError: a root missed its tolerance, or a draw overflowed.
        """
        batch, context = self._batch_of_draws(shape, context)
        with torch.no_grad(), self._own_precision():
            z = self.base.sample(batch, self._like(), generator).reshape(-1, self.base.features)
            rows = None
            if context is not None:
                rows = context.expand(*batch, self.context).reshape(-1, self.context)
            parts = [
                self.transform.invert(part, given)
                for part, given in _chunks(z, rows, self._chunk_rows())
            ]
        return check_draws(torch.cat(parts)).reshape(*batch, *self.event_shape)

    def _batch_of_draws(
        self, shape: int | Sequence[int], context: Tensor | None
    ) -> tuple[torch.Size, Tensor | None]:
        """Return the batch shape of draws, and the context, checked."""
        context = self._check_context(context)
        if context is not None and is_eager(context):
            check_context(context.reshape(-1, self.context))
        batch = checked_shape(shape) + (torch.Size() if context is None else context.shape[:-1])
        if math.prod(batch) * self.size > _MOST_DRAWN:
            raise ShapeError(
                f"sample: got a sample shape of {tuple(batch)}, {math.prod(batch):.1e} draws; "
                f"expected at most 2**40 numbers in all. Draw them in parts."
            )
        return batch, context

    def rsample_and_log_prob(
        self,
        shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw differentiable samples and their log-density, with one inverse.

        Raises:
            ShapeError: ``shape`` is no shape, or the context does not fit.
            ConvergenceError: a root missed its tolerance, or a draw overflowed.
            SupportError: a context is not finite, or the data are integers, whose draws have
                no gradient.
        """
        if self.transform.domain.discrete:
            raise SupportError(
                "rsample: draws of integer data are rounded and have no gradient; use sample(), "
                "or the flow behind its dequantisation."
            )
        batch, context = self._batch_of_draws(shape, context)
        z = self.base.sample(batch, self._like(), generator).reshape(-1, self.base.features)
        rows = None
        if context is not None:
            rows = context.expand(*batch, self.context).reshape(-1, self.context)
        noise = self.draw_noise(len(z), generator)
        with self._own_precision():
            x, ladj = apply_inverse(self.transform, z, rows, noise)
            log_prob = self.base.log_prob(z) - ladj
        if is_eager(x):
            check_draws(x, log_prob)
        return x.reshape(*batch, *self.event_shape), log_prob.reshape(batch)

    def solve_inverse(self, z: Tensor, context: Tensor | None = None) -> Solution:
        """Invert latent rows ``[B, D]`` and tell how exact the answer is."""
        with self._own_precision():
            return self.transform.solve_inverse(z, context)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return the distribution for a context ``[*C, M]``: batch shape C, event shape E."""
        return FlowDistribution(self, self._check_context(context))

    # --- preparation --------------------------------------------------------------------

    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set every data-dependent parameter from a batch ``[*B, *E]``; once is enough.

        Raises:
            DataError: fewer than two rows, or values that are not finite.
        """
        flat, flat_context, _ = self._flatten(x, context)
        if len(flat) < 2 or not bool(flat.isfinite().all()):
            raise DataError(
                f"initialise_from: got {len(flat)} rows with {int((~flat.isfinite()).sum())} "
                "values that are not finite; expected 2 or more finite rows."
            )
        self.transform.initialise_from(flat, flat_context)

    def enforce_bounds_(self) -> None:
        """Rescale the weights so that the certificate holds; the density does not change."""
        self.transform.enforce_bounds_()

    def save(self, path: Any, *, metadata: dict[str, Any] | None = None) -> None:
        """Write weights, configuration and certificate into one safetensors file."""
        from contraflow.serialization import save

        save(self, path, metadata=metadata)

    # --- edges --------------------------------------------------------------------------

    def _like(self) -> Tensor:
        """Return some floating tensor of the flow: its dtype and device are the flow's."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.empty(0)

    def _check_context(self, context: Tensor | None) -> Tensor | None:
        if context is not None:
            check_tensor("context", context)
        if (context is None) != (self.context == 0):
            got = "no context" if context is None else f"a context of shape {tuple(context.shape)}"
            expected = f"one of shape (*B, {self.context})" if self.context else "none"
            raise ShapeError(f"flow: got {got}; expected {expected}.")
        if context is not None:
            if context.ndim == 0 or context.shape[-1] != self.context:
                raise ShapeError(
                    f"flow: got a context of shape {tuple(context.shape)}; expected "
                    f"(*B, {self.context})."
                )
            self._check_dtype("context", context)
        return context

    def _check_dtype(self, name: str, x: Tensor) -> None:
        like = self._like()
        expected = like.dtype if like.numel() else x.dtype  # without weights, any float will do
        if x.dtype != expected or not x.is_floating_point():
            raise DtypeError(
                f"flow: {name} is {x.dtype}, the flow {like.dtype}; convert the data with "
                f"{name}.to({like.dtype}), or the flow with "
                f"{'flow.double()' if x.dtype == torch.float64 else 'flow.float()'}."
            )
        if like.numel() and x.device != like.device:
            raise DtypeError(
                f"flow: {name} is on {x.device}, the flow on {like.device}; move the data with "
                f"{name}.to({str(like.device)!r}), or the flow."
            )

    def _check_x(self, x: Tensor) -> Tensor:
        """Return x in the flow's dtype if it holds levels; check its kind, shape and dtype."""
        check_tensor("x", x)
        dims = len(self.event_shape)
        if x.shape[x.ndim - dims :] != self.event_shape or x.ndim < dims:
            raise ShapeError(
                f"flow: got x of shape {tuple(x.shape)}; expected (*B, "
                f"{', '.join(map(str, self.event_shape))})."
            )
        if self.transform.domain.discrete and not (x.is_floating_point() or x.is_complex()):
            x = x.to(self._like().dtype)
        self._check_dtype("x", x)
        return x

    def _flatten(
        self, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Check, broadcast x with the context, and flatten to one batch axis."""
        x, dims = self._check_x(x), len(self.event_shape)
        context = self._check_context(context)
        batch = x.shape[: x.ndim - dims]
        if context is not None:
            try:
                batch = torch.broadcast_shapes(batch, context.shape[:-1])
            except RuntimeError:
                raise ShapeError(
                    f"flow: x has batch shape {tuple(batch)}, the context "
                    f"{tuple(context.shape[:-1])}; expected shapes that broadcast."
                ) from None
            context = context.expand(*batch, self.context).reshape(-1, self.context)
            x = x.expand(*batch, *self.event_shape)
        rows = math.prod(batch)  # not -1, which an empty batch leaves open
        flat = x.reshape(rows, *self.event_shape)
        if is_eager(x) and torch.is_grad_enabled():  # what inference mode made has no gradients
            flat = flat.clone() if flat.is_inference() else flat
            context = context.clone() if context is not None and context.is_inference() else context
        return flat, context, batch

    def extra_repr(self) -> str:
        """Return a summary, for ``print``."""
        parameters = sum(p.numel() for p in self.parameters())
        likelihood = self.likelihood
        bound = f" (bias <= {likelihood.bias_bound:.1e} nats)" if likelihood.bias_bound else ""
        mode = "training" if self.training else "evaluation"
        return (
            f"event_shape={tuple(self.event_shape)}, context={self.context}, "
            f"parameters={parameters:,}, kind in {mode}: {likelihood.kind}{bound}"
        )


class FlowDistribution(Distribution):
    """A flow at a context, as a ``torch.distributions.Distribution``.

    Args:
        flow: the flow.
        context: ``[*C, M]`` or None; C becomes the batch shape.
        validate_args: check that values lie in the support; with False, ``log_prob`` outside
            the support is -inf. Not torch's global default, which a first ``torch.compile``
            and some libraries switch off behind the user's back.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        flow: Flow,
        context: Tensor | None = None,
        validate_args: bool = True,
    ) -> None:
        self.flow = flow
        self.context = context
        batch = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch, flow.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Tell whether draws have gradients: not those of integer data."""
        return not self.flow.transform.domain.discrete

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the set of x with positive density."""
        return self.flow.transform.domain.constraint(len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, sample shape + batch shape.

        Raises:
            SupportError: a value lies outside the support (with ``validate_args``).
            ShapeError: shapes do not fit.
        """
        value, context = self._broadcast(value)
        if self._validate_args:
            dims = len(self.event_shape)
            inside = self.flow.transform.domain.contains(value, dims)
            inside = inside & value.flatten(value.ndim - dims).isfinite().all(-1)
            if not bool(inside.all()):
                bad = int((~inside).sum())
                raise SupportError(
                    f"log_prob: {bad} of {inside.numel()} values lie outside the support "
                    f"{self.support} or are not finite; expected values inside (validate_args="
                    "False gives -inf instead)."
                )
        return self.flow.log_prob(value, context)

    def _broadcast(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        value = self.flow._check_x(value)
        if self.context is None:
            # An unconditional flow that was expanded has a batch shape to broadcast against.
            batch = value.shape[: value.ndim - len(self.event_shape)]
            try:
                full = torch.broadcast_shapes(batch, self.batch_shape)
            except RuntimeError:
                raise ShapeError(
                    f"log_prob: got values of batch shape {tuple(batch)}; expected one that "
                    f"broadcasts with the distribution's {tuple(self.batch_shape)}."
                ) from None
            return value.expand(*full, *self.event_shape), None
        return value, self.context

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw ``sample_shape + batch_shape + event_shape``, without gradient."""
        shape = checked_shape(sample_shape)
        if self.context is None:
            return self.flow.sample(shape + self.batch_shape)
        return self.flow.sample(shape, self.context)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw with gradients in the parameters, through the inverse."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Any = torch.Size()) -> tuple[Tensor, Tensor]:
        """Draw with gradients, and the log-density of the draws."""
        shape = checked_shape(sample_shape)
        if self.context is None:
            return self.flow.rsample_and_log_prob(shape + self.batch_shape)
        return self.flow.rsample_and_log_prob(shape, self.context)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the distribution with a larger batch shape."""
        batch = torch.Size(batch_shape)
        context = self.context
        if context is not None:
            context = context.expand(*batch, context.shape[-1])
        new = FlowDistribution(self.flow, context, validate_args=self._validate_args)
        new._batch_shape = batch
        return new


def _chunks(x: Tensor, context: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    if len(x) == 0:
        yield x, context
    for start in range(0, len(x), size):
        stop = start + size
        yield x[start:stop], None if context is None else context[start:stop]


def _shallow(module: Any) -> Any:
    """Copy the module tree but not its parameters and buffers."""
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)
    twin._modules = {
        name: _shallow(child) for name, child in module._modules.items() if child is not None
    }
    twin._modules |= {name: None for name, child in module._modules.items() if child is None}
    return twin
