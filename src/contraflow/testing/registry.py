"""The cases that every invariant runs on: one line a transform.

A case says how to build a transform, what it takes and what it is able to do, so that no
check has to find out by swallowing an exception.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from contraflow.domain import Domain
from contraflow.flow import Flow
from contraflow.flows import MAF, InvertibleResNet, RealNVP, ResidualFlow
from contraflow.lipschitz import (
    ACTIVATIONS,
    AOL,
    Branch,
    ConvBranch,
    DenseConvBranch,
    DenseMLPBranch,
    LipschitzConv2d,
    LipschitzLinear,
    MLPBranch,
    SandwichBranch,
)
from contraflow.logdet import Exact, LogDet, NestedRoulette, PowerSeries, Roulette
from contraflow.solvers import Picard, Solver
from contraflow.transform import Inverse, Sequential, Transform, apply_forward
from contraflow.transforms import (
    ActNorm,
    Autoregressive,
    Coupling,
    DequantiseColumns,
    FactorOut,
    Logit,
    LULinear,
    MarginalSpline,
    RationalQuadratic,
    Reshape,
    ResidualBlock,
    SplitPrior,
    Squeeze,
    Standardise,
    UnboundColumns,
    UniformDequantise,
)

Sampler = Callable[[torch.Generator, int, float], Tensor]


@dataclass(frozen=True)
class Case:
    """A transform or a flow, what it takes, and what it is able to do.

    Args:
        module: a ``Transform`` or a ``Flow``, in the mode that is to be checked; the checks
            work on copies of it.
        event_shape: E, the shape of one x.
        context_shape: shape of one context, usually ``(M,)``; empty for none.
        bijective: whether ``forward(inverse(z)) = z`` too; False for dequantisation.
        exact_ladj: whether ladj is ln|det dz/dx| itself and not an estimate of it.
        iterative: whether ``forward`` iterates until a tolerance holds, which neither
            ``torch.compile(fullgraph=True)`` nor ``torch.func`` can follow.
        normalised: whether the latent image of the domain is the whole latent space, so that
            the density integrates to 1 and not to less.
        sampler: ``(generator, rows, scale) -> [rows, *E]``, points of the domain; None for
            normals, squashed into an interval, or uniform levels, as the domain asks.
        dtype: dtype of the module, and of what ``x``, ``z`` and ``context`` return.

    Example:
        >>> from contraflow.transforms import Standardise
        >>> case = Case(Standardise(2).double(), event_shape=(2,))
        >>> case.x(torch.Generator().manual_seed(0), rows=5).shape
        torch.Size([5, 2])
    """

    module: Transform | Flow
    event_shape: tuple[int, ...]
    context_shape: tuple[int, ...] = ()
    bijective: bool = True
    exact_ladj: bool = True
    iterative: bool = False
    normalised: bool = True
    sampler: Sampler | None = None
    dtype: torch.dtype = torch.float64

    @property
    def transform(self) -> Transform:
        """Return the transform, or the flow's."""
        return self.module.transform if isinstance(self.module, Flow) else self.module

    @property
    def size(self) -> int:
        """Return D, the entries of one x."""
        return math.prod(self.event_shape)

    @property
    def name(self) -> str:
        """Return the module's type, for messages."""
        return type(self.module).__name__

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Case:
        """Return the case with a copy of the module, in another dtype or place."""
        return replace(self, module=copy.deepcopy(self.module).to(device, dtype), dtype=dtype)

    def x(self, generator: torch.Generator, rows: int, scale: float = 1.0) -> Tensor:
        """Draw points of the domain, ``[rows, *E]``, spread by ``scale``."""
        if self.sampler is not None:
            return self.sampler(generator, rows, scale).to(self.dtype)
        domain = self.transform.domain
        shape = (rows, *self.event_shape)
        if isinstance(domain, Domain) and domain.integer:
            low, high = domain.ends
            levels = torch.randint(int(high - low) + 1, shape, generator=generator)
            return levels.to(self.dtype) + low
        normal = scale * _normal(shape, generator)
        if not domain.unbounded:
            normal = domain.place(normal)  # off the ends, where no round trip can be exact
        return normal.to(self.dtype)

    def z(self, generator: torch.Generator, rows: int, scale: float = 1.0) -> Tensor:
        """Draw latent points ``[rows, *Z]``: normals, or images of x where x is bounded."""
        if self.sampler is None and self.transform.domain.unbounded:
            shape = self.transform.latent_shape(self.event_shape)
            return scale * _normal((rows, *shape), generator).to(self.dtype)
        x, context = self.x(generator, rows, scale), self.context(generator, rows)
        with torch.no_grad():
            return self.forward(x, context, self.noise(x, generator))[0]

    def context(self, generator: torch.Generator, rows: int) -> Tensor | None:
        """Draw contexts ``[rows, *context_shape]``; None where there are none."""
        if not self.context_shape:
            return None
        return _normal((rows, *self.context_shape), generator).to(self.dtype)

    def noise(self, x: Tensor, generator: torch.Generator) -> Any:
        """Draw what ``forward`` of the flat batch x needs; None where nothing is random."""
        return self.transform.draw(x.shape, x, generator) if self.transform.stochastic else None

    def forward(self, x: Tensor, context: Tensor | None, noise: Any) -> tuple[Tensor, Tensor]:
        """Map data to latent with this noise."""
        return apply_forward(self.transform, x, context, noise)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


