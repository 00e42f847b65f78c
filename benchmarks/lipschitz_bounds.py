"""Violations and tightness of every bound on random layers and branches.

    python benchmarks/lipschitz_bounds.py [NUMBER] [SEED]

NUMBER (1,000) layers of every kind and law, a tenth as many branches of plain layers, and NUMBER
branches of the other kinds, prepared in float32. The true norm of a layer is that of a dense
singular value decomposition up to 1,024 dimensions, of 5 Lanczos runs beyond. Prints the rows of
a table in Markdown.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time

import torch

from contraflow.testing.branches import BRANCH_KINDS, random_branch
from contraflow.testing.networks import (
    branch_cases,
    largest_slope,
    layer_cases,
    raw_map,
    true_norm,
)

REFERENCE = 1e-13  # the decomposition's own rounding


def main(number: int = 1000, seed: int = 1) -> None:
    start = time.monotonic()
    ratios: dict[tuple[str, str], list[float]] = {}
    for case in layer_cases(number, seed):
        map_ = raw_map(case.layer)
        norm = true_norm(map_, case.event_shape)
        if norm == 0:
            continue
        with torch.no_grad():
            bounds = {
                "bound of every pass, float32": copy.deepcopy(case.layer).float().norm_bound(),
                "bound of every pass, float64": case.layer.norm_bound(),
                "certificate": map_.certified_norm(),
            }
        for name, bound in bounds.items():
            ratio = float(bound) / norm
            ratios.setdefault((case.kind, name), []).append(ratio)
            if ratio < 1 - REFERENCE:
                print(f"violation: {case}: {name} is {ratio} of the norm", file=sys.stderr)
    for name, branch in branch_cases(number // 10, seed):
        slope, bound = largest_slope(branch)
        kind = f"branch ({name.split(',')[0]}), largest slope at 8 points"
        if slope > 0:
            ratios.setdefault((kind, "certificate"), []).append(bound / slope)
    rng = torch.Generator().manual_seed(seed)
    for i in range(number):
        kind = tuple(BRANCH_KINDS)[i % len(BRANCH_KINDS)]
        branch = random_branch(kind, rng).float()
        slope, bound = largest_slope(branch, seed=i)
        if slope > 0:
            name = f"branch ({kind}), largest slope at 8 points"
            ratios.setdefault((name, "certificate"), []).append(bound / slope)
    print("| layer | bound | number | violations | median | 90 % | largest |")
    print("|---|---|---|---|---|---|---|")
    for (kind, name), found in ratios.items():
        below = sum(ratio < 1 - REFERENCE for ratio in found)
        tenth = statistics.quantiles(found, n=10)[-1] if len(found) > 1 else found[0]
        print(
            f"| {kind} | {name} | {len(found)} | {below} | {statistics.median(found):.4f} | "
            f"{tenth:.4f} | {max(found):.4f} |"
        )
    print(f"{time.monotonic() - start:.0f} s, torch {torch.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
