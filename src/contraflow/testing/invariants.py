"""What must hold of every transform, as free functions that raise ``AssertionError``.

Each check copies the module first, draws from a seeded generator and compares with a float64
reference. ``invariants_of(case)`` lists the checks that a case's abilities call for; a check
called on a case that lacks the ability raises ``ConfigurationError`` instead of passing.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.autograd.gradcheck import GradcheckError, gradcheck

from contraflow import registry
from contraflow.errors import ConfigurationError
from contraflow.evaluation import Certificate, certify
from contraflow.flow import Flow
from contraflow.jacobian import linearize
from contraflow.logdet import Exact, LogDet, NestedRoulette, PowerSeries, Roulette
from contraflow.serialization import load
from contraflow.testing.registry import Case
from contraflow.transform import Sequential, Transform
from contraflow.transforms import Reshape, ResidualBlock

STRATEGIES: tuple[LogDet, ...] = (
    Exact(),
    PowerSeries(terms=6, probes=2),
    PowerSeries(bias=1e-2),
    Roulette(probes=2),
    NestedRoulette(),
)


# --- round trip and log-determinant -----------------------------------------------------


def check_round_trip(case: Case, *, rows: int = 8, tolerance: float = 1e-9, seed: int = 0) -> None:
    """Check both orders at 1 sigma and 10 sigma, and that the two ladj cancel.

    A case that is not bijective is only asked for ``inverse(forward(x)) = x``; an estimated
    ladj is not asked to cancel.

    Args:
        case: what to check.
        rows: points an order and a scale.
        tolerance: largest error, relative to ``1 + max |expected|``.
        seed: of the points.

    Raises:
        AssertionError: an error exceeds the tolerance.
    """
    case, generator = _prepared(case, seed)
    for scale in (1.0, 10.0):
        x, context = case.x(generator, rows, scale), case.context(generator, rows)
        with torch.no_grad():
            z, ladj = case.forward(x, context, case.noise(x, generator))
            back, ladj_back = case.transform.inverse(z, context)
        where = f"at {scale:g} sigma"
        _close(case, f"inverse(forward(x)) {where}", back, x, tolerance)
        if case.exact_ladj:
            _close(case, f"ladj of inverse {where}", ladj_back, -ladj, tolerance)
        if not case.bijective:
            continue
        z, context = case.z(generator, rows, scale), case.context(generator, rows)
        with torch.no_grad():
            x, ladj_back = case.transform.inverse(z, context)
            again, ladj = case.forward(x, context, case.noise(x, generator))
        _close(case, f"forward(inverse(z)) {where}", again, z, tolerance)
        if case.exact_ladj:
            _close(case, f"ladj of forward after inverse {where}", ladj, -ladj_back, tolerance)


def check_log_abs_det(case: Case, *, rows: int = 3, tolerance: float = 1e-9, seed: int = 0) -> None:
    """Check ladj against ``slogdet`` of the dense Jacobian, float64, row by row.

    Args:
        case: bijective, with an exact ladj.
        rows: points.
        tolerance: largest error in nats, relative to ``1 + max |expected|``.
        seed: of the points.

    Raises:
        AssertionError: an error exceeds the tolerance.
    """
    _require(case, "a bijection with an exact ladj", case.bijective and case.exact_ladj)
    case, generator = _prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    _, ladj = case.forward(x, context, noise)
    expected = torch.linalg.slogdet(_dense_jacobian(case, x, context, noise)).logabsdet
    _close(case, "ladj", ladj.detach(), expected, tolerance)


def _dense_jacobian(case: Case, x: Tensor, context: Tensor | None, noise: Any) -> Tensor:
    """Return ``dz/dx``, ``[rows, D, D]``, each row differentiated alone."""
    rows = []
    for i in range(len(x)):
        given = None if context is None else context[i : i + 1]
        drawn = row_of(noise, i)

        def latent(row: Tensor, given: Tensor | None = given, drawn: Any = drawn) -> Tensor:
            return case.forward(row[None], given, drawn)[0].flatten()

        if case.iterative:  # torch.func cannot follow a loop whose length depends on the data
            matrix = torch.autograd.functional.jacobian(latent, x[i])
        else:
            matrix = torch.func.jacrev(latent)(x[i])
        assert isinstance(matrix, Tensor)
        rows.append(matrix.reshape(case.size, case.size).detach())
    return torch.stack(rows)


# --- gradients --------------------------------------------------------------------------


def check_gradients(
    case: Case,
    *,
    rows: int = 2,
    eps: float = 1e-5,
    atol: float = 1e-6,
    rtol: float = 1e-4,
    seed: int = 0,
) -> None:
    """Run ``gradcheck`` on point and ladj in x, context and parameters, both directions.

    The parameters move together along two random directions, which a wrong gradient of any
    one of them spoils. Both outputs are one vector, so that a detached one does not go unseen.

    Args:
        case: one with an exact ladj: an estimate's gradient is not that of its value.
        rows: points.
        eps: step of the central differences; they err by ``eps**2``, and by a solver's
            tolerance over eps.
        atol: allowed absolute error.
        rtol: allowed relative error.
        seed: of the points.

    Raises:
        AssertionError: a gradient differs from the central difference.
    """
    _require(case, "an exact ladj", case.exact_ladj)
    case, generator = _prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    with torch.no_grad():
        z = case.forward(x, context, noise)[0]
    both = _BothDirections(case)
    values = dict(both.named_parameters())
    directions = [
        {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in values.items()
        }
        for _ in range(2)
    ]
    for direction, point in {"forward": x, "inverse": z}.items():
        if direction == "inverse" and not case.bijective:
            continue

        def moved(
            point: Tensor, steps: Tensor, given: Tensor | None = None, direction: str = direction
        ) -> Tensor:
            shifted = {
                name: value.detach()
                + sum(t * d[name] for t, d in zip(steps, directions, strict=True))
                for name, value in values.items()
            }
            return torch.func.functional_call(both, shifted, (direction, point, given, noise))

        inputs = [point, torch.zeros(2, dtype=point.dtype), *([] if context is None else [context])]
        inputs = [value.detach().clone().requires_grad_() for value in inputs]
        fast = sum(value.numel() for value in inputs) > 20
        try:
            gradcheck(moved, inputs, eps=eps, atol=atol, rtol=rtol, fast_mode=fast)
        except GradcheckError as error:
            raise AssertionError(
                f"{case.name}: gradient through {direction} (inputs: the point, two directions of "
                f"the parameters, the context) differs from central differences; expected "
                f"agreement within rtol={rtol:g}. {error}"
            ) from error


class _BothDirections(nn.Module):
    """Both directions as one flat output, so that ``functional_call`` reaches either."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.transform = case.transform

    def forward(self, direction: str, point: Tensor, given: Tensor | None, noise: Any) -> Tensor:
        if direction == "forward":
            point, ladj = self.case.forward(point, given, noise)
        else:
            point, ladj = self.transform.inverse(point, given)
        return torch.cat([point.flatten(), ladj])


