"""The invariants of every transform, as a test kit for anybody's.

A ``Case`` says what a transform takes and is able to do; each ``check_*`` raises an
``AssertionError`` that says what was got and what was expected. In a test suite of your own:

    @pytest.mark.parametrize("name", INVARIANTS)
    def test_my_transform(name):
        case = Case(MyTransform(3), event_shape=(3,))
        if name in invariants_of(case):
            INVARIANTS[name](case)
"""

from contraflow.testing.invariants import (
    INVARIANTS,
    STRATEGIES,
    check_certificate,
    check_compiled,
    check_density,
    check_gradients,
    check_log_abs_det,
    check_placement,
    check_purity,
    check_round_trip,
    check_rows,
    check_save_load,
    check_weighted_gradients,
    invariants_of,
    row_of,
)
from contraflow.testing.registry import CASES, Case, randomise_

__all__ = [
    "CASES",
    "INVARIANTS",
    "STRATEGIES",
    "Case",
    "check_certificate",
    "check_compiled",
    "check_density",
    "check_gradients",
    "check_log_abs_det",
    "check_placement",
    "check_purity",
    "check_round_trip",
    "check_rows",
    "check_save_load",
    "check_weighted_gradients",
    "invariants_of",
    "randomise_",
    "row_of",
]
