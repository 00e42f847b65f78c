"""The certificate of a flow: what is proved of every block, and of the whole.

For errors the argument is one telescoping sum. Let f = f_n o ... o f_1, and let the inverse be
computed with a residual in every block: x_i is the value between f_i and f_{i+1}, z = x_n, and
|x_i - f_i(x_{i-1})| <= r_i. Replacing the blocks' computed inverses by exact ones, one at a
time from the data's side, moves x_0 by at most |f_i^{-1}(x_i) - x_{i-1}| stretched through the
blocks before it:

    |x_0 - f^{-1}(z)| <= sum_i r_i Lip(f_i^{-1}) prod_{j<i} Lip(f_j^{-1}),

where Lip((id + g)^{-1}) <= 1 / (1 - L). That is no linearisation: it holds for residuals of
any size. The factor of r_i is the block's ``residual_gain``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from typing import Any

import torch

from contraflow.evaluation.round_trip import split_dequantisation
from contraflow.flow import Flow
from contraflow.transform import BlockCertificate, Transform


@dataclass(frozen=True)
class Certificate:
    """What is proved of a flow.

    All norms are l2 norms of one example. The data side ends behind the dequantisation of
    integers, whose inverse rounds.

    Args:
        certified: every contractive block has a proved bound L < 1.
        blocks: one entry a transform, in forward order.
        lipschitz_forward: bound of Lip(f); None where some transform has none.
        lipschitz_inverse: bound of Lip(f^-1); None likewise.
        dtype: the dtype of the weights that were examined.
        residual_error: worst error of x = f^-1(z), data units, that the residuals which the
            solvers accept can cause; None where no bound is known.
        rounding_gain: worst error of x that one unit in the last place can cause in every
            block, when all values have norm 1; None likewise.
        notes: why a bound is missing, or what does not fit.
    """

    certified: bool
    blocks: tuple[BlockCertificate, ...]
    lipschitz_forward: float | None
    lipschitz_inverse: float | None
    dtype: str
    residual_error: float | None = None
    rounding_gain: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """Return what is to be said of a flow that is not certified; None if it is."""
        if self.certified:
            return None
        failing = [_complaint(block) for block in self.blocks if block.fails]
        more = f" and {len(failing) - 4} more" if len(failing) > 4 else ""
        return (
            f"NOT certified: {', '.join(failing[:4])}{more}. Nothing proves that this flow has an "
            "inverse, nor that its likelihood is that of a density."
        )

    def error_bound(
        self,
        residual: float | Mapping[str, float] | None = None,
        *,
        scale: float = 0.0,
        ulps: float = 4.0,
    ) -> float | None:
        """Bound the error of a computed x = f^-1(z), l2, data units.

        Args:
            residual: norm of the residual |z_i - f_i(x_i)| left in every contractive block,
                or block name to norm, others 0; None for the largest that the solvers accept.
            scale: largest norm of any value between the blocks, which sets the rounding
                floor; 0 leaves rounding out.
            ulps: units in the last place that the arithmetic of one block loses. Storing a
                value loses half a unit; a block whose residual was checked in float64, as the
                inverse of a residual block is, loses one.

        Returns:
            The bound; None where some block has none.

        Raises:
            ValueError: a number below 0, or a name that no block has.

        Example:
            >>> import contraflow as cf
            >>> certificate = cf.certify(cf.flows.ResidualFlow(2, transforms=2))
            >>> certificate.error_bound(0.0)
            0.0
            >>> certificate.error_bound(1e-3) > 1e-3
            True
        """
        names = {block.name for block in self.blocks}
        given = residual if isinstance(residual, Mapping) else {}
        numbers = [scale, ulps, *given.values(), *([residual] if _is_number(residual) else [])]
        if unknown := sorted(given.keys() - names):
            raise ValueError(
                f"error_bound: no block {unknown[0]!r}; expected one of {sorted(names)}."
            )
        if not all(value >= 0 for value in numbers):
            raise ValueError(f"error_bound: got {numbers}; expected numbers from 0 on.")
        terms: list[float | None] = []
        for block in self.blocks:
            left = given.get(block.name, 0.0)
            if residual is None:
                left = block.tolerance
            elif not isinstance(residual, Mapping):
                left = float(residual) if block.contractive else 0.0
            terms.append(_times(left, block.residual_gain))
            terms.append(_times(scale * ulps, block.rounding_gain))
        return _sum(terms)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; null where no bound is known, never infinity."""
        kept = (
            "name", "lipschitz", "method", "forward", "inverse", "estimate", "tolerance",
            "residual_gain", "rounding_gain",
        )  # fmt: skip
        return {
            "certified": self.certified,
            "blocks": [{key: _finite(getattr(b, key)) for key in kept} for b in self.blocks],
            "lipschitz_forward": self.lipschitz_forward,
            "lipschitz_inverse": self.lipschitz_inverse,
            "dtype": self.dtype,
            "residual_error": self.residual_error,
            "rounding_gain": self.rounding_gain,
            "notes": list(self.notes),
            "warning": self.warning,
        }

    def __str__(self) -> str:
        """Return a table: blocks, verdict, bounds of the whole."""
        rows = [
            (
                block.name,
                "-" if block.lipschitz is None else _up(block.lipschitz),
                _or_dash(block.forward),
                _or_dash(block.inverse),
                _or_dash(block.residual_gain),
                block.method,
            )
            for block in self.blocks
        ]
        head = ("block", "L", "Lip(f)", "Lip(f^-1)", "gain", "method")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(5)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=False))
            )
            + f"  {row[5]}"
            for row in (head, *rows)
        ]
        lines.append("certified" if self.warning is None else self.warning)
        lines.append(
            f"Lip(f) <= {_shown(self.lipschitz_forward)}, "
            f"Lip(f^-1) <= {_shown(self.lipschitz_inverse)} ({self.dtype} weights)"
        )
        lines.append(
            f"error of x: gain * residual of a block; <= {_shown(self.residual_error)} at the "
            f"solvers' tolerances, <= {_shown(self.rounding_gain)} * (norm of the values) a unit "
            "in the last place"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@torch.no_grad()
def certify(flow: Flow | Transform) -> Certificate:
    """Prove what can be proved of a flow's weights, in float64, without changing anything.

    Args:
        flow: a flow or one transform.

    Returns:
        The certificate. Residual blocks are examined as they are used: with the weights
        that ``prepare`` returns in the flow's own dtype.

    Example:
        >>> import contraflow as cf
        >>> cf.certify(cf.flows.ResidualFlow(2, transforms=2)).certified
        True

    Reference:
        Behrmann et al. 2019, arXiv:1811.00995, Lemma 2; bounds of layers: ``lipschitz.norms``.
    """
    transform = flow.transform if isinstance(flow, Flow) else flow
    dtypes = {p.dtype for p in flow.parameters()} or {torch.get_default_dtype()}
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    notes: list[str] = []
    rounds = split_dequantisation(transform)[0] is not None
    device = next(flow.parameters(), torch.empty(0)).device.type
    with torch.autocast(device, enabled=False):
        proved = transform.certificates("")
    blocks = _with_gains(proved, eps, rounds, notes)
    forward = _total("lipschitz_forward", [block.forward for block in blocks], notes)
    inverse = _total("lipschitz_inverse", [block.inverse for block in blocks], notes)
    return Certificate(
        certified=not any(block.fails for block in blocks),
        blocks=blocks,
        lipschitz_forward=forward,
        lipschitz_inverse=inverse,
        dtype=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        residual_error=_sum([_times(b.tolerance, b.residual_gain) for b in blocks]),
        rounding_gain=_sum([b.rounding_gain for b in blocks]),
        notes=tuple(notes),
    )


def _with_gains(
    blocks: Iterable[BlockCertificate], eps: float, rounds: bool, notes: list[str]
) -> tuple[BlockCertificate, ...]:
    """Fill in how errors of each block reach the data; ``rounds``: the first block rounds."""
    found: list[BlockCertificate] = []
    before: float | None = 1.0  # prod_{j<i} Lip(f_j^{-1})
    for i, block in enumerate(blocks):
        if block.estimate is not None:
            notes.append(f"{block.name}: L is estimated at {block.estimate:.4g}, which no proof is")
        inverse = 1.0 if rounds and i == 0 else block.inverse
        gain = _times(before, inverse)
        if gain is None and before is not None and inverse is not None:
            notes.append(f"{block.name}: residual_gain exceeds the numbers of float64")
        # Values are rounded on both sides of the block: z_i has ``gain``, x_i has ``before``.
        worst = None if gain is None or before is None else max(gain, before)
        found.append(replace(block, residual_gain=gain, rounding_gain=_times(eps, worst)))
        if block.inverse is None and inverse is None and before is not None:
            notes.append(
                f"{block.name}: no bound of Lip(f^-1), so errors of this block and of those behind "
                "it have no gain"
            )
        before = gain
    return tuple(found)


def _total(name: str, bounds: list[float | None], notes: list[str]) -> float | None:
    total: float | None = 1.0
    for bound in bounds:
        total = _times(total, bound)
    if total is None and None not in bounds:
        notes.append(f"{name} exceeds the numbers of float64")
    return total


def _times(a: float | None, b: float | None) -> float | None:
    """Multiply two bounds, rounding up; None where one is unknown or the product overflows."""
    if a is None or b is None or not math.isfinite(a) or not math.isfinite(b):
        return None
    product = a * b
    if math.isfinite(product) and Fraction(product) < Fraction(a) * Fraction(b):
        product = math.nextafter(product, math.inf)
    return product if math.isfinite(product) else None


def _sum(bounds: Iterable[float | None]) -> float | None:
    """Add bounds, rounding up."""
    total = Fraction(0)
    for bound in bounds:
        if bound is None:
            return None
        total += Fraction(bound)
    try:
        rounded = float(total)
    except OverflowError:
        return None
    return rounded if Fraction(rounded) >= total else math.nextafter(rounded, math.inf)


def _finite(entry: Any) -> Any:
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry


def _is_number(entry: object) -> bool:
    return isinstance(entry, (int, float))


def _complaint(block: BlockCertificate) -> str:
    name = block.name or "the transform"
    if block.lipschitz is not None:
        return f"{name} (L <= {block.lipschitz:.6g}, expected below 1)"
    if block.estimate is not None:
        return f"{name} (L about {block.estimate:.4g}, an estimate and no proof)"
    return f"{name} (no bound of L: {block.method})"


def _up(bound: float) -> str:
    """Show a bound below 1 with as many digits as it takes to stay there, rounded up."""
    for digits in range(6, 18 if math.isfinite(bound) else 6):
        shown = math.ceil(bound * 10**digits) / 10**digits
        if bound >= 1 or shown < 1:
            return f"{shown:.{digits}f}"
    return repr(bound)


def _or_dash(bound: float | None) -> str:
    return "-" if bound is None else _rounded_up(bound)


def _shown(bound: float | None) -> str:
    return "no bound known" if bound is None else _rounded_up(bound)


def _rounded_up(bound: float) -> str:
    """Show four digits, rounded up: a bound may loosen, never tighten."""
    exact = Decimal(bound)
    if not exact.is_finite() or not exact:
        return f"{bound:g}"
    digit = Decimal(1).scaleb(exact.adjusted() - 3)
    return f"{float(exact.quantize(digit, rounding=ROUND_CEILING)):.4g}"
