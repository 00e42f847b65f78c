"""What a trained flow is worth: certificate, likelihood with errors, round trip, calibration."""

from contraflow.evaluation.calibration import Calibration, calibrate
from contraflow.evaluation.certificate import Certificate, certify
from contraflow.evaluation.estimate import (
    Estimate,
    Evaluation,
    estimate_log_prob,
    evaluate_likelihood,
)
from contraflow.evaluation.round_trip import reconstruct, round_trip_error, split_dequantisation

__all__ = [
    "Calibration",
    "Certificate",
    "Estimate",
    "Evaluation",
    "calibrate",
    "certify",
    "estimate_log_prob",
    "evaluate_likelihood",
    "reconstruct",
    "round_trip_error",
    "split_dequantisation",
]
