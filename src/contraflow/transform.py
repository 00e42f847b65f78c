"""Bijections between data and latent space: the contract that every flow is built from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from contraflow.domain import Domain, ProductDomain
from contraflow.errors import ShapeError
from contraflow.kinds import Likelihood
from contraflow.lipschitz import BoundedLayer, TakesNorms, norm_bounds
from contraflow.registry import register
from contraflow.solvers import Solution


@dataclass(frozen=True)
class BlockCertificate:
    """What is proved of one transform.

    Args:
        name: its place in the flow.
        lipschitz: proved bound L of its contractive branch; None for a closed form, and where
            nothing is proved.
        method: how L was proved, or "closed form".
        forward: bound of Lip(f), l2 norm; None where none is known.
        inverse: bound of Lip(f^-1); None where none is known.
        contractive: whether invertibility rests on ``lipschitz`` being below 1.
        estimate: what L is guessed to be where it is not proved; it certifies nothing.
        tolerance: largest residual |z - f(x)| that the solver of the inverse accepts, l2, in
            the units of z; 0 where the inverse is a formula, None where nothing is known.
        residual_gain: how far the data move, l2 in data units, for a residual of norm 1 in
            this block; ``certify`` fills it in, None where no bound is known.
        rounding_gain: how far the data move when values of norm 1 on either side of this
            block are rounded in the flow's dtype; likewise.
    """

    name: str
    lipschitz: float | None = None
    method: str = "closed form"
    forward: float | None = None
    inverse: float | None = None
    contractive: bool = False
    estimate: float | None = None
    tolerance: float | None = 0.0
    residual_gain: float | None = None
    rounding_gain: float | None = None

    @property
    def fails(self) -> bool:
        """Tell whether the block needs a bound below 1 and has none."""
        return self.contractive and not (self.lipschitz is not None and 0 <= self.lipschitz < 1)


class Transform(TakesNorms, nn.Module):
    """A bijection f from data x to latent z.

    A subclass implements ``forward`` and ``inverse`` and sets ``event_dim``; everything else
    has a default. Shapes: x is ``[*B, *E]`` with E the last ``event_dim`` dimensions; ladj is
    ``[*B]``, ln|det dz/dx| in nats from ``forward`` and its negative from ``inverse``.

    Attributes:
        event_dim: dimensions of an event of x.
        closed_form: whether ``inverse`` inverts ``forward`` by its formula; a transform that
            does not say so, and gives no certificate of its own, leaves a flow uncertified.
        stochastic: whether ``forward`` and ``inverse`` take ``noise`` from ``draw``.
        takes_norms: whether every pass takes ``norms``, a bound of the raw norm of each of
            ``bounded_layers`` in their order, so that a chain bounds all its norms together.
    """

    event_dim: int = 1
    closed_form: bool = False
    stochastic: bool = False

    def __init__(self) -> None:
        # Without arguments of its own: nn.Module's *args would be taken for a configuration.
        super().__init__()

    @property
    def latent_event_dim(self) -> int:
        """Return the dimensions of an event of z."""
        return self.event_dim

    @property
    def domain(self) -> Domain | ProductDomain:
        """Return the set that each coordinate of x must lie in."""
        return Domain()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent: ``(z, ladj)``."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data: ``(x, ladj)``, ladj = ln|det dx/dz|.

        Raises:
            ConvergenceError: an iterative inverse missed its tolerance.
        """
        raise NotImplementedError(f"{type(self).__name__}.inverse")

    def solve_inverse(self, z: Tensor, context: Tensor | None = None) -> Solution:
        """Map latent to data and tell how exact the answer is; never raises on a bad row."""
        batch = z.shape[: z.ndim - self.latent_event_dim]
        return Solution.closed_form(self.inverse(z, context)[0], batch)

    def invert(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map latent to data, checked, without ladj: what sampling needs.

        Raises:
            ConvergenceError: an iterative inverse missed its tolerance.
        """
        return self.solve_inverse(z, context).check(type(self).__name__).value

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the layers whose norms the passes take; the default takes none."""
        return []

    def draw(
        self, shape: torch.Size, like: Tensor, generator: torch.Generator | None = None
    ) -> Any:
        """Draw the noise for a flat batch ``[B, *E]``; None where nothing is random."""
        return None

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the event shape of z for the event shape of x.

        Raises:
            ShapeError: x cannot have this shape.
        """
        return torch.Size(shape)

    def _check_dims(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape; raise if an event of x has not ``event_dim`` dimensions."""
        if len(shape) != self.event_dim:
            raise ShapeError(
                f"{type(self).__name__}: got events {tuple(shape)}; expected event_dim="
                f"{self.event_dim} dimensions."
            )
        return torch.Size(shape)

    def _check_vector(self, shape: Sequence[int], features: int) -> torch.Size:
        """Return ``(features,)``; raise if an event of x has another shape."""
        if tuple(shape) != (features,):
            raise ShapeError(
                f"{type(self).__name__}: got events {tuple(shape)}; expected {(features,)}."
            )
        return torch.Size(shape)

    def likelihood(self, shape: Sequence[int]) -> Likelihood:
        """Tell how exact ladj is in the current mode, for an event shape."""
        return Likelihood()

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return what is proved of this transform, in forward order."""
        if self.closed_form:
            return [BlockCertificate(name)]
        return [BlockCertificate(name, method="nothing stated", contractive=True, tolerance=None)]

    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set data-dependent parameters from a batch; the default has none."""

    def enforce_bounds_(self) -> None:
        """Rescale the weights so that the certificate holds; the default has no bound."""

    def check_state(self) -> None:
        """Refuse loaded tensors for which the map would be no bijection; the default has none.

        Raises:
            SupportError: a buffer holds what this class never writes there.
        """


@register
class Sequential(Transform):
    """Apply transforms one after the other, in data-to-latent order.

    Args:
        transforms: any number of transforms, each taking what the previous one returns.

    Example:
        >>> from contraflow.transforms import Standardise
        >>> chain = Sequential(Standardise(2), Standardise(2))
        >>> len(chain), type(chain[:1]).__name__
        (2, 'Sequential')
    """

    takes_norms = True

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self._parts = nn.ModuleList(transforms)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Return the transforms, in forward order."""
        return tuple(self)

    def __iter__(self) -> Iterator[Transform]:
        """Iterate in forward order."""
        for part in self._parts:
            assert isinstance(part, Transform)
            yield part

    def __len__(self) -> int:
        """Return the number of transforms."""
        return len(self._parts)

    def __getitem__(self, index: int | slice) -> Transform:
        """Return one transform, or a part of the chain that shares its parameters."""
        parts = self.transforms[index]
        return parts if isinstance(parts, Transform) else Sequential(*parts)

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Tell whether any part is stochastic."""
        return any(part.stochastic for part in self)

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the first part's event_dim."""
        return self.transforms[0].event_dim if len(self) else 1

    @property
    def latent_event_dim(self) -> int:
        """Return the last part's latent_event_dim."""
        return self.transforms[-1].latent_event_dim if len(self) else 1

    @property
    def domain(self) -> Domain | ProductDomain:
        """Return the first part's domain."""
        return self.transforms[0].domain if len(self) else Domain()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map data to latent.

        Args:
            x: ``[*B, *E]``.
            context: ``[*B, M]``.
            noise: one value for each part (see ``draw``).
            norms: bounds for ``bounded_layers``; None to bound them here, all together.
        """
        ladj = x.new_zeros(x.shape[: x.ndim - self.event_dim])
        for part, drawn, own in self._with_values(noise, norms):
            x, part_ladj = apply_forward(part, x, context, drawn, own)
            ladj = ladj + part_ladj
        return x, ladj

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the bounded layers of every part, in forward order."""
        return [layer for part in self if part.takes_norms for layer in part.bounded_layers()]

    def _with_values(
        self, noise: Any, norms: Sequence[Tensor] | None
    ) -> list[tuple[Transform, Any, Sequence[Tensor]]]:
        """Return each part with its own noise and norms."""
        drawn = (None,) * len(self) if noise is None else noise
        shared = self._with_norms(norms)
        return [(part, value, own) for (part, own), value in zip(shared, drawn, strict=True)]

    def _with_norms(
        self, norms: Sequence[Tensor] | None
    ) -> list[tuple[Transform, Sequence[Tensor]]]:
        if norms is None:
            norms = norm_bounds(self.bounded_layers())
        shared, start = [], 0
        for part in self:
            end = start + (len(part.bounded_layers()) if part.takes_norms else 0)
            shared.append((part, norms[start:end]))
            start = end
        return shared

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map latent to data, last transform first; ``noise`` and ``norms`` as in ``forward``."""
        ladj = z.new_zeros(z.shape[: z.ndim - self.latent_event_dim])
        for part, drawn, own in reversed(self._with_values(noise, norms)):
            z, part_ladj = apply_inverse(part, z, context, drawn, own)
            ladj = ladj + part_ladj
        return z, ladj

    def intermediates(
        self, x: Tensor, context: Tensor | None = None, *, noise: Any = None
    ) -> list[Tensor]:
        """Return the output of every part; the last one is z."""
        outputs = []
        for part, drawn, own in self._with_values(noise, None):
            x, _ = apply_forward(part, x, context, drawn, own)
            outputs.append(x)
        return outputs

    def solve_inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Solution:
        """Invert part by part; error bounds of later parts grow by Lip(f_j^-1) of earlier ones.

        The total is ``sum_i e_i prod_{j<i} Lip(f_j^-1)``, infinite where an earlier part has
        no known bound.
        """
        solution = Solution.closed_form(z, z.shape[: z.ndim - self.latent_event_dim])
        for part, own in reversed(self._with_norms(norms)):
            step = part.solve_inverse(solution.value, context, **norms_for(part, own))
            carried = solution.then(step.value, self._stretch(part, solution.error_bound))
            solution = solution.join(step, carried.error_bound)
        return solution

    def invert(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Invert part by part, each checked."""
        for part, own in reversed(self._with_norms(norms)):
            z = part.invert(z, context, **norms_for(part, own))
        return z

    @staticmethod
    def _stretch(part: Transform, error_bound: Tensor) -> float | None:
        if not bool((error_bound > 0).any()):
            return 0.0  # nothing to carry: spare the certificate
        stretch = 1.0
        for certificate in part.certificates(""):
            if certificate.inverse is None:
                return None
            stretch *= certificate.inverse
        return stretch

    def draw(
        self, shape: torch.Size, like: Tensor, generator: torch.Generator | None = None
    ) -> Any:
        """Draw the noise of every part for a flat batch ``[B, *E]``."""
        batch, event = shape[:1], shape[1:]
        noise = []
        for part in self:
            noise.append(part.draw(torch.Size(batch + event), like, generator))
            event = part.latent_shape(event)
        return tuple(noise) if any(item is not None for item in noise) else None

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the event shape of z."""
        for part in self:
            shape = part.latent_shape(shape)
        return torch.Size(shape)

    def likelihood(self, shape: Sequence[int]) -> Likelihood:
        """Compose the parts' likelihoods."""
        parts = []
        for part in self:
            parts.append(part.likelihood(shape))
            shape = part.latent_shape(shape)
        return Likelihood.compose(parts)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the parts' certificates, numbered in forward order."""
        prefix = f"{name}." if name else ""
        found = []
        for i, part in enumerate(self):
            found += part.certificates(f"{prefix}{i}.{type(part).__name__}")
        return found

    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Initialise every part from what the parts before it make of the batch."""
        with torch.no_grad():
            for part in self:
                part.initialise_from(x, context)
                x, _ = apply_forward(part, x, context, None)

    def enforce_bounds_(self) -> None:
        """Rescale every part so that its certificate holds."""
        for part in self:
            part.enforce_bounds_()


def apply_forward(
    part: Transform,
    x: Tensor,
    context: Tensor | None,
    noise: Any,
    norms: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Call ``part.forward``, handing noise and norms only to a part that declares to take them."""
    noises = {"noise": noise} if part.stochastic else {}
    return part(x, context, **noises, **norms_for(part, norms))


def apply_inverse(
    part: Transform,
    z: Tensor,
    context: Tensor | None,
    noise: Any,
    norms: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Call ``part.inverse``, handing noise and norms only to a part that declares to take them."""
    noises = {"noise": noise} if part.stochastic else {}
    return part.inverse(z, context, **noises, **norms_for(part, norms))


def norms_for(part: Transform, norms: Sequence[Tensor] | None) -> dict[str, Any]:
    """Return the keyword by which ``part`` takes norms; none where it does not declare it."""
    return {"norms": norms} if part.takes_norms and norms is not None else {}


@register
class Inverse(Transform):
    """The same bijection in the other direction: forward and inverse change places.

    Args:
        transform: a bijection between events of the same shape.

    Example:
        >>> from contraflow.transforms import Standardise
        >>> x = torch.randn(4, 2)
        >>> z, ladj = Inverse(Inverse(Standardise(2)))(x)
        >>> torch.equal(z, Standardise(2)(x)[0])
        True
    """

    takes_norms = True

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def bounded_layers(self) -> list[BoundedLayer]:
        """Return the inner transform's."""
        return self.transform.bounded_layers() if self.transform.takes_norms else []

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the inner transform's latent_event_dim."""
        return self.transform.latent_event_dim

    @property
    def latent_event_dim(self) -> int:
        """Return the inner transform's event_dim."""
        return self.transform.event_dim

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Tell whether the inner transform is stochastic."""
        return self.transform.stochastic

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the inner inverse."""
        return apply_inverse(self.transform, x, context, noise, norms)

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        noise: Any = None,
        norms: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the inner forward."""
        return apply_forward(self.transform, z, context, noise, norms)

    def solve_inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Solution:
        """Apply the inner forward, which is no iteration of ours."""
        if isinstance(self.transform, Inverse):  # twice exchanged is not at all
            inner = self.transform.transform
            return inner.solve_inverse(z, context, **norms_for(inner, norms))
        batch = z.shape[: z.ndim - self.latent_event_dim]
        return Solution.closed_form(self.inverse(z, context, norms=norms)[0], batch)

    def invert(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        norms: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Apply the inner forward, checked, without ladj."""
        return self.solve_inverse(z, context, norms=norms).check(type(self).__name__).value

    def draw(
        self, shape: torch.Size, like: Tensor, generator: torch.Generator | None = None
    ) -> Any:
        """Draw the inner transform's noise."""
        return self.transform.draw(shape, like, generator)

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the same shape.

        Raises:
            ShapeError: the inner transform changes the shape.
        """
        if self.transform.latent_shape(shape) != torch.Size(shape):
            raise ShapeError(
                f"Inverse({type(self.transform).__name__}) of events {tuple(shape)}: expected a "
                "transform that keeps the shape of an event."
            )
        return torch.Size(shape)

    def likelihood(self, shape: Sequence[int]) -> Likelihood:
        """Return the inner transform's likelihood."""
        return self.transform.likelihood(shape)

    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the inner certificates with the two directions exchanged."""
        if isinstance(self.transform, Inverse):
            return self.transform.transform.certificates(name)
        return [
            replace(c, forward=c.inverse, inverse=c.forward, tolerance=_tolerance_back(c))
            for c in reversed(self.transform.certificates(name))
        ]

    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Do nothing: inner statistics would belong to the other side."""

    def enforce_bounds_(self) -> None:
        """Rescale the inner transform."""
        self.transform.enforce_bounds_()


def _tolerance_back(block: BlockCertificate) -> float | None:
    """Return the tolerance of the other direction: id + g runs forward by its formula."""
    return 0.0 if block.contractive and block.tolerance else block.tolerance
