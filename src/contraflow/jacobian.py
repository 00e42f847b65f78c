"""The Jacobian of a branch at a point, as a linear operator.

``linearize(branch, x) -> (y, J)`` evaluates a prepared branch once and keeps its activation
slopes. Every product with ``J`` is then a few matmuls or convolutions, with no activation
and no second evaluation of g. All operations are first order, so they compile, and autograd
through them gives derivatives of the Jacobian in the weights and in x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from contraflow.lipschitz import (
    PreparedBranch,
    PreparedChain,
    PreparedConv2d,
    PreparedDense,
    PreparedLinear,
)
from contraflow.lipschitz.layers import PreparedMap


class Jacobian(Protocol):
    """``J = dg/dx`` at a batch of points ``[B, *E]``; D is the number of entries of E."""

    event_dim: int

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v``, ``[B, *E]``."""
        ...

    def rmv(self, u: Tensor) -> Tensor:
        """Return ``J^T u``, ``[B, *E]``."""
        ...

    def trace(self) -> Tensor | None:
        """Return the exact trace ``[B]`` where the structure gives it cheaply, else None."""
        ...

    def dense(self) -> Tensor:
        """Return the matrices, ``[B, D, D]``."""
        ...

    def rows(self, index: Tensor | slice) -> Jacobian:
        """Return the Jacobian at some of the points."""
        ...


def linearize(branch: PreparedBranch, x: Tensor, event_dim: int = 1) -> tuple[Tensor, Jacobian]:
    """Evaluate a prepared branch once and return its value and Jacobian.

    Args:
        branch: what ``prepare`` returned. Chains and dense branches of known layers keep their
            slopes; any other callable is differentiated by ``torch.func``.
        x: ``[B, *E]``.
        event_dim: number of dimensions of E.

    Returns:
        ``g(x)``, ``[B, *E]``, and ``J``.

    Example:
        >>> from contraflow.lipschitz import MLPBranch
        >>> y, J = linearize(MLPBranch(3, (8,)).prepare(), torch.randn(5, 3))
        >>> torch.allclose(J.trace(), J.dense().diagonal(dim1=-2, dim2=-1).sum(-1), atol=1e-6)
        True
    """
    if isinstance(branch, PreparedChain):
        return _linearize_chain(branch, x)
    if isinstance(branch, PreparedDense):
        value, slopes = branch.value_and_slopes(x)
        return value, DenseJacobian(branch, slopes)
    return branch(x), FunctionJacobian(branch, x, event_dim)


def _linearize_chain(branch: PreparedChain, x: Tensor) -> tuple[Tensor, ChainJacobian]:
    slopes = []
    for map_, act, shift in zip(branch.maps, branch.activations, branch.shifts, strict=False):
        x, slope = act.value_and_slope(map_.affine(x, shift), branch.channel_dim)
        slopes.append(slope)
    expansions = [act.expansion for act in branch.activations]
    jacobian = ChainJacobian(branch.maps, slopes, expansions, branch.channel_dim)
    return branch.maps[-1].affine(x, branch.shifts[-1]), jacobian


