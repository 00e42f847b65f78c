"""Time ``certify`` on image flows of 16 blocks, width 64, and a training step for comparison.

python benchmarks/certificate.py [REPETITIONS]
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import contraflow as cf
from contraflow.lipschitz import ConvBranch
from contraflow.transforms import ResidualBlock

FLOWS = {
    "1 x 28 x 28, 3x3-1x1-3x3": ((1, 28, 28), (3, 1, 3)),
    "4 x 14 x 14, 3x3-1x1-3x3": ((4, 14, 14), (3, 1, 3)),
    "1 x 28 x 28, 3x3-3x3-3x3": ((1, 28, 28), (3, 3, 3)),
    "4 x 14 x 14, 3x3-3x3-3x3": ((4, 14, 14), (3, 3, 3)),
}


def main(repetitions: int = 3) -> None:
    print("| flow of 16 blocks, width 64 | certified | seconds |")
    print("|---|---|---|")
    for name, (shape, kernels) in FLOWS.items():
        torch.manual_seed(0)
        blocks = [ResidualBlock(ConvBranch(shape, (64, 64), kernels)) for _ in range(16)]
        flow = cf.Sequential(*blocks)
        for parameter in flow.parameters():
            parameter.data.mul_(3)  # at the bound, as trained weights are
        seconds, certified = [], True
        for _ in range(repetitions):
            start = time.perf_counter()
            certified &= cf.certify(flow).certified
            seconds.append(time.perf_counter() - start)
        print(f"| {name} | {certified} | {statistics.median(seconds):.2f} |")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
