"""Fit one Gaussian with full covariance to a table, as a flow, and score it: the least to beat.

The maximum-likelihood Gaussian is an affine flow: subtract the mean, divide by the standard
deviation, multiply by the inverse Cholesky factor of the correlations. Its statistics come from
all training rows in float64, read block by block; its likelihood from the library's own
evaluation, so the figure also tests the way from the files to a number.

Run: python benchmarks/gaussian_baseline.py Bsds300 --root DIR
"""

import argparse
import dataclasses

import torch
from torch import Tensor

import contraflow.data
from contraflow.evaluation import evaluate_likelihood
from contraflow.flow import Flow
from contraflow.transform import Sequential
from contraflow.transforms import LULinear, Standardise


def fit_gaussian(x: Tensor, block: int = 2**16) -> Flow:
    """Return the flow whose density is the maximum-likelihood Gaussian of rows ``[N, D]``.

    Args:
        x: the rows, of any floating dtype; may be mapped.
        block: rows that are float64 at once.
    """
    features = x.shape[1]
    mean = sum(rows.double().sum(0) for rows in x.split(block)) / len(x)  # [D]
    covariance = torch.zeros(features, features, dtype=torch.float64)
    for rows in x.split(block):  # a second pass: no cancellation against the mean
        centred = rows.double() - mean
        covariance += centred.mT @ centred / len(x)
    std = covariance.diagonal().sqrt()
    cholesky = torch.linalg.cholesky(covariance / (std[:, None] * std))  # of the correlations

    standardise, whiten = Standardise(features).double(), LULinear(features).double()
    standardise.initialise_from(torch.stack([mean - std, mean + std]))  # has these statistics
    identity = torch.eye(features, dtype=torch.float64)
    whiten.set_matrix(torch.linalg.solve_triangular(cholesky, identity, upper=False))
    return Flow(Sequential(standardise, whiten), event_shape=(features,)).double().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score one Gaussian with full covariance.")
    parser.add_argument("source", help="a table of contraflow.data: Power, Gas, Bsds300...")
    parser.add_argument("--root", help="data root; else the variable CONTRAFLOW_DATA")
    options = parser.parse_args()

    kind = getattr(contraflow.data, options.source)
    has_root = any(field.name == "root" for field in dataclasses.fields(kind))
    splits = kind(**({"root": options.root} if has_root else {})).load()
    if len(splits.event_shape) != 1 or splits.num_bins is not None:
        parser.error(f"{options.source}: expected rows of continuous numbers, not images.")

    flow = fit_gaussian(splits.train.x)
    print(f"{splits.name}: Gaussian with full covariance, fitted to {len(splits.train):,} rows")
    for label, part in (("validation", splits.validation), ("test", splits.test)):
        result = evaluate_likelihood(flow, part.x.double())
        print(
            f"{label}: {result.value:.3f} {result.unit}, kind {result.kind}, "
            f"stderr_data {result.stderr_data:.3f}, {result.n:,} rows"
        )


if __name__ == "__main__":
    main()
