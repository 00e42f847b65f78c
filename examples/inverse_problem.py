"""Deblur digits with an invertible residual network: L(delta) -> 1 as the noise delta -> 0.

A network phi = id + g with Lip(g) <= L < 1 is trained to approximate a blur A of 8x8 digits, and a
blurred, noisy image z is reconstructed as phi^-1(z). The certificate proves
Lip(phi^-1) <= 1/(1 - L), so that L is the regularisation parameter. docs/inverse_problems.md
explains it and holds the numbers.

Run: python examples/inverse_problem.py [--quick] [--figure FILE.png] [--seed 0]

Reference:
    Arndt et al. 2023, arXiv:2306.01335.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import contraflow as cf
from contraflow.data import Digits
from contraflow.lipschitz import MLPBranch, SpectralNorm
from contraflow.transforms import ResidualBlock

SIDE = 8  # pixels
BLUR = 1.0  # standard deviation of the Gaussian kernel, pixels
NOISES = (0.1, 0.03, 0.01, 0.003, 0.001)  # delta: E|noise| / mean |A x|
GAPS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)  # 1 - L, from the smoothest inverse on
SHOWN_GAPS = (0.5, 0.1, 0.01)  # fixed L, for comparison
EXACT = SpectralNorm(steps=16)  # L is what was asked for, also for nearly equal singular values
SPREAD = 0.02  # of the images that phi is trained on, around digits; chosen on validation


# --- the problem ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """``z = A x + noise``, with A symmetric and 0 < A <= 1.

    Args:
        blur: A, ``[D, D]``.
        train, validation, test: images x in [0, 1], ``[N, D]``, float64.
    """

    blur: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    def measure(self, x: Tensor, delta: float, seed: int) -> Tensor:
        """Return ``A x`` with Gaussian noise whose norm is ``delta * mean|A x|`` in the mean."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        clean = x @ self.blur
        size = (self.train @ self.blur).norm(dim=1).mean() / math.sqrt(x.shape[1])
        return clean + delta * size * noise


def gaussian_blur(side: int, deviation: float) -> Tensor:
    """Return a Gaussian blur with reflecting edges, ``[side^2, side^2]``, self-adjoint.

    It is diagonal in the cosine basis, with the eigenvalues exp(-deviation^2 w^2 / 2).
    """
    k = torch.arange(side, dtype=torch.float64)
    cosines = torch.cos(math.pi * (k + 0.5) * k[:, None] / side)
    cosines = cosines / cosines.norm(dim=1, keepdim=True)  # rows: an orthonormal basis
    damping = torch.exp(-0.5 * (deviation * math.pi * k / side) ** 2)
    one = cosines.mT @ (damping[:, None] * cosines)
    return torch.kron(one, one)


def deblurring() -> Problem:
    """Return the blur of the 8x8 digits that ship with scikit-learn."""
    splits = Digits().load()
    parts = [
        part.x.double().flatten(1) / 16 for part in (splits.train, splits.validation, splits.test)
    ]
    return Problem(gaussian_blur(SIDE, BLUR), *parts)


def relative_errors(found: Tensor, x: Tensor) -> Tensor:
    """Return ``|found - x| / |x|`` of each row, ``[N]``."""
    return (found - x).norm(dim=1) / x.norm(dim=1)


# --- linear reconstructions -----------------------------------------------------------------


Filter = Callable[[Tensor], Tensor]  # of the eigenvalues of A

FILTERS: dict[str, tuple[Callable[[float], Filter], Tensor]] = {
    "Tikhonov": (lambda a: lambda s: s / (s**2 + a), torch.logspace(-8, 0, 81)),
    "truncated SVD": (lambda a: lambda s: (s >= a) / s, torch.logspace(-4, 0, 81)),
}


def filtered(problem: Problem, z: Tensor, spectral: Filter) -> Tensor:
    """Return ``sum_j spectral(s_j) <z, v_j> v_j`` over the eigenpairs of A."""
    values, vectors = torch.linalg.eigh(problem.blur)
    return (z @ vectors * spectral(values)) @ vectors.mT


