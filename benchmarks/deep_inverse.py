"""A hundred blocks there and back in float32, far out: what is lost, and what is irreducible.

Data go forward through 100 blocks at L = .99 in float32, which rounds, and come back. The error
that no inverse can avoid is that of the same latent rows inverted in float64 with the very same
weights. Block by block the true error of the root is set beside the bound that the block reports.

Run: python benchmarks/deep_inverse.py [--blocks 100] [--rows 200]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from contraflow.lipschitz import MLPBranch
from contraflow.solvers import Anderson, solve
from contraflow.transforms import ResidualBlock

LIPSCHITZ = 0.99


def random_blocks(count: int, features: int) -> list[ResidualBlock]:
    """Return blocks whose layers all stand at their largest norm."""
    torch.manual_seed(0)
    blocks = []
    for _ in range(count):
        branch = MLPBranch(features, (32, 32), lipschitz=LIPSCHITZ)
        for layer in branch.layers:
            layer.weight.data.mul_(10)  # pyright: ignore
        blocks.append(ResidualBlock(branch))
    return blocks


def norms(x: Tensor) -> Tensor:
    return x.double().norm(dim=1)


@torch.no_grad()
def there_and_back(blocks: list[ResidualBlock], x: Tensor) -> dict[str, Tensor]:
    """Return errors ``[B]`` of the whole and ``[blocks, B]`` of every block."""
    prepared = [block.branch.prepare().in_dtype(torch.float64) for block in blocks]  # pyright: ignore
    z = x
    for block in blocks:
        z = block(z)[0]
    ours, exact, true, reported = z, z.double(), [], []
    for block, branch in zip(reversed(blocks), reversed(prepared), strict=True):

        def root(target: Tensor, branch: object = branch) -> Tensor:
            f = lambda y: target - branch(y)  # noqa: E731  # pyright: ignore
            return solve(f, target, Anderson(), lipschitz=LIPSCHITZ).check("float64").value

        exact = root(exact)
        solution = block.solve_inverse(ours).check("float32")
        true.append(norms(solution.value.double() - root(ours.double())))
        reported.append(solution.error_bound.double())
        ours = solution.value
    return {
        "error": norms(ours.double() - x.double()),
        "irreducible": norms(exact - x.double()),
        "true": torch.stack(true),
        "reported": torch.stack(reported),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200)
    arguments = parser.parse_args()
    print("| d | sigma | worst error | irreducible | ratio | bound held | bound / true, median |")
    print("|---|---|---|---|---|---|---|")
    for features in (2, 8, 64):
        blocks = random_blocks(arguments.blocks, features)
        for sigma in (1.0, 10.0, 30.0):
            generator = torch.Generator().manual_seed(1)
            x = sigma * torch.randn(arguments.rows, features, generator=generator)
            found = there_and_back(blocks, x)
            error, least = found["error"].max().item(), found["irreducible"].max().item()
            held = (found["true"] <= found["reported"]).float().mean().item()
            loose = (found["reported"] / found["true"]).median().item()
            print(
                f"| {features} | {sigma:.0f} | {error:.1e} | {least:.1e} | {error / least:.2f} | "
                f"{100 * held:.2f} % | {loose:.2f} |"
            )


if __name__ == "__main__":
    main()
