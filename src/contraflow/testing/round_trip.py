"""Does the inverse invert, and is ladj the log-determinant."""

from __future__ import annotations

import torch

from contraflow.testing._compare import close, dense_jacobian, prepared, require
from contraflow.testing.registry import Case


def check_round_trip(case: Case, *, rows: int = 8, tolerance: float = 1e-9, seed: int = 0) -> None:
    """Check both orders at 1 sigma and 10 sigma, and that the two ladj cancel.

    A case that is not bijective is only asked for ``inverse(forward(x)) = x``; an estimated
    ladj is not asked to cancel.

    Args:
        case: what to check.
        rows: points an order and a scale.
        tolerance: largest error, relative to ``1 + max |expected|``.
        seed: of the points.

    Raises:
        AssertionError: an error exceeds the tolerance.
    """
    case, generator = prepared(case, seed)
    for scale in (1.0, 10.0):
        x, context = case.x(generator, rows, scale), case.context(generator, rows)
        with torch.no_grad():
            z, ladj = case.forward(x, context, case.noise(x, generator))
            back, ladj_back = case.transform.inverse(z, context)
        where = f"at {scale:g} sigma"
        close(case, f"inverse(forward(x)) {where}", back, x, tolerance)
        if case.exact_ladj:
            close(case, f"ladj of inverse {where}", ladj_back, -ladj, tolerance)
        if not case.bijective:
            continue
        z, context = case.z(generator, rows, scale), case.context(generator, rows)
        with torch.no_grad():
            x, ladj_back = case.transform.inverse(z, context)
            again, ladj = case.forward(x, context, case.noise(x, generator))
        close(case, f"forward(inverse(z)) {where}", again, z, tolerance)
        if case.exact_ladj:
            close(case, f"ladj of forward after inverse {where}", ladj, -ladj_back, tolerance)


def check_log_abs_det(case: Case, *, rows: int = 3, tolerance: float = 1e-9, seed: int = 0) -> None:
    """Check ladj against ``slogdet`` of the dense Jacobian, float64, row by row.

    Args:
        case: bijective, with an exact ladj.
        rows: points.
        tolerance: largest error in nats, relative to ``1 + max |expected|``.
        seed: of the points.

    Raises:
        AssertionError: an error exceeds the tolerance.
    """
    require(case, "a bijection with an exact ladj", case.bijective and case.exact_ladj)
    case, generator = prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    _, ladj = case.forward(x, context, noise)
    expected = torch.linalg.slogdet(dense_jacobian(case, x, context, noise)).logabsdet
    close(case, "ladj", ladj.detach(), expected, tolerance)