def best_filter(problem: Problem, name: str, delta: float) -> Filter:
    """Return the filter of a family with the least mean error on the validation images."""
    family, grid = FILTERS[name]
    z = problem.measure(problem.validation, delta, seed=1)

    def score(parameter: float) -> float:
        found = filtered(problem, z, family(parameter))
        return relative_errors(found, problem.validation).mean().item()

    return family(min(grid.tolist(), key=score))


# --- the network ----------------------------------------------------------------------------


def approximate(block: ResidualBlock, problem: Problem, steps: int, seed: int) -> None:
    """Train ``phi(x) = x + g(x)`` towards ``A x``, in the mean over images near digits.

    The log-determinant is not wanted, so the branch is called without its block.
    """
    generator = torch.Generator().manual_seed(seed)
    images, blur = problem.train.float(), problem.blur.float()
    optimiser = torch.optim.Adam(block.parameters(), lr=5e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x = images[torch.randint(len(images), (256,), generator=generator)]
        x = x + SPREAD * torch.randn(x.shape, generator=generator)
        loss = (x + block.branch.prepare()(x) - x @ blur).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()


def ladder(problem: Problem, gaps: Sequence[float], steps: int, seed: int) -> list[ResidualBlock]:
    """Return one network for each L: the next begins where the last one, of smaller L, ended."""
    torch.manual_seed(seed)
    block = ResidualBlock(MLPBranch(SIDE**2, (128,), "elu", 1 - gaps[0], normalisation=EXACT))
    networks = []
    for rung, gap in enumerate(gaps):
        cf.set_lipschitz_(block, 1 - gap)
        approximate(block, problem, steps, seed=1000 * seed + rung)
        networks.append(copy.deepcopy(block).double())  # inverted in float64: 1/(1 - L) is large
    return networks


# --- what comes out -------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One method at one noise level, on the test images.

    Args:
        method: its name.
        delta: noise level.
        error: mean of ``|x_found - x| / |x|``.
        stderr: its standard error over the images.
        lipschitz: proved L; None for linear methods.
        inverse_bound: proved bound of Lip(phi^-1); for linear methods the norm of the inverse.
        stretch: largest ``|phi^-1(z) - phi^-1(A x)| / |z - A x|`` that was met.
        root_bound: largest proved ``|x_found - phi^-1(z)|``.
    """

    method: str
    delta: float
    error: float
    stderr: float
    lipschitz: float | None = None
    inverse_bound: float = math.nan
    stretch: float = math.nan
    root_bound: float = 0.0


def row_of_network(method: str, network: ResidualBlock, problem: Problem, delta: float) -> Row:
    certificate = cf.certify(network)
    assert certificate.certified
    assert certificate.lipschitz_inverse is not None
    x, z = problem.test, problem.measure(problem.test, delta, seed=2)
    found = network.solve_inverse(z).check("phi")
    clean = network.solve_inverse(x @ problem.blur).check("phi")
    stretch = (found.value - clean.value).norm(dim=1) / (z - x @ problem.blur).norm(dim=1)
    errors = relative_errors(found.value, x)
    return Row(
        method,
        delta,
        errors.mean().item(),
        (errors.std() / math.sqrt(len(errors))).item(),
        certificate.blocks[0].lipschitz,
        certificate.lipschitz_inverse,
        stretch.max().item(),
        found.error_bound.max().item(),
    )


def row_of_filter(method: str, spectral: Filter, problem: Problem, delta: float) -> Row:
    z = problem.measure(problem.test, delta, seed=2)
    errors = relative_errors(filtered(problem, z, spectral), problem.test)
    norm = spectral(torch.linalg.eigvalsh(problem.blur)).abs().max().item()
    stderr = (errors.std() / math.sqrt(len(errors))).item()
    return Row(method, delta, errors.mean().item(), stderr, inverse_bound=norm)


def chosen(networks: Sequence[ResidualBlock], problem: Problem, delta: float) -> ResidualBlock:
    """Return the network whose L has the least mean error on the validation images: L(delta)."""
    z = problem.measure(problem.validation, delta, seed=1)

    def score(network: ResidualBlock) -> float:
        found = network.solve_inverse(z).check("phi").value
        return relative_errors(found, problem.validation).mean().item()

    return min(networks, key=score)


def compare(
    problem: Problem, networks: Sequence[ResidualBlock], noises: Sequence[float]
) -> list[Row]:
    """Return every method at every noise level; validation images choose, test images report."""
    rows = []
    for delta in noises:
        rows.append(row_of_network("L(delta)", chosen(networks, problem, delta), problem, delta))
        for network in networks:
            gap = 1 - network.branch.lipschitz
            if any(math.isclose(gap, shown) for shown in SHOWN_GAPS):
                method = f"L = {network.branch.lipschitz:g}"
                rows.append(row_of_network(method, network, problem, delta))
        for name in FILTERS:
            spectral = best_filter(problem, name, delta)
            rows.append(row_of_filter(name, spectral, problem, delta))
        rows.append(row_of_filter("naive inverse", lambda s: 1 / s, problem, delta))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| delta | method | relative error | proved 1 - L | Lip of the inverse, at most | "
        "largest stretch met | proved error of the root |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        network = row.lipschitz is not None
        cells = (
            f"{row.delta:g}",
            row.method,
            f"{row.error:.4f} ± {row.stderr:.4f}",
            f"{1 - row.lipschitz:.5f}" if row.lipschitz is not None else "",
            f"{row.inverse_bound:.2f}",
            f"{row.stretch:.2f}" if network else "",
            f"{row.root_bound:.0e}" if network else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw error, and the bound of Lip(phi^-1), against the noise level."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    styles = {
        "L(delta)": {"color": "#1b6ca8", "linewidth": 2.6, "marker": "o", "zorder": 5},
        "Tikhonov": {"color": "#c4572e", "linestyle": "--", "marker": "s"},
        "truncated SVD": {"color": "#8a6d3b", "linestyle": ":", "marker": "^"},
    }
    greys = iter(("#b8c4ce", "#8696a3", "#52606b"))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for method in dict.fromkeys(row.method for row in rows):
        ours = sorted((row for row in rows if row.method == method), key=lambda row: row.delta)
        deltas = [row.delta for row in ours]
        label = "L(δ), chosen on validation" if method == "L(delta)" else method
        style = styles.get(method)
        if style is None and method.startswith("L ="):
            style = {"color": next(greys), "marker": "."}
        if style is not None:
            errors = [row.error for row in ours]
            bars = [row.stderr for row in ours]
            left.errorbar(deltas, errors, bars, label=label, **style)
            right.plot(deltas, [row.inverse_bound for row in ours], label=label, **style)
    right.axhline(
        next(row.inverse_bound for row in rows if row.method == "naive inverse"),
        color="#999", linestyle="-.", label="naive inverse",
    )  # fmt: skip
    left.set(xscale="log", yscale="log", ylabel="relative error of the reconstruction, test images")
    right.set(xscale="log", yscale="log", ylabel="Lipschitz constant of the inverse, at most")
    for axes in (left, right):
        axes.set_xlabel("noise level δ")
        axes.grid(alpha=0.25)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description="Deblur digits with L(delta) -> 1.")
    parser.add_argument("--quick", action="store_true", help="few steps: a look, no result")
    parser.add_argument("--figure", type=Path, help="where to draw errors and bounds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    problem = deblurring()
    gaps, noises, steps = GAPS, NOISES, 1500
    if options.quick:
        gaps, noises, steps = (0.5, 0.1), (0.3, 0.01), 100
        problem = Problem(problem.blur, problem.train, problem.validation[:50], problem.test[:50])
    networks = ladder(problem, gaps, steps, options.seed)
    rows = compare(problem, networks, noises)
    print(table(rows))
    if options.figure is not None:
        draw(rows, options.figure)
    return rows


if __name__ == "__main__":
    main()
