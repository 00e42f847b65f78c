"""Strategies for ``ln det(I + J)``: exact, power series, roulette."""

from contraflow.logdet._neumann import Noise, Terms
from contraflow.logdet._strategy import LogDet, terms_for_bias, truncation_bound
from contraflow.logdet.exact import Exact, log_det_identity_plus
from contraflow.logdet.roulette import NestedRoulette, Roulette
from contraflow.logdet.series import PowerSeries

__all__ = [
    "Exact",
    "LogDet",
    "NestedRoulette",
    "Noise",
    "PowerSeries",
    "Roulette",
    "Terms",
    "log_det_identity_plus",
    "terms_for_bias",
    "truncation_bound",
]
