"""The invariants of every transform, as a test kit for anybody's.

A ``Case`` says what a transform takes and is able to do; each ``check_*`` raises an
``AssertionError`` that says what was got and what was expected. In a test suite of your own::

    @pytest.mark.parametrize("name", INVARIANTS)
    def test_my_transform(name):
        case = Case(MyTransform(3), event_shape=(3,))
        if name in invariants_of(case):
            INVARIANTS[name](case)
"""

from contraflow.testing._compare import row_of
from contraflow.testing.bounds import check_certificate
from contraflow.testing.compilation import check_compiled
from contraflow.testing.density import check_density
from contraflow.testing.gradients import STRATEGIES, check_gradients, check_weighted_gradients
from contraflow.testing.invariants import INVARIANTS, invariants_of
from contraflow.testing.purity import check_placement, check_purity, check_rows
from contraflow.testing.registry import CASES, Case, randomise_
from contraflow.testing.round_trip import check_log_abs_det, check_round_trip
from contraflow.testing.saving import check_save_load

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