@torch.no_grad()
def randomise_(module: torch.nn.Module, generator: torch.Generator, gain: float = 1.0) -> None:
    """Redraw every parameter: what starts at zero or at the identity would hide mistakes.

    Args:
        module: changed in place.
        generator: source of the values.
        gain: matrices and kernels get entries of standard deviation ``gain / sqrt(fan_in)``,
            vectors and scalars ``gain / 4``.

    Example:
        >>> layer = torch.nn.Linear(4, 2)
        >>> randomise_(layer, torch.Generator().manual_seed(0), gain=0.0)
        >>> layer.weight.abs().sum().item()
        0.0
    """
    for parameter in module.parameters():
        deviation = gain / (math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 4.0)
        parameter.copy_(deviation * _normal(parameter.shape, generator))


@torch.no_grad()
def _separate_(module: torch.nn.Module) -> None:
    """Part the two largest singular values of every bounded operator.

    A bound by Gram iteration has the gradient of the leading singular pair alone. That is the
    gradient of its value only where the second pair has died out: at a ratio of 1.5, to
    ``1.5**-128``. A convolution has as many pairs as pixels: taps that are nearly equal part
    them, by .8 on six pixels.
    """
    for part in module.modules():
        if isinstance(part, LipschitzLinear):
            part.weight.copy_(_parted(part.weight))
        elif isinstance(part, LipschitzConv2d):
            matrix = _parted(part.weight.mean((2, 3)))
            uneven = 0.3 * matrix.norm() / part.weight.norm() * part.weight
            part.weight.copy_(matrix[:, :, None, None] + uneven)


