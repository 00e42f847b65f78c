"""Does the latent vector of held-out data look like the base: probability integral transforms."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contraflow.distributions import StandardNormal
from contraflow.errors import ConfigurationError, DataError, SupportError
from contraflow.flow import Flow
from contraflow.logdet import PowerSeries
from contraflow.transform import apply_forward

_LEAST_ROWS = 8  # below it, Stephens' correction is no longer good
_CHUNK = 512


@dataclass(frozen=True, eq=False)
class Calibration:
    """Probability integral transforms of rows, and how far they are from uniform.

    Args:
        u: ``[N, D+1]`` in [0, 1], float64: the normal distribution function of each latent
            coordinate, and last of the radius, the chi-square distribution function of
            ``|z|^2``. Independent uniform draws in each column if the flow is the truth.
        distance: ``[D+1]``, Kolmogorov-Smirnov distance of each column from uniform.
        p_value: ``[D+1]``, chance of a distance this large under the truth, one column alone.
        level: chance that the truth leaves the band in any column.
        band: half-width of the band around 0 that ``distance`` stays in with probability
            ``1 - level`` or more, in all columns together (Bonferroni).
    """

    u: Tensor
    distance: Tensor
    p_value: Tensor
    level: float
    band: float

    @property
    def worst(self) -> int:
        """Return the latent coordinate, 0 ... D-1, that is farthest from uniform."""
        return int(self.distance[:-1].argmax())

    @property
    def outside(self) -> float:
        """Return the share of the D+1 columns that leave the band."""
        return (self.distance > self.band).double().mean().item()

    @property
    def rejected(self) -> bool:
        """Tell whether a column leaves the band: the truth does so with chance ``level``."""
        return bool((self.distance > self.band).any())

    @property
    def radial_spread(self) -> str:
        """Return what the radial curve says of the flow beside the rows, "" inside the band.

        ``narrow``: rows lie farther out than the base; ``wide``: closer to the centre; ``light
        tails``: rows lie too often far out and too often near the centre; ``heavy tails``: too
        rarely in both places.
        """
        ordered = self.u[:, -1].sort().values
        excess = torch.arange(1, len(ordered) + 1).to(ordered) / len(ordered) - ordered
        high, low = excess.max().item(), -excess.min().item()
        if self.distance[-1] <= self.band:
            return ""
        if min(high, low) > max(high, low) / 2:  # a wrong width alone stays on one side
            return "light tails" if excess.argmax() < excess.argmin() else "heavy tails"
        return "wide" if high > low else "narrow"


@torch.no_grad()
def calibrate(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    level: float = 0.01,
    generator: torch.Generator | None = None,
) -> Calibration:
    """Compare ``z = f(x | context)`` of held-out rows with the standard normal base.

    If the flow is the density that the rows were drawn from, the coordinates of z are
    independent standard normals: ``Phi(z_i)`` and the chi-square distribution function of
    ``|z|^2`` are uniform. The converse does not hold: a wrong flow may pass, because
    dependence between coordinates shows in the radius alone.

    Args:
        flow: a flow over a standard normal base.
        x: ``[N, *E]``, rows that the flow was not fitted to.
        context: ``[N, M]``.
        level: chance that the truth is rejected.
        generator: source of the noise; integer data are dequantised once.

    Raises:
        ConfigurationError: the base is not a standard normal, or the level no probability.
        DataError: there are fewer than 8 rows.
        SupportError: a row lies outside the support, or its z is not finite.

    Example:
        >>> from contraflow.transforms import Standardise
        >>> flow = Flow(Standardise(1), event_shape=(1,))
        >>> middles = (torch.arange(100.0) + 0.5) / 100  # the most uniform sample there is
        >>> result = calibrate(flow, torch.special.ndtri(middles)[:, None])
        >>> f"{result.distance[0]:.4f}", bool(result.distance[0] < result.band)
        ('0.0050', True)

    Reference:
        Rosenblatt 1952, doi:10.1214/aoms/1177729394 (z-space); Dawid 1984,
        doi:10.2307/2981683; Diebold et al. 1998, doi:10.2307/2527342.
    """
    if not isinstance(flow.base, StandardNormal):
        raise ConfigurationError(
            f"calibrate: the base is {type(flow.base).__name__}; expected StandardNormal, whose "
            "coordinates and radius have known distributions."
        )
    if not 0 < level < 1:
        raise ConfigurationError(f"calibrate: level={level}; expected a probability above 0.")
    if len(x) < _LEAST_ROWS:
        raise DataError(f"calibrate: got {len(x)} rows; expected {_LEAST_ROWS} or more.")
    z = _latent(flow, x, context, generator).double()  # [N, D]
    size = z.shape[1]
    radial = torch.special.gammainc(torch.full((), size / 2).to(z), z.square().sum(1) / 2)
    u = torch.cat([torch.special.ndtr(z), radial[:, None]], 1)  # [N, D+1]
    distance = ks_distance(u)
    stretch = _stephens(len(u))
    return Calibration(
        u=u,
        distance=distance,
        p_value=kolmogorov_tail(distance * stretch),
        level=level,
        band=kolmogorov_quantile(level / (size + 1)) / stretch,
    )


def _latent(
    flow: Flow, x: Tensor, context: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    # z does not depend on the log-determinant, so the cheapest strategy will do.
    cheap = flow.using(log_det=PowerSeries(terms=1))
    flat, given, _ = cheap._flatten(x, context)
    inside = flow.transform.domain.contains(flat, len(flow.event_shape))
    inside = inside & flat.flatten(1).isfinite().all(1)
    _refuse(~inside, "lie outside the support or are not finite")
    outputs = []
    for start in range(0, len(flat), _CHUNK):
        rows = flat[start : start + _CHUNK]
        noise = cheap.draw_noise(len(rows), generator)
        context = None if given is None else given[start : start + _CHUNK]
        outputs.append(apply_forward(cheap.transform, rows, context, noise)[0])
    z = torch.cat(outputs)
    _refuse(~z.isfinite().all(1), "have a latent vector that is not finite")
    return z


def _refuse(bad: Tensor, what: str) -> None:
    if bool(bad.any()):
        raise SupportError(
            f"calibrate: {int(bad.sum())} of {len(bad)} rows {what} (first: row "
            f"{int(bad.nonzero()[0])}); expected finite values inside the support."
        )


def ks_distance(u: Tensor) -> Tensor:
    """Return the Kolmogorov-Smirnov distance of each column of ``[N, K]`` from uniform, ``[K]``.

    Example:
        >>> ks_distance(torch.tensor([[0.25], [0.75]])).tolist()  # steps of 1/2 around u
        [0.25]
    """
    ordered = u.sort(0).values
    steps = torch.arange(len(u) + 1, dtype=u.dtype, device=u.device)[:, None] / len(u)
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(0)


def _stephens(rows: int) -> float:
    """Return what makes N rows' distance follow the limit law.

    Reference:
        Stephens 1970, doi:10.1111/j.2517-6161.1970.tb00821.x.
    """
    return math.sqrt(rows) + 0.12 + 0.11 / math.sqrt(rows)


def kolmogorov_tail(t: Tensor) -> Tensor:
    """Return ``P(K > t) = 2 sum_k (-1)^{k-1} exp(-2 k^2 t^2)`` for the limit law K.

    Example:
        >>> f"{kolmogorov_tail(torch.tensor(1.3581, dtype=torch.float64)).item():.4f}"
        '0.0500'

    Reference:
        Kolmogorov 1933; Smirnov 1948, doi:10.1214/aoms/1177730256.
    """
    k = torch.arange(1, 101, dtype=t.dtype, device=t.device)
    terms = torch.exp(-2 * (k * t.unsqueeze(-1)) ** 2) * (1 - 2 * (k % 2 == 0).to(t))
    # Below 0.2 the tail is 1 up to 1e-12, and the series converges too slowly to say so.
    return torch.where(t < 0.2, 1.0, 2 * terms.sum(-1)).clamp(0, 1)


@functools.cache
def kolmogorov_quantile(level: float) -> float:
    """Return t with ``P(K > t) = level``, by bisection."""
    low, high = 0.2, math.sqrt(math.log(2 / level) / 2) + 1  # the first term bounds the tail
    for _ in range(60):
        middle = (low + high) / 2
        tail = kolmogorov_tail(torch.tensor(middle, dtype=torch.float64)).item()
        low, high = (middle, high) if tail > level else (low, middle)
    return high
