"""Is every certified bound above what can be measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contraflow.evaluation import Certificate, certify
from contraflow.jacobian import linearize
from contraflow.testing._compare import claims_a_bound, dense_jacobian, prepared, require, where
from contraflow.testing.registry import Case
from contraflow.transforms import ResidualBlock


def check_certificate(
    case: Case, *, rows: int = 2, pairs: int = 24, slack: float = 1e-9, seed: int = 0
) -> None:
    """Check proved bounds by brute force: those of each branch g, of f and of its inverse.

    Singular values of dense Jacobians at 1 and 3 sigma may not exceed the bound, and no pair
    of points, near or far, may be stretched by more. Both dtypes of weights are certified.

    Args:
        case: one of whose blocks some bound is claimed.
        rows: points at which Jacobians are built, a scale.
        pairs: random pairs, a scale.
        slack: relative excess that rounding may cause.
        seed: of the points.

    Raises:
        AssertionError: something exceeds what was proved, or a branch is not certified.
    """
    for dtype in (torch.float32, torch.float64):
        copied = case.to(dtype)
        certificate = certify(copied.transform)
        require(case, "some claimed bound", claims_a_bound(certificate))
        if not certificate.certified:
            raise AssertionError(
                f"{case.name}: {dtype} weights are not certified; expected every L < 1:\n"
                f"{certificate}"
            )
        # The weights of this dtype as the network uses them, examined in float64.
        generator = torch.Generator().manual_seed(seed)
        for part in copied.transform.modules():
            if isinstance(part, ResidualBlock):
                _check_branch(case, part, generator, rows, pairs, slack, dtype)
    copied, generator = prepared(case, seed)
    _check_flow_bounds(copied, certify(copied.transform), generator, rows, pairs, slack)


def _check_branch(
    case: Case,
    block: ResidualBlock,
    generator: torch.Generator,
    rows: int,
    pairs: int,
    slack: float,
    dtype: torch.dtype,
) -> None:
    (certificate,) = block.certificates("")
    bound = certificate.lipschitz
    assert bound is not None
    asked = block.branch.lipschitz
    if not bound <= asked:
        raise AssertionError(
            f"{case.name}: the certified bound of g is {bound:.8f} with {dtype} weights; expected "
            f"at most the {asked} that was asked for."
        )
    if dtype == torch.float32:
        slack = max(slack, 1e-4)  # dense Jacobians are then computed in float32
    features = getattr(block.branch, "context", 0)
    for scale in (1.0, 3.0):
        shape = (rows, *block.branch.event_shape)
        x = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        context = None
        if features:
            context = torch.randn(rows, features, generator=generator, dtype=torch.float64)
            context = context.to(dtype)
        with torch.no_grad():
            prepared = block.branch.prepare(context)
            if prepared.lipschitz != asked:
                raise AssertionError(
                    f"{case.name}: prepare promises L={prepared.lipschitz}; expected {asked}."
                )
            matrices = linearize(prepared, x, block.event_dim)[1].dense()
            # One context for both ends of a pair: the bound is one in x.
            single = None if context is None else context[:1].expand(pairs, features)
            branch = block.branch.prepare(single)
            a, b = _pairs((pairs, *block.branch.event_shape), scale, generator)
            a, b = a.to(dtype), b.to(dtype)
            stretch = _stretch(branch(a), branch(b), a, b)
        top = torch.linalg.svdvals(matrices.double()).max().item()
        _at_most(case, f"largest singular value of dg/dx, {dtype}", top, bound, slack)
        if dtype == torch.float64:
            _at_most(case, "stretch of a pair by g", stretch, bound, slack)


def _check_flow_bounds(
    case: Case,
    certificate: Certificate,
    generator: torch.Generator,
    rows: int,
    pairs: int,
    slack: float,
) -> None:
    forward, inverse = certificate.lipschitz_forward, certificate.lipschitz_inverse
    if forward is None and inverse is None:
        return
    for scale in (1.0, 3.0):
        x, context = case.x(generator, rows, scale), case.context(generator, rows)
        noise = case.noise(x, generator)
        values = torch.linalg.svdvals(dense_jacobian(case, x, context, noise))
        a, b = case.x(generator, pairs, scale), case.x(generator, pairs, scale)
        near = torch.arange(pairs) % 2 == 0
        b = where(near, a + 1e-3 * (b - a), b)  # inside a convex domain if a and b are
        given = None if context is None else context[:1].expand(pairs, *context.shape[1:])
        drawn = case.noise(a, generator)  # the same for both ends: the bound is one in x
        with torch.no_grad():
            za = case.forward(a, given, drawn)[0]
            zb = case.forward(b, given, drawn)[0]
        if forward is not None:
            top = values.max().item()
            _at_most(case, "largest singular value of df/dx", top, forward, slack)
            _at_most(case, "stretch of a pair by f", _stretch(za, zb, a, b), forward, slack)
        if inverse is not None:
            top = 1 / values.min().item()
            _at_most(case, "largest singular value of df^-1/dz", top, inverse, slack)
            _at_most(case, "stretch of a pair by f^-1", _stretch(a, b, za, zb), inverse, slack)


def _pairs(shape: Sequence[int], scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two batches of points, every other pair a thousand times closer."""
    size = tuple(shape)
    a, step = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    step[::2] *= 1e-3
    return scale * a, scale * (a + step)


def _stretch(fa: Tensor, fb: Tensor, a: Tensor, b: Tensor) -> float:
    moved = (fa - fb).flatten(1).norm(dim=1)
    distance = (a - b).flatten(1).norm(dim=1)
    return (moved / distance)[distance > 0].max().item()


def _at_most(case: Case, what: str, got: float, bound: float, slack: float) -> None:
    if not got <= bound * (1 + slack):
        raise AssertionError(
            f"{case.name}: {what} is {got:.8f}; expected at most the certified {bound:.8f}."
        )
