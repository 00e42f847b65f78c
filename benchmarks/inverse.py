"""Roots of a trained flow: evaluations and time until the error is proved, against normflows.

Our blocks and normflows' hold the same weights and invert the same latent rows, side by side in
one process, alternating. normflows 1.7.3 stops where the square of a step falls below 1e-5, so
its own accuracy is measured, not chosen; "Picard" is its method, run until 1e-5 is proved.

Run: pip install normflows==1.7.3
     python benchmarks/inverse.py FLOW.safetensors [--rows 512] [--repetitions 7] [--threads 1]
     python benchmarks/inverse.py --train patches --data DIR --minutes 20 --out FLOW.safetensors
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import contraflow as cf
from contraflow.lipschitz import PreparedChain, PreparedLinear
from contraflow.lipschitz.activations import LipSwish
from contraflow.solvers import Anderson, Auto, Broyden, InexactNewton, Newton, Picard, Solver
from contraflow.transforms import ResidualBlock

ATOL = 1e-5
SOLVERS: dict[str, Solver] = {
    "Auto": Auto(atol=ATOL),
    "Anderson(memory=3)": Anderson(atol=ATOL, memory=3),
    "InexactNewton": InexactNewton(atol=ATOL),
    "InexactNewton(memory=0)": InexactNewton(atol=ATOL, memory=0),
    "Broyden": Broyden(atol=ATOL),
    "Newton": Newton(atol=ATOL),
    "Picard": Picard(atol=ATOL),
}


class Peer(nn.Module):
    """A prepared branch in normflows' layers, counting its evaluations."""

    def __init__(self, branch: PreparedChain) -> None:
        from normflows.nets.lipschitz import InducedNormLinear, Swish  # pyright: ignore[reportMissingImports]

        super().__init__()
        self.calls = 0
        parts: list[nn.Module] = []
        for k, map_ in enumerate(branch.maps):
            assert isinstance(map_, PreparedLinear)
            out, inp = map_.weight.shape
            layer = InducedNormLinear(inp, out, coeff=1.0, n_iterations=5)
            layer.weight.data.copy_(map_.weight)
            layer.bias.data.copy_(map_.bias)
            layer.compute_weight(True, n_iterations=200)
            parts.append(layer)
            if k < len(branch.activations):
                act = branch.activations[k]
                assert isinstance(act, LipSwish)
                swish = Swish()
                swish.beta.data.copy_(act.beta.reshape(1))
                parts.append(swish)
        self.net = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def compare(path: Path, rows: int, repetitions: int) -> None:
    from normflows.flows.residual import Residual  # pyright: ignore[reportMissingImports]

    flow = cf.load(path).eval().float()
    transform = flow.transform
    assert isinstance(transform, cf.Sequential)
    z = torch.randn(rows, flow.base.features, generator=torch.Generator().manual_seed(1))
    theirs = {"calls": 0, "seconds": 0.0, "sample": 0.0, "error": 0.0}
    ours = {name: {"steps": 0.0, "products": 0.0, "seconds": 0.0, "error": 0.0} for name in SOLVERS}
    blocks = 0
    for part in reversed(transform.transforms):
        if not isinstance(part, ResidualBlock):
            z = part.invert(z)
            continue
        blocks += 1
        prepared = part.branch.prepare()
        assert isinstance(prepared, PreparedChain)
        exact = prepared.in_dtype(torch.float64)
        root = z.double()
        for _ in range(3000):
            root = z.double() - exact(root)
        peer = Peer(prepared)
        assert (peer(z) - prepared(z)).abs().max() < 1e-5
        layer = Residual(peer, reverse=True).eval()
        block = layer.iresblock
        peer.calls = 0
        theirs["error"] = max(theirs["error"], row_error(block.inverse(z), root))
        theirs["calls"] += peer.calls
        views = {
            name: ResidualBlock(part.branch, solver=solver) for name, solver in SOLVERS.items()
        }
        times: dict[str, list[float]] = {name: [] for name in ("normflows", "sample", *views)}
        for _ in range(repetitions):
            times["normflows"].append(seconds(lambda: block.inverse(z)))  # noqa: B023
            times["sample"].append(seconds(lambda: layer.forward(z)))  # noqa: B023
            for name, view in views.items():
                times[name].append(seconds(lambda: view.invert(z)))  # noqa: B023
        theirs["seconds"] += statistics.median(times["normflows"])
        theirs["sample"] += statistics.median(times["sample"])
        for name, view in views.items():
            solution = view.solve_inverse(z).check(name)
            entry = ours[name]
            entry["steps"] += solution.steps.float().mean().item()
            entry["products"] += solution.products.float().mean().item()
            entry["seconds"] += statistics.median(times[name])
            entry["error"] = max(entry["error"], row_error(solution.value, root))
        z = root.float()
    print(f"{path.name}: {blocks} blocks, {rows} rows, {torch.get_num_threads()} threads")
    print("| solver | evaluations a block | fewer | products | ms a block | faster | worst error |")
    print("|---|---|---|---|---|---|---|")
    calls, total = theirs["calls"] / blocks, theirs["seconds"] / blocks
    print(f"| normflows 1.7.3 | {calls:.1f} | | | {1e3 * total:.1f} | | {theirs['error']:.0e} |")
    sampled = 1e3 * theirs["sample"] / blocks
    print(
        f"| the same as its sample() calls it, with a log-determinant | | | | {sampled:.1f} | | |"
    )
    for name, entry in ours.items():
        steps, spent = entry["steps"] / blocks, entry["seconds"] / blocks
        print(
            f"| {name} | {steps:.1f} | {calls / steps:.1f} | {entry['products'] / blocks:.1f} | "
            f"{1e3 * spent:.1f} | {total / spent:.2f} | {entry['error']:.0e} |"
        )