class ChainJacobian:
    """``J = W_n diag(d_{n-1}) ... diag(d_1) W_1`` with slopes d at each point."""

    def __init__(
        self,
        maps: Sequence[PreparedMap],
        slopes: Sequence[Tensor],
        expansions: Sequence[int],
        channel_dim: int,
    ) -> None:
        self.maps = maps
        self.slopes = slopes
        self.expansions = expansions
        self.channel_dim = channel_dim
        self.event_dim = -channel_dim

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v``."""
        for map_, slope, expansion in zip(self.maps, self.slopes, self.expansions, strict=False):
            v = map_.mv(v)
            if expansion == 2:
                v = torch.cat([v, v], self.channel_dim)
            v = v * slope
        return self.maps[-1].mv(v)

    def rmv(self, u: Tensor) -> Tensor:
        """Return ``J^T u``."""
        u = self.maps[-1].rmv(u)
        inner = zip(self.maps[:-1], self.slopes, self.expansions, strict=True)
        for map_, slope, expansion in reversed(list(inner)):
            u = u * slope
            if expansion == 2:
                left, right = u.chunk(2, self.channel_dim)
                u = left + right
            u = map_.rmv(u)
        return u

    def rows(self, index: Tensor | slice) -> ChainJacobian:
        """Return the Jacobian at some of the points."""
        slopes = [slope[index] for slope in self.slopes]
        return ChainJacobian(self.maps, slopes, self.expansions, self.channel_dim)

    def dense(self) -> Tensor:
        """Return ``[B, D, D]`` by batched products; convolutions act on all columns at once."""
        if not all(isinstance(map_, PreparedLinear) for map_ in self.maps):
            return _dense_by_columns(self, self.maps[-1], self.slopes[0])
        # Columns of J as rows: all points then share one matrix product a layer, instead of one
        # small product a point, which takes ten times as long.
        columns = self._expanded(0).mT.contiguous()  # [D, h]
        for slope, k in zip(self.slopes, range(1, len(self.maps)), strict=True):
            columns = (slope[..., None, :] * columns) @ self._expanded(k).mT  # [B, D, h]
        return columns.mT

    def _expanded(self, k: int) -> Tensor:
        """Return map k's weight with the rows that the next activation repeats."""
        weight = self.maps[k].weight
        repeated = k < len(self.expansions) and self.expansions[k] == 2
        return torch.cat([weight, weight], 0) if repeated else weight

    def trace(self) -> Tensor | None:
        """Return ``tr J`` in closed form for up to two hidden layers (outer kernels equal)."""
        if all(isinstance(map_, PreparedLinear) for map_ in self.maps):
            return self._linear_trace()
        if all(isinstance(map_, PreparedConv2d) for map_ in self.maps):
            return self._conv_trace()
        return None

    def _linear_trace(self) -> Tensor | None:
        if len(self.maps) == 2:
            diagonal = (self._expanded(0) * self.maps[1].weight.mT).sum(-1)  # [h]
            return self.slopes[0] @ diagonal
        if len(self.maps) == 3:
            # tr J = d2^T [W2 o (W1 W3)^T] d1
            pairs = self._expanded(1) * (self._expanded(0) @ self.maps[2].weight).mT
            return ((self.slopes[0] @ pairs.mT) * self.slopes[1]).sum(-1)
        return None

    def _conv_trace(self) -> Tensor | None:
        if len(self.maps) != 3 or self.maps[1].weight.shape[2:] != (1, 1):
            return None
        first, last = self._expanded(0), self.maps[2].weight
        if first.shape[2:] != last.shape[2:]:
            return None
        # tr J = sum_p sum_e mask_e(p) d2(p)^T [W2 o P_e] d1(p),
        # P_e[a, b] = sum_i K3[i, a, e] K1[b, i, -e]
        products = torch.einsum("iakl,bikl->klab", last, first.flip(2, 3))
        products = products * self._expanded(1)[:, :, 0, 0]
        height, width = self.slopes[0].shape[-2:]
        trace = self.slopes[0].new_zeros(())
        for rows, taps_h in _pixel_classes(height, first.shape[2]):
            for columns, taps_w in _pixel_classes(width, first.shape[3]):
                mixing = products[taps_h][:, taps_w].sum((0, 1))  # [a, b]
                before = self.slopes[0][..., rows, columns]
                after = self.slopes[1][..., rows, columns]
                mixed = torch.einsum("ab,...bhw->...ahw", mixing, before)
                trace = trace + (mixed * after).sum((-3, -2, -1))
        return trace


def _pixel_classes(size: int, kernel: int) -> list[tuple[slice, slice]]:
    """Group pixels along one axis by the taps e with p - e inside the image.

    Returns:
        Pairs (pixels, taps): runs of neighbouring pixels that share their taps.
    """
    half = kernel // 2
    classes: list[tuple[slice, slice]] = []
    for p in range(size):
        # 0 <= p - e < size, e = tap - half
        taps = slice(max(0, p - size + 1 + half), min(kernel, p + half + 1))
        if classes and classes[-1][1] == taps:
            classes[-1] = (slice(classes[-1][0].start, p + 1), taps)
        else:
            classes.append((slice(p, p + 1), taps))
    return classes


def _dense_by_columns(jacobian: Jacobian, last: PreparedMap, like: Tensor) -> Tensor:
    """Return ``[B, D, D]`` of convolutions; ``like`` is one of the slopes ``[B, N, H, W]``."""
    event = (last.weight.shape[0], *like.shape[-2:])
    batch, size = like.shape[0], math.prod(event)
    basis = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, 1, *event)
    columns = jacobian.mv(basis.expand(size, batch, *event))  # [D, B, *E]
    return columns.reshape(size, batch, size).permute(1, 2, 0)


