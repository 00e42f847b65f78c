"""For every invariant, faults that it must reject: a test that cannot fail proves nothing.

Each mutant differs in one place from a sound twin, which must pass the same check. Faults of
published code (shared/reference/peers.md) are marked with their project.
"""

# Mutants that write passes of their own know nothing of norms, as a user's classes may:
# pyright: reportIncompatibleMethodOverride=false

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contraflow.domain import Domain
from contraflow.flow import Flow
from contraflow.jacobian import Jacobian, linearize
from contraflow.lipschitz import Branch, LipschitzLinear, MLPBranch, PreparedLinear
from contraflow.logdet import Exact, LogDet, Noise, PowerSeries
from contraflow.registry import register
from contraflow.solvers import Picard
from contraflow.testing import INVARIANTS, Case, randomise_
from contraflow.transform import BlockCertificate, Sequential, Transform
from contraflow.transforms import ResidualBlock, UniformDequantise

# torch's own, when torch.func.jvp is first called
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

Pair = tuple[Tensor, Tensor]


# --- an affine map, and what can be wrong with it ---------------------------------------


@register
class Stretch(Transform):
    """``z = x * exp(log_scale) + shift``: sound."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.log_scale = nn.Parameter(torch.linspace(-0.3, 0.5, features))
        self.shift = nn.Parameter(torch.linspace(1.0, 2.0, features))

    def ladj(self, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(x.shape[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return x * self.log_scale.exp() + self.shift, self.ladj(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return (z - self.shift) * (-self.log_scale).exp(), -self.ladj(z)

    def certificates(self, name: str) -> list[BlockCertificate]:
        scale = self.log_scale.detach().double().exp()
        return [BlockCertificate(name, forward=scale.max().item(), inverse=1 / scale.min().item())]


class LadjOff(Stretch):
    def ladj(self, x: Tensor) -> Tensor:
        return super().ladj(x) + 1e-3


class LadjForgotten(Stretch):
    def ladj(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


class LadjDetached(Stretch):
    def ladj(self, x: Tensor) -> Tensor:
        return super().ladj(x).detach()


class InverseOff(Stretch):
    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, ladj = super().inverse(z)
        return x + 1e-3, ladj


class InverseClamped(Stretch):
    """Has no inverse beyond 5, and does not say so (zuko's monotonic flows, beyond 10)."""

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, ladj = super().inverse(z)
        return x.clamp(-5, 5), ladj


class InverseLadjUnsigned(Stretch):
    """Returns the inverse's ladj with the sign of the forward (torchflows)."""

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, ladj = super().inverse(z)
        return x, -ladj


class InverseDetached(Stretch):
    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, ladj = super().inverse(z)
        return x.detach(), ladj


class ParameterDetached(Stretch):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return x * self.log_scale.detach().exp() + self.shift, self.ladj(x)


class WritesBuffer(Stretch):
    """Keeps a moving mean (batch norm; estimator moments in residual-flows)."""

    seen: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.register_buffer("seen", torch.zeros(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.seen.lerp_(x.detach().mean(0), 0.1)
        return super().forward(x)


class WritesAttribute(Stretch):
    last: Tensor | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.last = x.detach()
        return super().forward(x)


class CountsCalls(Stretch):
    """Changes with every call, and writes to nothing that its state names."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.calls = [0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.calls[0] += 1
        z, ladj = super().forward(x)
        return z + 1e-9 * self.calls[0], ladj


class CentresBatch(Stretch):
    """Batch normalisation, first moment."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return super().forward(x - x.mean(0))


class InverseMixesRows(Stretch):
    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, ladj = super().inverse(z)
        return x + 1e-6 * z.norm(), ladj


class Upcasts(Stretch):
    """Meets a float64 constant (normflows)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, ladj = super().forward(x)
        return z * torch.ones(1, dtype=torch.float64), ladj


class Downcasts(Stretch):
    """Returns float32 for float64 (normflows)."""

    def ladj(self, x: Tensor) -> Tensor:
        return super().ladj(x).float()


class LosesDigits(Stretch):
    """Passes through half precision on its way."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, ladj = super().forward(x)
        return (z.bfloat16().to(x.dtype) if x.dtype == torch.float32 else z), ladj


class ClaimsLess(Stretch):
    """Takes the largest scale where its inverse needs the smallest."""

    def certificates(self, name: str) -> list[BlockCertificate]:
        (found,) = super().certificates(name)
        assert found.forward is not None
        return [BlockCertificate(name, forward=found.forward, inverse=1 / found.forward)]


@register
class DropsParameter(Stretch):
    """Keeps a weight where no state_dict sees it."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        del self.shift
        self.shift = torch.rand(features)


@register
class DropsArgument(Stretch):
    """Keeps an argument as an attribute, but not the one that it was given."""

    def __init__(self, features: int, factor: float = 1.0) -> None:
        super().__init__(features)
        self.factor = 1.0
        self.used = factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return super().forward(x * self.used)


@register
class LoadsAnother(Stretch):
    """Is built as another type than it says."""

    @classmethod
    def rebuild(cls, features: int) -> Stretch:
        return Stretch(features)


class BreaksGraph(Stretch):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, ladj = super().forward(x)
        return (z, ladj) if z.sum().item() < math.inf else (z + 1, ladj)


class ValueChangesCompiled(Stretch):
    def ladj(self, x: Tensor) -> Tensor:
        return super().ladj(x) + (1e-3 if torch.compiler.is_compiling() else 0.0)


class GradientChangesCompiled(Stretch):
    def ladj(self, x: Tensor) -> Tensor:
        ladj = super().ladj(x)
        return ladj.detach() if torch.compiler.is_compiling() else ladj


class IgnoresNoise(UniformDequantise):
    """Draws from the global generator although noise was handed in."""

    def forward(self, x: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        return super().forward(x)


class LosesLevel(UniformDequantise):
    """Rounds to the nearest level in place of the level below."""

    def inverse(self, z: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        return z.round(), z.new_zeros(z.shape[:-1])


class Halved(Stretch):
    """Lives on the half line, but its density is that of the line."""

    @property
    def domain(self) -> Domain:
        return Domain(0.0, 40.0)


class DensityOff(Flow):
    def log_prob(self, *args: Any, **options: Any) -> Tensor:
        return super().log_prob(*args, **options) + math.log(1.01)


# --- a residual block, and what can be wrong with it ------------------------------------


class PreparedScale:
    """``g(x) = scale * x``: its Jacobian reaches the bound everywhere."""

    def __init__(self, scale: float, lipschitz: float) -> None:
        self.scale = scale
        self.lipschitz = lipschitz

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x

    def rows(self, index: Tensor) -> "PreparedScale":
        return self

    def certified_bound(self) -> float:
        return self.lipschitz


class ScaleBranch(Branch):
    def __init__(self, scale: float, lipschitz: float) -> None:
        super().__init__()
        self.scale = scale
        self.lipschitz = lipschitz
        self.event_shape = (3,)

    def prepare(self, context: Tensor | None = None) -> PreparedScale:
        return PreparedScale(self.scale, self.lipschitz)


class EstimatedLinear(LipschitzLinear):
    """Normalises by power iteration, which comes from below (residual-flows)."""

    def norm_bound(self) -> Tensor:
        v = torch.ones(self.in_features, dtype=self.weight.dtype)
        for _ in range(2):
            v = self.weight.mT @ (self.weight @ v)
            v = v / v.norm()
        return (self.weight @ v).norm()


class Unlimited(LipschitzLinear):
    """Ignores the norm it was asked for (torchflows)."""

    def prepare(self, max_norm: float | None = None) -> PreparedLinear:
        return PreparedLinear(self.weight, self.bias)


class GivesUp(ResidualBlock):
    """Inverts by 25 fixed steps and returns what there is (torchflows)."""

    def inverse(self, z: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        branch, x = self.branch.prepare(context), z
        for _ in range(25):
            x = z - branch(x)
        return x, -self.forward(x)[1]


class StopsOnSquare(ResidualBlock):
    """Stops when the squared step is below the tolerance (residual-flows)."""

    def inverse(self, z: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        branch, x = self.branch.prepare(context), z
        while True:
            last, x = x, z - branch(x)
            if ((x - last) ** 2).max() < 1e-12:
                return x, -self.forward(x)[1]


class LadjAtWrongPoint(ResidualBlock):
    """Takes the inverse's ladj at z in place of x (FrEIA)."""

    def inverse(self, z: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        return super().inverse(z)[0], -self.forward(z)[1]


class InverseWithoutGraph(ResidualBlock):
    """Returns the root as a constant."""

    def inverse(self, z: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        x = self.solve_inverse(z).value
        return x, -self.forward(x)[1]


class WrongAdjoint(ResidualBlock):
    """Has the wrong sign in the backward solve (implicit-normalizing-flows)."""

    def inverse(self, z: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        x = self.solve_inverse(z).value
        branch = self.branch.prepare()
        gap = z - x - branch(x)
        matrix = linearize(branch, x)[1].dense().detach()
        eye = torch.eye(x.shape[-1], dtype=x.dtype)
        x = x + torch.linalg.solve(eye - matrix, gap[..., None])[..., 0]
        return x, -self.forward(x)[1]


class _FirstCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ladj: Tensor) -> Tensor:
        return ladj.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return cotangents[0][:1].expand_as(cotangents[0])


class FirstCotangent(ResidualBlock):
    """Uses the first sample's cotangent for all (residual-flows, normflows)."""

    def forward(self, x: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        z, ladj = super().forward(x, context, noise=noise)
        out = _FirstCotangent.apply(ladj)
        assert isinstance(out, Tensor)
        return z, out


class LogDetDetached(ResidualBlock):
    """Gives ladj no gradient (FrEIA)."""

    def forward(self, x: Tensor, context: Tensor | None = None, *, noise: Any = None) -> Pair:
        z, ladj = super().forward(x, context, noise=noise)
        return z, ladj.detach()


@dataclass(frozen=True)
class FirstProbe(PowerSeries):
    """Gives every row the batch's first probe, so that a row depends on its neighbours."""

    def __call__(self, jacobian: Jacobian, noise: Noise, *, lipschitz: float) -> Tensor:
        probes = tuple(probe[:1].expand_as(probe) for probe in noise.probes)
        return super().__call__(jacobian, Noise(probes, noise.terms), lipschitz=lipschitz)


# --- the cases --------------------------------------------------------------------------


def stretch(cls: type[Stretch] = Stretch, features: int = 3) -> Case:
    return Case(cls(features).double(), (features,))


def block(cls: type[ResidualBlock] = ResidualBlock, log_det: LogDet = Exact()) -> Case:
    module = cls(MLPBranch(5, (7,), "tanh", 0.9), log_det, log_det).double()
    randomise_(module, torch.Generator().manual_seed(0), gain=2.0)
    with torch.no_grad():  # part the singular values: see testing.registry
        for part in module.modules():
            if isinstance(part, LipschitzLinear):
                part.weight[0] *= 3
    return Case(module, (5,), exact_ladj=log_det == Exact())


def layered(cls: type[LipschitzLinear]) -> Case:
    case = block()
    assert isinstance(case.module, ResidualBlock)
    assert isinstance(case.module.branch, MLPBranch)
    layers = case.module.branch.layers
    for i, layer in enumerate(layers):
        assert isinstance(layer, LipschitzLinear)
        layers[i] = cls(layer.in_features, layer.out_features, layer.max_norm).double()
    randomise_(case.module, torch.Generator().manual_seed(1), gain=1.0)
    return case


def linear(lipschitz: float, cls: type[ResidualBlock] = ResidualBlock) -> Case:
    return Case(cls(ScaleBranch(0.9, lipschitz), solver=Picard()), (3,))


def dequantise(cls: type[UniformDequantise] = UniformDequantise) -> Case:
    return Case(cls(5), (3,), bijective=False)


def flow(cls: type[Flow] = Flow) -> Case:
    return Case(cls(Sequential(Stretch(2)), event_shape=(2,)).double(), (2,))


def argument(factor: float) -> Case:
    return Case(DropsArgument(3, factor).double(), (3,))


@dataclass(frozen=True)
class Mutant:
    """A sound case, the same with one fault, and what the check must say of it."""

    invariant: str
    sound: Callable[[], Case]
    broken: Callable[[], Case]
    message: str
    options: dict[str, Any] = field(default_factory=dict)


def affine(invariant: str, cls: type[Stretch], message: str, features: int = 3) -> Mutant:
    return Mutant(
        invariant, lambda: stretch(features=features), lambda: stretch(cls, features), message
    )


def residual(
    invariant: str,
    cls: type[ResidualBlock],
    message: str,
    log_det: LogDet = Exact(),
    **options: Any,
) -> Mutant:
    return Mutant(
        invariant, lambda: block(log_det=log_det), lambda: block(cls, log_det), message, options
    )


MUTANTS = {
    "inverse off by 1e-3": affine("round_trip", InverseOff, r"inverse\(forward\(x\)\) at 1 sigma"),
    "inverse of a bounded range": affine("round_trip", InverseClamped, "at 10 sigma"),
    "inverse ladj of wrong sign": affine("round_trip", InverseLadjUnsigned, "ladj of inverse"),
    "inverse gives up": Mutant(
        "round_trip",
        lambda: linear(0.9),
        lambda: linear(0.9, GivesUp),
        r"inverse\(forward\(x\)\)",
    ),
    "inverse stops on the square": residual(
        "round_trip", StopsOnSquare, r"inverse\(forward\(x\)\)"
    ),
    "inverse ladj at z": residual("round_trip", LadjAtWrongPoint, "ladj of inverse"),
    "dequantisation off by a level": Mutant(
        "round_trip", dequantise, lambda: dequantise(LosesLevel), r"inverse\(forward\(x\)\)"
    ),
    "ladj off by 1e-3": affine("log_abs_det", LadjOff, "ladj is"),
    "ladj of a series": Mutant(
        "log_abs_det",
        block,
        lambda: Case(block(log_det=PowerSeries(terms=9)).module, (5,)),
        "ladj is",
    ),
    "ladj detached": affine("gradients", LadjDetached, "through forward"),
    "parameter detached": affine("gradients", ParameterDetached, "through forward"),
    "inverse detached": affine("gradients", InverseDetached, "through inverse"),
    "log-det without gradient": residual("gradients", LogDetDetached, "through forward"),
    "root without gradient": residual("gradients", InverseWithoutGraph, "through inverse"),
    "adjoint of wrong sign": residual("gradients", WrongAdjoint, "through inverse"),
    "first cotangent for all": residual("weighted_gradients", FirstCotangent, "weighted gradient"),
    "first cotangent for all, series": residual(
        "weighted_gradients",
        FirstCotangent,
        "weighted gradient",
        PowerSeries(terms=4),
        strategies=(PowerSeries(terms=4),),
    ),
    "first probe for all": Mutant(
        "weighted_gradients",
        block,
        block,
        "ladj of a batch",
        {"strategies": (FirstProbe(terms=4),)},
    ),
    "forward writes a buffer": affine("purity", WritesBuffer, "changed 'seen'"),
    "forward writes an attribute": affine("purity", WritesAttribute, "wrote the attribute '.last'"),
    "forward counts its calls": affine("purity", CountsCalls, "two calls with equal noise"),
    "forward ignores its noise": Mutant(
        "purity", dequantise, lambda: dequantise(IgnoresNoise), "global generator"
    ),
    "rows are centred": affine("rows", CentresBatch, "forward of row 0"),
    "inverse mixes rows": affine("rows", InverseMixesRows, "inverse of row 0"),
    "float64 constant": affine("placement", Upcasts, "z is torch.float64"),
    "float32 ladj": affine("placement", Downcasts, "ladj is torch.float32"),
    "float32 through half precision": affine("placement", LosesDigits, "z in torch.float32"),
    "bound shrunk by 1%": Mutant(
        "certificate", lambda: linear(0.9), lambda: linear(0.891), "largest singular value of dg/dx"
    ),
    "norm estimated from below": Mutant(
        "certificate",
        lambda: layered(LipschitzLinear),
        lambda: layered(EstimatedLinear),
        "certified bound of g",
    ),
    "norm not limited": Mutant(
        "certificate",
        lambda: layered(LipschitzLinear),
        lambda: layered(Unlimited),
        "not certified",
    ),
    "bound of the inverse too small": affine("certificate", ClaimsLess, "df\\^-1/dz"),
    "weight outside the state": affine("save_load", DropsParameter, "z after loading"),
    "argument not kept": Mutant(
        "save_load", lambda: argument(1.0), lambda: argument(2.0), "z after loading"
    ),
    "loaded as another type": affine("save_load", LoadsAnother, "got a Stretch"),
    "density off by 1%": Mutant("density", flow, lambda: flow(DensityOff), "integrates to 1.0100"),
    "density without its ladj, 1-D": affine("density", LadjForgotten, "integrates to", 1),
    "density without its ladj, 2-D": affine("density", LadjForgotten, "integrates to", 2),
    "density of half a line": affine("density", Halved, "integrates to", 1),
    "graph broken": affine("compiled", BreaksGraph, "no single graph"),
    "value changes when compiled": affine("compiled", ValueChangesCompiled, "output 1 compiled"),
    "gradient changes when compiled": affine(
        "compiled", GradientChangesCompiled, "gradient in log_scale compiled"
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_rejected(name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(AssertionError, match=mutant.message):
        INVARIANTS[mutant.invariant](mutant.broken(), **mutant.options)


@pytest.mark.parametrize("name", MUTANTS)
def test_sound_twin_passes(name: str) -> None:
    mutant = MUTANTS[name]
    if mutant.sound is mutant.broken:  # the fault lies in the options
        INVARIANTS[mutant.invariant](mutant.sound())
    else:
        INVARIANTS[mutant.invariant](mutant.sound(), **mutant.options)


def test_every_invariant_has_a_mutant() -> None:
    assert {mutant.invariant for mutant in MUTANTS.values()} == set(INVARIANTS)
