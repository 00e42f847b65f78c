"""Every invariant over every case of the registry that declares the ability."""

import functools
from collections.abc import Iterator

import pytest
import torch

from contraflow.errors import ConfigurationError
from contraflow.testing import CASES, INVARIANTS, Case, check_compiled, invariants_of
from contraflow.transforms import ResidualBlock

# Tracing a residual block takes seconds, generating its code half a minute: those traced here
# hold every path (dense, convolutional, context, series) once.
TRACED = ("residual-context", "residual-nested-roulette", "factor-out-prior")
# These differ from a neighbour by numbers alone.
REPEATED = ("marginal-spline-fitted", "maf-context", "real-nvp-context", "lu-linear-whitened")
GENERATED = ("residual-shallow",)


@functools.cache
def case_of(name: str) -> Case:
    return CASES[name](torch.Generator().manual_seed(0))


def invariants(name: str) -> Iterator[str]:
    blocks = any(isinstance(part, ResidualBlock) for part in case_of(name).module.modules())
    traced = name in TRACED if blocks else name not in REPEATED
    for invariant in invariants_of(case_of(name)):
        if invariant != "compiled" or traced:
            yield invariant


PAIRS = [(name, invariant) for name in CASES for invariant in invariants(name)]


@pytest.mark.parametrize(("name", "invariant"), PAIRS)
def test_invariant_holds(name: str, invariant: str) -> None:
    INVARIANTS[invariant](case_of(name))


@pytest.mark.parametrize("name", GENERATED)
def test_generated_code_equals_eager(name: str) -> None:
    check_compiled(case_of(name), backend="inductor")


def test_every_invariant_meets_some_case() -> None:
    assert {invariant for _, invariant in PAIRS} == set(INVARIANTS)


def test_a_check_refuses_a_case_without_the_ability() -> None:
    with pytest.raises(ConfigurationError, match="needs a bijection"):
        INVARIANTS["log_abs_det"](case_of("uniform-dequantise"))