def _parted(matrix: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values[0] *= 1.5
    return (left * values) @ right


def _case(
    module: Transform | Flow,
    event_shape: Sequence[int],
    generator: torch.Generator,
    context: Sequence[int] = (),
    *,
    gain: float = 1.0,
    fit: bool = False,
    **abilities: Any,
) -> Case:
    """Return a case with random float64 parameters, in evaluation mode.

    Args:
        module: in place changed to random parameters.
        event_shape: E.
        generator: source of the parameters.
        context: shape of one context.
        gain: spread of the parameters.
        fit: set what ``initialise_from`` sets, from a batch.
        abilities: see ``Case``.
    """
    module = module.double().eval()
    randomise_(module, generator, gain)
    _separate_(module)
    case = Case(module, tuple(event_shape), tuple(context), **abilities)
    if fit:
        _initialise(case, generator)
    return case


def _initialise(case: Case, generator: torch.Generator) -> None:
    x = case.x(generator, 64)
    if case.transform.domain.unbounded:
        x = 1 + 2 * x + 0.5 * x.roll(1, -1)  # neither centred, nor of scale 1, nor independent
    case.module.initialise_from(x, case.context(generator, 64))


def _linear(generator: torch.Generator) -> Case:
    """Return a linear map whose rows change places and whose determinant is negative or not."""
    case = _case(LULinear(4), (4,), generator)
    assert isinstance(case.module, LULinear)
    case.module.set_matrix(_normal((4, 4), generator))
    return case


def _residual(
    generator: torch.Generator,
    features: int,
    activation: str = "lipswish",
    hidden: Sequence[int] = (8, 6),
    context: int = 0,
    *,
    log_det: LogDet = Exact(),
    solver: Solver | None = None,
    gain: float = 1.0,
) -> Case:
    branch = MLPBranch(features, hidden, activation, 0.9, context)
    block = ResidualBlock(branch, log_det, log_det, solver)
    given = (context,) if context else ()
    exact = isinstance(log_det, Exact)
    return _case(block, (features,), generator, given, gain=gain, exact_ladj=exact)


def _residual_conv(
    generator: torch.Generator,
    shape: Sequence[int] = (3, 8, 6),
    kernels: Sequence[int] = (3, 1, 3),
    activation: str = "lipswish",
    context: int = 0,
    *,
    log_det: LogDet = Exact(),
) -> Case:
    branch = ConvBranch(shape, (4, 5), kernels, activation, 0.9, context)
    block = ResidualBlock(branch, log_det, log_det)
    given = (context,) if context else ()
    return _case(block, shape, generator, given, exact_ladj=isinstance(log_det, Exact))


def _block(generator: torch.Generator, branch: Branch, context: int = 0) -> Case:
    given = (context,) if context else ()
    block = ResidualBlock(branch, Exact(), Exact())
    return _case(block, branch.event_shape, generator, given)


def _factor_out(generator: torch.Generator, *, prior: bool) -> Case:
    half = (2, 2, 4)
    block = ResidualBlock(ConvBranch(half, (4, 4), lipschitz=0.9))
    inner = Sequential(ActNorm(2, event_dim=3), block, Reshape(half, (16,)))
    module = FactorOut(inner, (4, 2, 4), SplitPrior(2, 2) if prior else None)
    return _case(module, (4, 2, 4), generator)


def _chain(generator: torch.Generator) -> Case:
    module = Sequential(
        Standardise(3),
        ActNorm(3),
        Coupling(3, (True, False, True), hidden_features=(6,), context=2),
        LULinear(3, whiten=True),
        ResidualBlock(MLPBranch(3, (8,), lipschitz=0.9, context=2)),
        Autoregressive(3, hidden_features=(6,), context=2),
    )
    return _case(module, (3,), generator, (2,), gain=0.7, fit=True)


CASES: dict[str, Callable[[torch.Generator], Case]] = {
    # closed forms
    "actnorm": lambda rng: _case(ActNorm(3), (3,), rng, fit=True),
    "actnorm-image": lambda rng: _case(ActNorm(3, 3), (3, 4, 2), rng, fit=True),
    "lu-linear": _linear,
    "lu-linear-whitened": lambda rng: _case(LULinear(2, whiten=True), (2,), rng, fit=True),
    "standardise": lambda rng: _case(Standardise(2), (2,), rng, fit=True),
    "marginal-spline": lambda rng: _case(MarginalSpline(3, bins=6), (3,), rng),
    "marginal-spline-fitted": lambda rng: _case(MarginalSpline(3), (3,), rng, fit=True),
    "logit": lambda rng: _case(Logit(-1.0, 3.0), (2,), rng),
    "logit-image": lambda rng: _case(Logit(0.0, 17.0, 0.1, 3), (2, 2, 3), rng),
    "reshape": lambda rng: _case(Reshape((2, 4, 2), (16,)), (2, 4, 2), rng),
    "squeeze": lambda rng: _case(Squeeze(), (2, 4, 6), rng),
    "factor-out": lambda rng: _factor_out(rng, prior=False),
    "factor-out-prior": lambda rng: _factor_out(rng, prior=True),
    "split-prior": lambda rng: _case(SplitPrior(2, 3), (3, 4, 2), rng, (2, 4, 2)),
    "coupling": lambda rng: _case(Coupling(2, (False, True)), (2,), rng),
    "coupling-context": lambda rng: _case(
        Coupling(3, (True, False, False), context=2), (3,), rng, (2,)
    ),
    "coupling-spline": lambda rng: _case(
        Coupling(3, (True, False, False), RationalQuadratic(5), context=2), (3,), rng, (2,)
    ),
    "autoregressive": lambda rng: _case(Autoregressive(2), (2,), rng, gain=0.5),
    "autoregressive-1d": lambda rng: _case(Autoregressive(1, context=2), (1,), rng, (2,)),
    "autoregressive-spline": lambda rng: _case(
        Autoregressive(3, RationalQuadratic(4, bound=3.0)), (3,), rng
    ),
    "autoregressive-reversed": lambda rng: _case(
        Autoregressive(3, context=2, order=(2, 1, 0)), (3,), rng, (2,)
    ),
    # residual blocks
    **{
        f"residual-{name}": (lambda rng, name=name: _residual(rng, 5, name)) for name in ACTIVATIONS
    },
    "residual-shallow": lambda rng: _residual(rng, 4, "tanh", (5,)),
    "residual-1d": lambda rng: _residual(rng, 1, hidden=(8,)),
    "residual-2d": lambda rng: _residual(rng, 2, "sine"),
    "residual-3d": lambda rng: _residual(rng, 3, "cpila", hidden=(6, 6, 6)),
    "residual-context": lambda rng: _residual(rng, 2, context=3),
    "residual-small-weights": lambda rng: _residual(rng, 4, "tanh", gain=0.1),
    "residual-picard": lambda rng: _residual(rng, 4, solver=Picard()),
    "residual-power-series": lambda rng: _residual(rng, 5, log_det=PowerSeries(terms=5)),
    "residual-roulette": lambda rng: _residual(rng, 5, log_det=Roulette(probes=2)),
    "residual-nested-roulette": lambda rng: _residual(rng, 5, log_det=NestedRoulette()),
    "residual-conv-313": lambda rng: _residual_conv(rng),
    "residual-conv-513": lambda rng: _residual_conv(rng, kernels=(5, 1, 3), activation="cpila"),
    "residual-conv-context": lambda rng: _residual_conv(rng, (2, 4, 3), context=3),
    "residual-conv-roulette": lambda rng: _residual_conv(rng, log_det=NestedRoulette()),
    "residual-aol": lambda rng: _block(
        rng, MLPBranch(4, (6, 5), lipschitz=0.9, normalisation=AOL())
    ),
    "residual-conv-aol": lambda rng: _block(
        rng, ConvBranch((2, 4, 3), (4, 3), lipschitz=0.9, context=2, normalisation=AOL()), 2
    ),
    "residual-sandwich": lambda rng: _block(rng, SandwichBranch(2, (6, 5), "tanh", 0.9, 2), 2),
    "residual-dense": lambda rng: _block(
        rng, DenseMLPBranch(2, (4, 3), lipschitz=0.9, context=2), 2
    ),
    "residual-conv-dense": lambda rng: _block(
        rng, DenseConvBranch((2, 4, 3), (3, 2), lipschitz=0.9, context=2), 2
    ),
    # combinations
    "sequential": _chain,
    "inverse": lambda rng: _case(Inverse(Autoregressive(3, context=2)), (3,), rng, (2,)),
    "inverse-residual": lambda rng: _case(
        Inverse(ResidualBlock(MLPBranch(2, (8, 6), lipschitz=0.8))), (2,), rng, iterative=True
    ),
    "dequantise-columns": lambda rng: _case(
        DequantiseColumns([Domain(), Domain(-2, 4, integer=True)]), (2,), rng, bijective=False
    ),
    "unbound-columns": lambda rng: _case(
        UnboundColumns([Domain(), Domain(-1.0), Domain(None, 2.0), Domain(-1.0, 3.0)]), (4,), rng
    ),
    "uniform-dequantise": lambda rng: _case(UniformDequantise(7), (3,), rng, bijective=False),
    # flows
    "residual-flow": lambda rng: _case(
        ResidualFlow(2, transforms=2, hidden_features=(8, 8), lipschitz=0.9), (2,), rng, fit=True
    ),
    "residual-flow-context": lambda rng: _case(
        ResidualFlow(2, 3, transforms=2, hidden_features=(8, 8)), (2,), rng, (3,), fit=True
    ),
    "residual-flow-image": lambda rng: _case(
        ResidualFlow(
            shape=(1, 4, 4),
            transforms=1,
            scales=2,
            tail=1,
            hidden_features=(8,),
            hidden_channels=(4, 4),
            lipschitz=0.9,
        ),
        (1, 4, 4),
        rng,
        fit=True,
    ),
    "residual-flow-levels": lambda rng: _case(
        ResidualFlow(
            shape=(1, 4, 4),
            num_bins=17,
            transforms=1,
            scales=2,
            tail=1,
            hidden_features=(8,),
            hidden_channels=(4, 4),
            lipschitz=0.9,
        ),
        (1, 4, 4),
        rng,
        fit=True,
        bijective=False,
    ),
    "invertible-resnet": lambda rng: _case(
        InvertibleResNet(2, transforms=2, hidden_features=(8, 8)), (2,), rng, fit=True
    ),
    "invertible-resnet-context": lambda rng: _case(
        InvertibleResNet(1, 2, transforms=2, hidden_features=(8,)), (1,), rng, (2,), fit=True
    ),
    "invertible-resnet-image": lambda rng: _case(
        InvertibleResNet(shape=(1, 4, 4), transforms=1, scales=2, hidden_channels=(4, 4)),
        (1, 4, 4),
        rng,
        fit=True,
    ),
    "real-nvp": lambda rng: _case(
        RealNVP(2, transforms=3, hidden_features=(8,)), (2,), rng, gain=0.5, fit=True
    ),
    "real-nvp-context": lambda rng: _case(
        RealNVP(3, 2, transforms=2, hidden_features=(8,)), (3,), rng, (2,), gain=0.7, fit=True
    ),
    "maf": lambda rng: _case(
        MAF(2, transforms=3, hidden_features=(8,)), (2,), rng, gain=0.5, fit=True
    ),
    "maf-context": lambda rng: _case(
        MAF(3, 2, transforms=2, hidden_features=(8,)), (3,), rng, (2,), gain=0.7, fit=True
    ),
}
