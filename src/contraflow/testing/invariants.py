"""What must hold of every transform, as free functions that raise ``AssertionError``.

Each check copies the module first, draws from a seeded generator and compares with a float64
reference. ``invariants_of(case)`` lists the checks that a case's abilities call for; a check
called on a case that lacks the ability raises ``ConfigurationError`` instead of passing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from contraflow.evaluation import certify
from contraflow.testing._compare import claims_a_bound
from contraflow.testing.bounds import check_certificate
from contraflow.testing.compilation import check_compiled
from contraflow.testing.density import check_density
from contraflow.testing.gradients import (
    check_gradients,
    check_weighted_gradients,
)
from contraflow.testing.purity import check_placement, check_purity, check_rows
from contraflow.testing.registry import Case
from contraflow.testing.round_trip import check_log_abs_det, check_round_trip
from contraflow.testing.saving import check_save_load

INVARIANTS: dict[str, Callable[[Case], None]] = {
    "round_trip": check_round_trip,
    "log_abs_det": check_log_abs_det,
    "gradients": check_gradients,
    "weighted_gradients": check_weighted_gradients,
    "purity": check_purity,
    "rows": check_rows,
    "placement": check_placement,
    "certificate": check_certificate,
    "save_load": check_save_load,
    "density": check_density,
    "compiled": check_compiled,
}


def invariants_of(case: Case) -> Iterator[str]:
    """Yield the names of the checks that a case's abilities call for.

    Example:
        >>> from contraflow.transforms import UniformDequantise
        >>> case = Case(UniformDequantise(7), event_shape=(2,), bijective=False)
        >>> "round_trip" in set(invariants_of(case)), "density" in set(invariants_of(case))
        (True, False)
    """
    small = len(case.event_shape) == 1 and case.size <= 2
    needs = {
        "log_abs_det": case.bijective and case.exact_ladj,
        "gradients": case.exact_ladj,
        "certificate": claims_a_bound(certify(case.transform)),
        "density": small and case.bijective and case.exact_ladj,
        "compiled": not case.iterative,
    }
    for name in INVARIANTS:
        if needs.get(name, True):
            yield name