def row_error(x: Tensor, root: Tensor) -> float:
    return (x.double() - root).norm(dim=1).max().item()


def patches(folder: Path) -> Tensor:
    """Return 100,000 grey 8x8 patches of CIFAR-10's first batch, standardised, ``[N, 64]``."""
    with (folder / "cifar-10-batches-py" / "data_batch_1").open("rb") as file:
        images = torch.tensor(pickle.load(file, encoding="bytes")[b"data"])
    grey = images.reshape(-1, 3, 32, 32).float().mean(1)
    generator = torch.Generator().manual_seed(0)
    count, span = 100_000, torch.arange(8)
    index = torch.randint(len(grey), (count, 1, 1), generator=generator)
    rows, columns = torch.randint(25, (2, count, 1, 1), generator=generator)
    x = grey[index, rows + span[:, None], columns + span].reshape(count, 64)
    x = (x + torch.rand(x.shape, generator=generator)) / 256
    return (x - x.mean(0)) / x.std(0)


def train(folder: Path, minutes: float, out: Path) -> None:
    """Train 8 blocks 64-128-128-64 at L = .98 by a plain loop; go on from ``out`` if it exists."""
    torch.manual_seed(0)
    x = patches(folder)
    if out.exists():
        flow = cf.load(out)
    else:
        flow = cf.flows.ResidualFlow(64, transforms=8, lipschitz=0.98, mixing=False)
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    flow.train()
    start, step = time.monotonic(), 0
    while time.monotonic() - start < 60 * minutes:
        loss = -flow.log_prob(x[torch.randint(len(x), (128,))]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step}: {loss.item():.2f} nats", flush=True)
            flow.save(out)
    flow.eval().enforce_bounds_()
    flow.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flow", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", choices=["patches"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.train:
        train(arguments.data, arguments.minutes, arguments.out)
    else:
        compare(arguments.flow, arguments.rows, arguments.repetitions)


if __name__ == "__main__":
    main()
