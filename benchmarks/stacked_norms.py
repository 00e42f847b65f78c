"""Passes of a flow with all norms bounded together, against one by one, in one process.

    python benchmarks/stacked_norms.py [REPETITIONS]

The two alternate; ratios are medians over pairs. One by one, every layer bounds its own norm
when its branch is prepared. The table's last column is the share of the bounds alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

import contraflow as cf
from contraflow.lipschitz import ConvBranch, MLPBranch, norm_bounds
from contraflow.transforms import ResidualBlock


def flow(branches: list[MLPBranch] | list[ConvBranch]) -> cf.Sequential:
    torch.manual_seed(0)
    return cf.Sequential(*[ResidualBlock(branch) for branch in branches])


def mlp() -> cf.Sequential:
    return flow([MLPBranch(2, (128,) * 4) for _ in range(10)])


def images(channels: int, side: int) -> cf.Sequential:
    return flow([ConvBranch((channels, side, side), (64, 64)) for _ in range(8)])


def step(chain: cf.Sequential, x: torch.Tensor, together: bool, train: bool) -> None:
    layers = chain.bounded_layers()
    with torch.set_grad_enabled(train):
        norms = norm_bounds(layers) if together else [layer.norm_bound() for layer in layers]
        z, ladj = chain(x, norms=norms)
        if train:
            (0.5 * z.square().sum() - ladj.sum()).backward()


def bounds(chain: cf.Sequential, x: torch.Tensor, together: bool, train: bool) -> None:
    layers = chain.bounded_layers()
    with torch.no_grad():
        _ = norm_bounds(layers) if together else [layer.norm_bound() for layer in layers]


def compare(run: Callable[[bool], None], repetitions: int) -> tuple[float, float, float]:
    """Return median seconds together, one by one, and the median of the ratios."""
    pairs = []
    for i in range(repetitions + 1):
        seconds = {}
        for together in (True, False) if i % 2 else (False, True):
            start = time.perf_counter()
            run(together)
            seconds[together] = time.perf_counter() - start
        pairs.append((seconds[True], seconds[False]))
    pairs = pairs[1:]  # the first warms up
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def main(repetitions: int = 9) -> None:
    cases = {
        "forward, 10 blocks 2-128-128-128-128-2, 256 rows": (mlp(), torch.randn(256, 2), False),
        "training step, the same": (mlp(), torch.randn(256, 2), True),
        "training step, 8 blocks 3x3-1x1-3x3, 1 x 28 x 28, 16 images": (
            images(1, 28),
            torch.rand(16, 1, 28, 28),
            True,
        ),
        "training step, the same, 4 x 14 x 14": (images(4, 14), torch.rand(16, 4, 14, 14), True),
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| pass | together, ms | one by one, ms | ratio | ratio of the bounds alone |")
    print("|---|---|---|---|---|")
    for name, (chain, x, train) in cases.items():
        a, b, ratio = compare(lambda t, c=chain, v=x, g=train: step(c, v, t, g), repetitions)
        alone = compare(lambda t, c=chain, v=x, g=train: bounds(c, v, t, g), repetitions)[2]
        print(f"| {name} | {1e3 * a:.1f} | {1e3 * b:.1f} | {ratio:.2f} | {alone:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
