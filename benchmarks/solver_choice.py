"""Which solver is fastest, by unknowns, rows and L: what ``Auto`` is calibrated on.

Blocks D-128-128-D with all layers at their largest norm, float32, roots to the last place.

Run: python benchmarks/solver_choice.py [--repetitions 7]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from contraflow.lipschitz import LipschitzLinear, MLPBranch
from contraflow.solvers import Anderson, Auto, InexactNewton, Newton, Picard, Solver
from contraflow.transforms import ResidualBlock

SOLVERS: dict[str, Solver] = {
    "Picard": Picard(),
    "Anderson": Anderson(),
    "InexactNewton": InexactNewton(),
    "Newton": Newton(),
}


@torch.no_grad()
def milliseconds(size: int, rows: int, lipschitz: float, repetitions: int) -> dict[str, float]:
    torch.manual_seed(0)
    branch = MLPBranch(size, lipschitz=lipschitz)
    for layer in branch.layers:
        assert isinstance(layer, LipschitzLinear)
        layer.weight.data.mul_(10)
    z = torch.randn(rows, size)
    blocks = {name: ResidualBlock(branch, solver=solver) for name, solver in SOLVERS.items()}
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():
        block.invert(z)
    for _ in range(repetitions):
        for name, block in blocks.items():
            start = time.perf_counter()
            block.invert(z)
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(spent) for name, spent in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    print(f"| D | rows | L | {' | '.join(SOLVERS)} | Auto takes |")
    print("|---" * (len(SOLVERS) + 4) + "|")
    for size in (2, 8, 16, 32, 64):
        for rows in (1, 32, 512):
            for lipschitz in (0.1, 0.5, 0.98):
                found = milliseconds(size, rows, lipschitz, repetitions)
                taken = type(Auto().choose(size, lipschitz, rows)).__name__
                numbers = " | ".join(f"{found[name]:.1f}" for name in SOLVERS)
                print(f"| {size} | {rows} | {lipschitz} | {numbers} | {taken} |", flush=True)


if __name__ == "__main__":
    main()
