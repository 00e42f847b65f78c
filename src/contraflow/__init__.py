"""Normalizing flows whose invertibility is proved and whose likelihoods say how exact they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contraflow import (
    distributions,
    errors,
    evaluation,
    flows,
    lipschitz,
    logdet,
    nn,
    solvers,
    transforms,
)
from contraflow._version import __version__
from contraflow.contraction import lipschitz_of, set_lipschitz_
from contraflow.domain import Domain
from contraflow.errors import (
    ConfigurationError,
    ContraflowError,
    ConvergenceError,
    DataError,
    DivergenceError,
    DtypeError,
    LoadError,
    NotContractiveError,
    ShapeError,
    SupportError,
)
from contraflow.evaluation import Certificate, Estimate, certify, estimate_log_prob
from contraflow.flow import Flow, FlowDistribution
from contraflow.jacobian import linearize
from contraflow.kinds import Kind, Likelihood
from contraflow.registry import register
from contraflow.serialization import load
from contraflow.solvers import Solution, solve
from contraflow.transform import Inverse, Sequential, Transform

if TYPE_CHECKING:
    from contraflow.tasks import fit as fit


def __getattr__(name: str) -> Any:
    # Training needs Lightning, an extra: it is imported when it is first asked for.
    if name == "fit":
        try:
            from contraflow.tasks import fit
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"contraflow.fit needs the package {error.name!r}; install the extra: "
                "pip install 'contraflow[train]'.",
                name=error.name,
            ) from error
        return fit
    raise AttributeError(f"module 'contraflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "fit"]


__all__ = [
    "Certificate",
    "ConfigurationError",
    "ContraflowError",
    "ConvergenceError",
    "DataError",
    "DivergenceError",
    "Domain",
    "DtypeError",
    "Estimate",
    "Flow",
    "FlowDistribution",
    "Inverse",
    "Kind",
    "Likelihood",
    "LoadError",
    "NotContractiveError",
    "Sequential",
    "ShapeError",
    "Solution",
    "SupportError",
    "Transform",
    "__version__",
    "certify",
    "distributions",
    "errors",
    "estimate_log_prob",
    "evaluation",
    "flows",
    "linearize",
    "lipschitz",
    "lipschitz_of",
    "load",
    "logdet",
    "nn",
    "register",
    "set_lipschitz_",
    "solve",
    "solvers",
    "transforms",
]