def check_weighted_gradients(
    case: Case,
    *,
    strategies: Sequence[LogDet] = STRATEGIES,
    rows: int = 3,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> None:
    """Check that ``grad sum_i w_i ladj_i = sum_i w_i grad ladj_i``, each row computed alone.

    The noise is drawn once for the batch and cut into rows. Every residual block runs with
    every strategy; a transform without one runs once.

    Args:
        case: what to check.
        strategies: log-determinant strategies; an iterative case, whose ``forward`` cannot be
            handed noise, only takes those whose value is deterministic.
        rows: points.
        tolerance: largest error, relative to ``1 + max |expected|``.
        seed: of points, weights and noise.

    Raises:
        AssertionError: an error exceeds the tolerance.
    """
    original = case
    if not any(isinstance(part, ResidualBlock) for part in case.transform.modules()):
        strategies = (Exact(),)
    for strategy in strategies:
        if case.iterative and strategy.likelihood(case.size, 0.5).stochastic:
            continue
        case, generator = _prepared(original, seed)
        for part in case.transform.modules():
            if isinstance(part, ResidualBlock):
                part.log_det = part.eval_log_det = strategy
        x, context = case.x(generator, rows), case.context(generator, rows)
        weights = torch.tensor([1.0, -2.5, 0.3] * rows, dtype=torch.float64)[:rows]
        noise = case.noise(x, generator)
        whole, whole_gradients = _weighted_ladj(case, x, context, noise, weights)
        alone, gradients = [], [torch.zeros_like(value) for value in whole_gradients]
        for i in range(rows):
            here = slice(i, i + 1)
            given = None if context is None else context[here]
            ladj, parts = _weighted_ladj(case, x[here], given, row_of(noise, i), weights[here])
            alone.append(ladj)
            gradients[0][here] += parts[0]
            for total, part in zip(gradients[1:], parts[1:], strict=True):
                total += part
        _close(case, f"ladj of a batch with {strategy}", whole, torch.cat(alone), tolerance)
        names = ["x", *(name for name, _ in case.transform.named_parameters())]
        for name, got, expected in zip(names, whole_gradients, gradients, strict=True):
            what = f"weighted gradient of ladj in {name} with {strategy}"
            _close(case, what, got, expected, tolerance)


def _weighted_ladj(
    case: Case, x: Tensor, context: Tensor | None, noise: Any, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    x = x.detach().clone().requires_grad_()
    inputs = [x, *case.transform.parameters()]
    ladj = case.forward(x, context, noise)[1]
    if not ladj.requires_grad:  # a volume-preserving map
        return ladj, [torch.zeros_like(value) for value in inputs]
    found = torch.autograd.grad((weights * ladj).sum(), inputs, allow_unused=True)
    gradients = [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(inputs, found, strict=True)
    ]
    return ladj.detach(), gradients


def row_of(noise: Any, index: int) -> Any:
    """Return the noise that one row of a batch sees.

    Args:
        noise: None, tensors ``[B, ...]``, a series strategy's noise, or tuples of these.
        index: the row.

    Raises:
        ConfigurationError: a value is of another type.

    Example:
        >>> row_of((None, torch.tensor([[1.0], [2.0]])), 1)
        (None, tensor([[2.]]))
    """
    if noise is None:
        return None
    if isinstance(noise, Tensor):
        return noise[index : index + 1]
    if hasattr(noise, "counts"):  # logdet.Terms: the row takes part in its first few terms
        place = index if noise.order is None else noise.order.tolist().index(index)
        taken = [k for k, count in enumerate(noise.counts) if place < count]
        return type(noise)((1,) * len(taken), tuple(noise.weights[k] for k in taken), None)
    if isinstance(noise, tuple):
        parts = [row_of(part, index) for part in noise]
        return type(noise)(*parts) if hasattr(noise, "_fields") else tuple(parts)
    raise ConfigurationError(
        f"noise of type {type(noise).__name__}; expected None, a tensor, logdet.Terms or a tuple "
        "of these."
    )


# --- purity, rows, placement ------------------------------------------------------------


def check_purity(case: Case, *, rows: int = 4, seed: int = 0) -> None:
    """Check that both directions write nothing and depend on nothing but their arguments.

    No parameter, buffer or attribute may change; equal generators must give equal noise, and
    equal noise equal outputs; with the noise given, torch's global generator must not move.

    Args:
        case: what to check.
        rows: points.
        seed: of points and noise.

    Raises:
        AssertionError: something was written, or two equal calls differ.
    """
    case, generator = _prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    before = {name: value.clone() for name, value in case.module.state_dict().items()}
    attributes = _attributes(case.module)
    state = torch.get_rng_state()
    noise = [case.noise(x, torch.Generator().manual_seed(seed)) for _ in range(2)]
    with torch.no_grad():
        first, second = (case.forward(x, context, drawn) for drawn in noise)
    case.forward(x, context, noise[0])  # once more with a graph: it may take another path
    if not torch.equal(torch.get_rng_state(), state):
        raise AssertionError(
            f"{case.name}: forward drew from torch's global generator; expected it to use the "
            "noise that it was given."
        )
    with torch.no_grad():
        x_back, _ = case.transform.inverse(first[0], context)
        again, _ = case.transform.inverse(first[0], context)
    for name, value in case.module.state_dict().items():
        if not _same_bits(value, before[name]):
            raise AssertionError(
                f"{case.name}: a pass changed {name!r} from {_shown(before[name])} to "
                f"{_shown(value)}; expected forward and inverse to write nothing."
            )
    for name, value in _attributes(case.module).items():
        if name not in attributes or attributes[name] is not value:
            raise AssertionError(
                f"{case.name}: a pass wrote the attribute {name!r}; expected forward and inverse "
                "to write nothing."
            )
    _equal(case, "z of two calls with equal noise", second[0], first[0])
    _equal(case, "ladj of two calls with equal noise", second[1], first[1])
    _equal(case, "x of two equal inverses", again, x_back)


def _attributes(module: nn.Module) -> dict[str, Any]:
    found = {}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            found[f"{prefix}.{name}"] = value
    return found


def check_rows(case: Case, *, rows: int = 4, tolerance: float = 1e-10, seed: int = 0) -> None:
    """Check that a row's result ignores its neighbours: their values, their number, their NaN.

    Args:
        case: what to check.
        rows: points in a batch.
        tolerance: largest change, relative to ``1 + max |expected|``; rounding may depend on
            the size of a batch.
        seed: of points and noise.

    Raises:
        AssertionError: a row changed with its neighbours.
    """
    case, generator = _prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    other_x, other_context = case.x(generator, rows, 10.0), case.context(generator, rows)
    with torch.no_grad():
        whole = case.forward(x, context, noise)
        backward = case.transform.inverse(whole[0], context)
        other_z = case.forward(other_x, other_context, noise)[0]
    for i in (0, rows - 1):
        here = slice(i, i + 1)
        given = None if context is None else context[here]
        keep = torch.arange(rows) == i
        mixed = _where(keep, context, other_context)
        with torch.no_grad():
            results = {
                "other neighbours": case.forward(_where(keep, x, other_x), mixed, noise),
                "no neighbours": case.forward(x[here].clone(), given, row_of(noise, i)),
            }
            if not case.iterative:  # an iteration refuses NaN, and rightly
                broken = _where(keep, x, torch.full_like(x, math.nan))
                results["NaN neighbours"] = case.forward(broken, context, noise)
            inverses = {
                "other neighbours": case.transform.inverse(_where(keep, whole[0], other_z), mixed),
                "no neighbours": case.transform.inverse(whole[0][here].clone(), given),
            }
        for directions, results_of, expected in (
            ("forward", results, whole),
            ("inverse", inverses, backward),
        ):
            for what, (point, ladj) in results_of.items():
                place = slice(0, 1) if what == "no neighbours" else here
                label = f"{directions} of row {i} with {what}"
                _close(case, f"the point, {label},", point[place], expected[0][here], tolerance)
                if directions == "forward" or case.exact_ladj:
                    _close(case, f"ladj, {label},", ladj[place], expected[1][here], tolerance)


def _where(keep: Tensor, a: Any, b: Any) -> Any:
    if a is None:
        return None
    return torch.where(keep.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def check_placement(
    case: Case,
    *,
    devices: Sequence[str] | None = None,
    rows: int = 4,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> None:
    """Check that dtype and device follow the input, and that float32 stays near float64.

    Args:
        case: what to check.
        devices: names; None for the CPU, and CUDA where there is one.
        rows: points.
        tolerance: largest error of float32, relative to ``1 + max |expected|``.
        seed: of points and noise.

    Raises:
        AssertionError: an output is of another dtype, elsewhere, or far from the reference.
    """
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    original = case
    for device in devices:
        reference: tuple[Tensor, ...] = ()
        for dtype in (torch.float64, torch.float32):
            generator = torch.Generator().manual_seed(seed)
            case = original.to(dtype, device)
            # Points that both dtypes hold exactly.
            x = case.x(generator, rows).float().to(device, dtype)
            context = case.context(generator, rows)
            context = None if context is None else context.float().to(device, dtype)
            noise = _as_dtype(case.noise(x.to(torch.float32), generator), dtype)
            with torch.no_grad():
                z, ladj = case.forward(x, context, noise)
                back, ladj_back = case.transform.inverse(z, context)
            outputs = (z, ladj, back, ladj_back)
            for name, value in zip(("z", "ladj", "x", "ladj of inverse"), outputs, strict=True):
                if value.dtype != dtype or value.device != x.device:
                    raise AssertionError(
                        f"{case.name}: {name} is {value.dtype} on {value.device}; expected "
                        f"{dtype} on {x.device}, as the input."
                    )
            reference = reference or outputs
            names = ("z", "ladj", "x") if case.bijective else ("z", "ladj")
            for name, value, exact in zip(names, outputs, reference, strict=False):
                _close(case, f"{name} in {dtype}", value.double(), exact.double(), tolerance)


def _as_dtype(noise: Any, dtype: torch.dtype) -> Any:
    if isinstance(noise, Tensor):
        return noise.to(dtype) if noise.is_floating_point() else noise
    if isinstance(noise, tuple):
        parts = [_as_dtype(part, dtype) for part in noise]
        return type(noise)(*parts) if hasattr(noise, "_fields") else tuple(parts)
    return noise


# --- certificate ------------------------------------------------------------------------


def check_certificate(
    case: Case, *, rows: int = 2, pairs: int = 24, slack: float = 1e-9, seed: int = 0
) -> None:
    """Check proved bounds by brute force: those of each branch g, of f and of its inverse.

    Singular values of dense Jacobians at 1 and 3 sigma may not exceed the bound, and no pair
    of points, near or far, may be stretched by more. Both dtypes of weights are certified.

    Args:
        case: one of whose blocks some bound is claimed.
        rows: points at which Jacobians are built, a scale.
        pairs: random pairs, a scale.
        slack: relative excess that rounding may cause.
        seed: of the points.

    Raises:
        AssertionError: something exceeds what was proved, or a branch is not certified.
    """
    for dtype in (torch.float32, torch.float64):
        copied = case.to(dtype)
        certificate = certify(copied.transform)
        _require(case, "some claimed bound", _claims(certificate))
        if not certificate.certified:
            raise AssertionError(
                f"{case.name}: {dtype} weights are not certified; expected every L < 1:\n"
                f"{certificate}"
            )
        # The weights of this dtype as the network uses them, examined in float64.
        generator = torch.Generator().manual_seed(seed)
        for part in copied.transform.modules():
            if isinstance(part, ResidualBlock):
                _check_branch(case, part, generator, rows, pairs, slack, dtype)
    copied, generator = _prepared(case, seed)
    _check_flow_bounds(copied, certify(copied.transform), generator, rows, pairs, slack)


def _claims(certificate: Certificate) -> bool:
    return any(
        bound is not None
        for block in certificate.blocks
        for bound in (block.lipschitz, block.forward, block.inverse)
    )


def _check_branch(
    case: Case,
    block: ResidualBlock,
    generator: torch.Generator,
    rows: int,
    pairs: int,
    slack: float,
    dtype: torch.dtype,
) -> None:
    (certificate,) = block.certificates("")
    bound = certificate.lipschitz
    assert bound is not None
    asked = block.branch.lipschitz
    if not bound <= asked:
        raise AssertionError(
            f"{case.name}: the certified bound of g is {bound:.8f} with {dtype} weights; expected "
            f"at most the {asked} that was asked for."
        )
    if dtype == torch.float32:
        slack = max(slack, 1e-4)  # dense Jacobians are then computed in float32
    features = getattr(block.branch, "context", 0)
    for scale in (1.0, 3.0):
        shape = (rows, *block.branch.event_shape)
        x = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        context = None
        if features:
            context = torch.randn(rows, features, generator=generator, dtype=torch.float64)
            context = context.to(dtype)
        with torch.no_grad():
            prepared = block.branch.prepare(context)
            if prepared.lipschitz != asked:
                raise AssertionError(
                    f"{case.name}: prepare promises L={prepared.lipschitz}; expected {asked}."
                )
            matrices = linearize(prepared, x, block.event_dim)[1].dense()
            # One context for both ends of a pair: the bound is one in x.
            single = None if context is None else context[:1].expand(pairs, features)
            branch = block.branch.prepare(single)
            a, b = _pairs((pairs, *block.branch.event_shape), scale, generator)
            a, b = a.to(dtype), b.to(dtype)
            stretch = _stretch(branch(a), branch(b), a, b)
        top = torch.linalg.svdvals(matrices.double()).max().item()
        _at_most(case, f"largest singular value of dg/dx, {dtype}", top, bound, slack)
        if dtype == torch.float64:
            _at_most(case, "stretch of a pair by g", stretch, bound, slack)


def _check_flow_bounds(
    case: Case,
    certificate: Certificate,
    generator: torch.Generator,
    rows: int,
    pairs: int,
    slack: float,
) -> None:
    forward, inverse = certificate.lipschitz_forward, certificate.lipschitz_inverse
    if forward is None and inverse is None:
        return
    for scale in (1.0, 3.0):
        x, context = case.x(generator, rows, scale), case.context(generator, rows)
        noise = case.noise(x, generator)
        values = torch.linalg.svdvals(_dense_jacobian(case, x, context, noise))
        a, b = case.x(generator, pairs, scale), case.x(generator, pairs, scale)
        near = torch.arange(pairs) % 2 == 0
        b = _where(near, a + 1e-3 * (b - a), b)  # inside a convex domain if a and b are
        given = None if context is None else context[:1].expand(pairs, *context.shape[1:])
        drawn = case.noise(a, generator)  # the same for both ends: the bound is one in x
        with torch.no_grad():
            za = case.forward(a, given, drawn)[0]
            zb = case.forward(b, given, drawn)[0]
        if forward is not None:
            top = values.max().item()
            _at_most(case, "largest singular value of df/dx", top, forward, slack)
            _at_most(case, "stretch of a pair by f", _stretch(za, zb, a, b), forward, slack)
        if inverse is not None:
            top = 1 / values.min().item()
            _at_most(case, "largest singular value of df^-1/dz", top, inverse, slack)
            _at_most(case, "stretch of a pair by f^-1", _stretch(a, b, za, zb), inverse, slack)


def _pairs(shape: Sequence[int], scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two batches of points, every other pair a thousand times closer."""
    size = tuple(shape)
    a, step = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    step[::2] *= 1e-3
    return scale * a, scale * (a + step)


def _stretch(fa: Tensor, fb: Tensor, a: Tensor, b: Tensor) -> float:
    moved = (fa - fb).flatten(1).norm(dim=1)
    distance = (a - b).flatten(1).norm(dim=1)
    return (moved / distance)[distance > 0].max().item()


def _at_most(case: Case, what: str, got: float, bound: float, slack: float) -> None:
    if not got <= bound * (1 + slack):
        raise AssertionError(
            f"{case.name}: {what} is {got:.8f}; expected at most the certified {bound:.8f}."
        )


# --- save and load ----------------------------------------------------------------------


def check_save_load(case: Case, *, rows: int = 4, seed: int = 0) -> None:
    """Check that what is loaded has equal type and configuration, and bit-equal outputs.

    A transform is rebuilt from its configuration, as JSON, and its ``state_dict``; whatever
    is or makes a ``Flow`` also passes through a file.

    Args:
        case: one whose types are registered.
        rows: points.
        seed: of points and noise.

    Raises:
        AssertionError: type, configuration, tensors or outputs differ.
    """
    case = case.to(torch.float32)
    description = registry.configuration(case.module)
    rebuilt = registry.build(json.loads(json.dumps(description)))
    # assign, as loading does: dtypes are those of the file
    found = rebuilt.load_state_dict(case.module.state_dict(), strict=False, assign=True)
    if found.missing_keys or found.unexpected_keys:
        raise AssertionError(
            f"{case.name}: rebuilt from its configuration it misses {found.missing_keys} and does "
            f"not know {found.unexpected_keys}; expected the same tensors."
        )
    _check_twin(case, rebuilt, rows, seed)
    flow = _flow_of(case)
    if flow is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        flow.save(path)
        loaded = load(path)
    if type(loaded) is not type(flow):
        raise AssertionError(
            f"{case.name}: loaded a {type(loaded).__name__}; expected a {type(flow).__name__}."
        )
    _same_tensors(case, loaded, flow)
    twin: Flow | Transform = loaded
    if not isinstance(case.module, Flow):
        inner = loaded.transform
        twin = (
            inner[0]
            if flow.transform is not case.module and isinstance(inner, Sequential)
            else inner
        )
    _check_twin(case, twin, rows, seed)


def _check_twin(case: Case, twin: Flow | Transform, rows: int, seed: int) -> None:
    if type(twin) is not type(case.module):
        raise AssertionError(
            f"{case.name}: got a {type(twin).__name__}; expected a {type(case.module).__name__}."
        )
    got, expected = registry.configuration(twin), registry.configuration(case.module)
    if got != expected:
        raise AssertionError(f"{case.name}: configuration is {got}; expected {expected}.")
    _same_tensors(case, twin, case.module)
    generator = torch.Generator().manual_seed(seed)
    twin.train(case.module.training)
    other = Case(twin, case.event_shape, dtype=case.dtype)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)
    with torch.no_grad():
        outputs = case.forward(x, context, noise)
        again = other.forward(x, context, noise)
    _equal(case, "z after loading", again[0], outputs[0])
    _equal(case, "ladj after loading", again[1], outputs[1])


def _same_tensors(case: Case, twin: nn.Module, original: nn.Module) -> None:
    tensors, expected = twin.state_dict(), original.state_dict()
    for name, value in expected.items():
        if name not in tensors or not _same_bits(tensors[name], value):
            raise AssertionError(
                f"{case.name}: {name!r} is {_shown(tensors.get(name))} after loading; expected "
                f"{_shown(value)}, bit for bit."
            )


def _flow_of(case: Case) -> Flow | None:
    """Return the case as a flow; None where its context is no vector."""
    if isinstance(case.module, Flow):
        return case.module
    if len(case.context_shape) > 1:
        return None
    features = case.context_shape[0] if case.context_shape else 0
    latent = case.module.latent_shape(case.event_shape)
    transform: Transform = case.module
    if len(latent) != 1:
        transform = Sequential(transform, Reshape(latent, (math.prod(latent),)))
    flow = Flow(transform, event_shape=case.event_shape, context=features)
    return flow.train(case.module.training)


# --- density ----------------------------------------------------------------------------


def check_density(
    case: Case, *, points: int = 300, tolerance: float = 1e-6, contexts: int = 2, seed: int = 0
) -> None:
    """Check that ``exp(log_prob)`` integrates to 1, by the trapezoidal rule in 1-D or 2-D.

    The grid covers the points whose latent image lies within 8 standard deviations, of which
    the base leaves out less than 1e-14.

    Args:
        case: a bijection of vectors with D <= 2 and an exact ladj; one that is not
            ``normalised`` is only asked not to exceed 1.
        points: grid points an axis in 2-D; ten times as many in 1-D.
        tolerance: largest |integral - 1|.
        contexts: how many contexts are tried, where there is one.
        seed: of the contexts.

    Raises:
        AssertionError: the integral is off.
    """
    fits = len(case.event_shape) == 1 and case.size <= 2 and case.bijective and case.exact_ladj
    _require(case, "a bijection of 1 or 2 features with an exact ladj", fits)
    case, generator = _prepared(case, seed)
    flow = _flow_of(case)
    assert flow is not None
    for _ in range(contexts if case.context_shape else 1):
        context = case.context(generator, 1)
        with torch.no_grad():
            axes = _axes(case, context, points if case.size == 2 else 10 * points)
            grid = torch.cartesian_prod(*axes).reshape(-1, case.size)
            density = flow.log_prob(grid, context).exp().reshape([len(axis) for axis in axes])
        integral = density
        for axis in reversed(axes):
            integral = torch.trapezoid(integral, axis)
        got = integral.item()
        if (
            not math.isfinite(got)
            or got > 1 + tolerance
            or (case.normalised and got < 1 - tolerance)
        ):
            expected = "1" if case.normalised else "at most 1"
            raise AssertionError(
                f"{case.name}: the density integrates to {got:.8f} on a grid of "
                f"{density.numel()} points; expected {expected} within {tolerance:g}."
            )


def _axes(case: Case, context: Tensor | None, points: int) -> list[Tensor]:
    """Return one grid an axis that covers the inverse image of [-8, 8]^D."""
    domain = case.transform.domain
    if domain.unbounded:
        edge = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)
        latent = torch.cartesian_prod(*[edge] * case.size).reshape(-1, case.size)
        given = None if context is None else context.expand(len(latent), -1)
        image = case.transform.inverse(latent, given)[0]
        low, high = image.min(0).values, image.max(0).values
    else:
        low = torch.full((case.size,), domain.low, dtype=torch.float64)
        high = torch.full((case.size,), domain.high, dtype=torch.float64)
    return [
        torch.linspace(a, b, points + 1, dtype=torch.float64)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    ]


# --- compilation ------------------------------------------------------------------------


def check_compiled(
    case: Case,
    *,
    backend: str = "aot_eager",
    rows: int = 3,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> None:
    """Check that ``torch.compile(fullgraph=True)`` gives eager's values and gradients.

    A flow's ``log_prob`` is compiled, or a transform's ``forward``.

    Args:
        case: one whose ``forward`` does not iterate.
        backend: "inductor" generates code; "aot_eager" only traces forward and backward, in
            a fifth of the time.
        rows: points.
        tolerance: largest error, relative to ``1 + max |expected|``.
        seed: of points and noise, which is drawn outside and passed in.

    Raises:
        AssertionError: values or gradients differ, or there is no single graph.
    """
    _require(case, "a forward that does not iterate", not case.iterative)
    case, generator = _prepared(case, seed)
    x, context = case.x(generator, rows), case.context(generator, rows)
    noise = case.noise(x, generator)

    def outputs(x: Tensor, context: Tensor | None, noise: Any) -> tuple[Tensor, ...]:
        if isinstance(case.module, Flow):
            return (case.module.log_prob(x, context, noise=noise),)
        return case.forward(x, context, noise)

    expected = _values_and_gradients(case, outputs, x, context, noise)
    torch.compiler.reset()
    compiled = torch.compile(outputs, fullgraph=True, backend=backend)
    try:
        with warnings.catch_warnings():
            for text in _COMPILER_WARNINGS:
                warnings.filterwarnings("ignore", text)
            got = _values_and_gradients(case, compiled, x, context, noise)
    except TorchDynamoException as error:
        raise AssertionError(
            f"{case.name}: got no single graph; expected torch.compile(fullgraph=True) to take "
            f"the noise from outside and trace everything. {error}"
        ) from error
    finally:
        torch.compiler.reset()
    for name, value in expected.items():
        _close(case, f"{name} compiled by {backend}", got[name], value, tolerance)


# What torch 2.13's compiler says of its own insides.
_COMPILER_WARNINGS = (
    ".*should not be instantiated",  # any autograd.Function
    ".*_prims_common.check. is deprecated",
    ".*torch.jit.script_method. is deprecated",
    ".*does not support code generation for complex operators",  # it calls eager's FFT instead
)


def _values_and_gradients(
    case: Case,
    function: Callable[[Tensor, Tensor | None, Any], tuple[Tensor, ...]],
    x: Tensor,
    context: Tensor | None,
    noise: Any,
) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    inputs = {"x": x, **dict(case.transform.named_parameters())}
    if context is not None:
        context = inputs["context"] = context.clone().requires_grad_()
    values = function(x, context, noise)
    loss = torch.zeros((), dtype=x.dtype)
    for value in values:  # an uneven cotangent for every entry
        loss = loss + (value * torch.linspace(1, 2, value.numel()).reshape(value.shape)).sum()
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    results = {f"output {i}": value.detach() for i, value in enumerate(values)}
    for (name, value), gradient in zip(inputs.items(), found, strict=True):
        gradient = torch.zeros_like(value) if gradient is None else gradient
        results[f"gradient in {name}"] = gradient
    return results


# --- which checks a case calls for ------------------------------------------------------

INVARIANTS: dict[str, Callable[[Case], None]] = {
    "round_trip": check_round_trip,
    "log_abs_det": check_log_abs_det,
    "gradients": check_gradients,
    "weighted_gradients": check_weighted_gradients,
    "purity": check_purity,
    "rows": check_rows,
    "placement": check_placement,
    "certificate": check_certificate,
    "save_load": check_save_load,
    "density": check_density,
    "compiled": check_compiled,
}


def invariants_of(case: Case) -> Iterator[str]:
    """Yield the names of the checks that a case's abilities call for.

    Example:
        >>> from contraflow.transforms import UniformDequantise
        >>> case = Case(UniformDequantise(7), event_shape=(2,), bijective=False)
        >>> "round_trip" in set(invariants_of(case)), "density" in set(invariants_of(case))
        (True, False)
    """
    small = len(case.event_shape) == 1 and case.size <= 2
    needs = {
        "log_abs_det": case.bijective and case.exact_ladj,
        "gradients": case.exact_ladj,
        "certificate": _claims(certify(case.transform)),
        "density": small and case.bijective and case.exact_ladj,
        "compiled": not case.iterative,
    }
    for name in INVARIANTS:
        if needs.get(name, True):
            yield name


# --- helpers ----------------------------------------------------------------------------


def _prepared(case: Case, seed: int) -> tuple[Case, torch.Generator]:
    return case.to(torch.float64), torch.Generator().manual_seed(seed)


def _require(case: Case, what: str, holds: bool) -> None:
    if not holds:
        raise ConfigurationError(
            f"{case.name}: this check needs {what}; the case does not declare it. "
            "invariants_of(case) lists the checks that apply."
        )


def _close(case: Case, what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    if got.shape != expected.shape:
        raise AssertionError(
            f"{case.name}: {what} has shape {tuple(got.shape)}; expected {tuple(expected.shape)}."
        )
    if got.numel() == 0:
        return
    error = (got - expected).abs()
    allowed = tolerance * (1 + expected.abs().max().item())
    worst = error.max().item()
    if not worst <= allowed:  # NaN fails too
        place = int(error.flatten().nan_to_num(math.inf).argmax())
        raise AssertionError(
            f"{case.name}: {what} is {got.flatten()[place].item():.10g}; expected "
            f"{expected.flatten()[place].item():.10g} (error {worst:.1e}, allowed {allowed:.1e})."
        )


def _equal(case: Case, what: str, got: Tensor, expected: Tensor) -> None:
    if not _same_bits(got, expected):
        raise AssertionError(
            f"{case.name}: {what} is {_shown(got)}; expected {_shown(expected)}, bit for bit."
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _shown(value: Tensor | None) -> str:
    if value is None:
        return "missing"
    numbers = value.flatten()[:4].tolist()
    return f"{numbers}{'...' if value.numel() > 4 else ''} ({value.dtype}, {tuple(value.shape)})"
