"""The certificate of a flow: what is proved of every block, and of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from contraflow.flow import Flow
from contraflow.transform import BlockCertificate, Transform


@dataclass(frozen=True)
class Certificate:
    """Proved Lipschitz bounds of a flow.

    Args:
        certified: every contractive block has a proved bound L < 1.
        blocks: one entry a transform, in forward order.
        lipschitz_forward: bound of Lip(f); None where some transform has none.
        lipschitz_inverse: bound of Lip(f^-1); None likewise.
        dtype: the dtype of the weights that were examined.
    """

    certified: bool
    blocks: tuple[BlockCertificate, ...]
    lipschitz_forward: float | None
    lipschitz_inverse: float | None
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; null where no bound is known, never infinity."""
        blocks = [
            {"name": b.name, "lipschitz": b.lipschitz, "method": b.method} for b in self.blocks
        ]
        return {
            "certified": self.certified,
            "blocks": blocks,
            "lipschitz_forward": self.lipschitz_forward,
            "lipschitz_inverse": self.lipschitz_inverse,
            "dtype": self.dtype,
        }

    def __str__(self) -> str:
        """Return a table, blocks and verdict."""
        rows = [
            (block.name, "-" if block.lipschitz is None else f"{block.lipschitz:.6f}", block.method)
            for block in self.blocks
        ]
        width = max([len(row[0]) for row in rows] + [5])
        lines = [f"{'block':<{width}}  {'L':>8}  method"]
        lines += [f"{name:<{width}}  {bound:>8}  {method}" for name, bound, method in rows]
        lines.append("certified" if self.certified else "NOT certified: some L is not below 1")
        lines.append(
            f"Lip(f) <= {_shown(self.lipschitz_forward)}, "
            f"Lip(f^-1) <= {_shown(self.lipschitz_inverse)} ({self.dtype} weights)"
        )
        return "\n".join(lines)


def _shown(bound: float | None) -> str:
    return "no bound known" if bound is None else f"{bound:.4g}"


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
    blocks = tuple(transform.certificates(""))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in flow.parameters()})
    return Certificate(
        certified=all(
            block.lipschitz is not None and block.lipschitz < 1
            for block in blocks
            if block.contractive
        ),
        blocks=blocks,
        lipschitz_forward=_product([block.forward for block in blocks]),
        lipschitz_inverse=_product([block.inverse for block in blocks]),
        dtype=", ".join(dtypes) or str(torch.get_default_dtype()).removeprefix("torch."),
    )


def _product(bounds: list[float | None]) -> float | None:
    total = 1.0
    for bound in bounds:
        if bound is None:
            return None
        total *= bound
    return total if math.isfinite(total) else None