class DenseJacobian:
    """``J = W_n [a_(n-1) I; b_(n-1) diag(d_(n-1)) W_(n-1)] ... [a_1 I; b_1 diag(d_1) W_1]``.

    Args:
        branch: the prepared dense branch; a and b are its mixing.
        slopes: d of every layer at each point, ``[B, e*N, ...]``.
    """

    def __init__(self, branch: PreparedDense, slopes: Sequence[Tensor]) -> None:
        self.branch = branch
        self.maps = branch.maps
        self.slopes = slopes
        self.event_dim = -branch.channel_dim

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v``."""
        for k, slope in enumerate(self.slopes):
            v = self._join(k, v, self._repeated(k, self.maps[k].mv(v)) * slope)
        return self.maps[-1].mv(v)

    def rmv(self, u: Tensor) -> Tensor:
        """Return ``J^T u``."""
        dim, mixing = self.branch.channel_dim, self.branch.mixing
        u = self.maps[-1].rmv(u)
        for k in range(len(self.slopes) - 1, -1, -1):
            slope = self.slopes[k]
            added = slope.shape[dim]
            kept, u = u.split([u.shape[dim] - added, added], dim)
            u = u * slope
            if self._expansion(k) == 2:
                left, right = u.chunk(2, dim)
                u = left + right
            u = mixing[k, 0] * kept + mixing[k, 1] * self.maps[k].rmv(u)
        return u

    def rows(self, index: Tensor | slice) -> DenseJacobian:
        """Return the Jacobian at some of the points."""
        return DenseJacobian(self.branch, [slope[index] for slope in self.slopes])

    def trace(self) -> Tensor | None:
        """Return ``tr J`` in closed form for one dense layer of vectors, else None."""
        if len(self.maps) != 2 or not isinstance(self.maps[0], PreparedLinear):
            return None
        first, last = self.maps[0].weight, self.maps[1].weight
        kept, added = last.split([first.shape[1], last.shape[1] - first.shape[1]], -1)
        diagonal = (self._repeated(0, first.mT).mT * added.mT).sum(-1)  # [e*h]
        mixing = self.branch.mixing[0]
        return mixing[0] * kept.diagonal().sum() + mixing[1] * (self.slopes[0] @ diagonal)

    def dense(self) -> Tensor:
        """Return ``[B, D, D]`` by products with all columns at once."""
        last = self.maps[-1]
        if not isinstance(last, PreparedLinear):
            return _dense_by_columns(self, last, self.slopes[0])
        like = self.slopes[0]
        size = last.weight.shape[0]
        # Columns of J as rows, as in a chain; the identity at the start is the same for all.
        columns = torch.eye(size, dtype=like.dtype, device=like.device)
        for k, slope in enumerate(self.slopes):
            added = self._repeated(k, self.maps[k].mv(columns)) * slope[:, None]  # [B, D, e*h]
            columns = self._join(k, columns.expand(len(slope), -1, -1), added)
        return last.mv(columns).mT

    def _expansion(self, k: int) -> int:
        return self.branch.activations[k].expansion

    def _repeated(self, k: int, v: Tensor) -> Tensor:
        """Return v once for every output of the activation."""
        return torch.cat([v, v], self.branch.channel_dim) if self._expansion(k) == 2 else v

    def _join(self, k: int, kept: Tensor, added: Tensor) -> Tensor:
        keep, add = self.branch.mixing[k]
        return torch.cat([keep * kept, add * added], self.branch.channel_dim)


class FunctionJacobian:
    """The Jacobian of any differentiable map of a batch, row by row, through ``torch.func``."""

    def __init__(self, function: PreparedBranch, x: Tensor, event_dim: int) -> None:
        self.function = function
        self.x = x
        self.event_dim = event_dim

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v`` by forward-mode differentiation."""
        return torch.func.jvp(self.function, (self.x,), (v,))[1]

    def rmv(self, u: Tensor) -> Tensor:
        """Return ``J^T u`` by reverse-mode differentiation."""
        return torch.func.vjp(self.function, self.x)[1](u)[0]

    def trace(self) -> Tensor | None:
        """Return None: nothing is known of the structure."""
        return None

    def dense(self) -> Tensor:
        """Return ``[B, D, D]``, column by column."""
        batch, *event = self.x.shape
        size = math.prod(event)
        basis = torch.eye(size, dtype=self.x.dtype, device=self.x.device).reshape(size, 1, *event)
        columns = [self.mv(e.expand_as(self.x)).reshape(batch, size) for e in basis]
        return torch.stack(columns, -1)

    def rows(self, index: Tensor | slice) -> FunctionJacobian:
        """Return the Jacobian at some of the points."""
        numbers = torch.arange(self.x.shape[0], device=self.x.device)[index]
        return FunctionJacobian(self.function.rows(numbers), self.x[index], self.event_dim)
