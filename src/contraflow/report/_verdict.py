"""What a certificate proves, in words that never promise more."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from contraflow.report._text import bound, finite, text

Mood = Literal["good", "bad", "absent"]


@dataclass(frozen=True)
class Verdict:
    """A verdict in three lengths.

    Args:
        headline: one or two words.
        summary: a clause.
        sentence: the whole verdict with its reason.
        mood: ``good``, ``bad``, or ``absent`` where nothing was certified.
    """

    headline: str
    summary: str
    sentence: str
    mood: Mood


def bounded_blocks(certificate: Mapping[str, object]) -> list[tuple[str, float]]:
    """Return name and bound of the blocks whose inverse rests on a bound."""
    return [
        (text(block, "name", "unnamed"), _number(block["lipschitz"]))
        for block in blocks_of(certificate)
        if block.get("lipschitz") is not None and rests_on_bound(block)
    ]


def fails(block: Mapping[str, object]) -> bool:
    """Tell whether the block lists a bound that is not below 1; NaN is not."""
    limit = block.get("lipschitz")
    return limit is not None and rests_on_bound(block) and not _number(limit) < 1.0


def judge(certificate: Mapping[str, object] | None) -> Verdict:
    """Return the verdict; a listed bound that is not below 1 overrules ``certified``.

    Example:
        >>> block = {"name": "0", "lipschitz": 1.25, "method": "product of norms"}
        >>> judge({"certified": True, "blocks": [block]}).headline
        'NOT certified'
    """
    if certificate is None:
        return Verdict("not computed", "run contraflow certify RUN", "", "absent")
    bounded = bounded_blocks(certificate)
    failing = [(name, limit) for name, limit in bounded if not limit < 1.0]
    if certificate.get("certified") is not True or failing:
        return _failure(certificate, bounded, failing)
    closed = sum(not rests_on_bound(block) for block in blocks_of(certificate))
    others = len(blocks_of(certificate)) - closed - len(bounded)
    remark = f" {_count(closed, 'block')} {_has(closed)} a closed-form inverse." if closed else ""
    if others:
        remark += f" {_count(others, 'block')} {_has(others)} an inverse that rests on no bound."
    if not bounded:
        return Verdict(
            "certified",
            "no contractive block to bound",
            f"Certified: the flow has no contractive block, so no bound is needed.{remark}",
            "good",
        )
    largest = max(limit for _, limit in bounded)
    dtype = text(certificate, "dtype", "")
    return Verdict(
        "certified",
        f"{_count(len(bounded), 'contractive block')}, largest bound {bound(largest)}",
        f"Certified: an upper bound below 1, computed in float64, on the Lipschitz constant of "
        f"each of the {_count(len(bounded), 'contractive block')} proves that the flow is "
        f"invertible; the largest bound is {bound(largest)}.{remark}"
        + (f" The certificate covers arithmetic in {dtype}." if dtype else ""),
        "good",
    )


def _failure(
    certificate: Mapping[str, object],
    bounded: Sequence[tuple[str, float]],
    failing: Sequence[tuple[str, float]],
) -> Verdict:
    unproved = sum(
        block.get("lipschitz") is None and rests_on_bound(block) for block in blocks_of(certificate)
    )
    if failing:
        worst = ", ".join(f"{name} ({bound(limit)})" for name, limit in failing[:4])
        more = f" and {len(failing) - 4} more" if len(failing) > 4 else ""
        reason = (
            f"{len(failing)} of {_count(len(bounded), 'bounded block')} {_has(len(failing))} "
            f"no bound below 1: {worst}{more}."
        )
        summary = f"{len(failing)} of {_count(len(bounded), 'bound')} not below 1"
    elif unproved:
        guessed = sum(block.get("estimate") is not None for block in blocks_of(certificate))
        reason = f"{_count(unproved, 'block')} {_has(unproved)} no bound."
        if guessed:
            reason += f" {_count(guessed, 'block')} {_has(guessed)} an estimate only."
        summary = f"{_count(unproved, 'block')} without a bound"
    else:
        reason = "The certificate gives no reason."
        summary = "no reason given"
    advice = (
        " Nothing proves that this flow has an inverse, nor that its likelihood is that of a "
        "density. Save it again after flow.enforce_bounds_(), then repeat contraflow certify."
    )
    return Verdict("NOT certified", summary, f"NOT certified. {reason}{advice}", "bad")


def caution(verdict: Verdict) -> str:
    """Return what a likelihood, or a round trip, of this flow does not mean; empty if certified."""
    if verdict.mood != "bad":
        return ""
    return (
        "NOT certified: nothing proves that this flow has an inverse, nor that its likelihood is "
        "that of a density. What is shown here was measured on these rows and holds for no others."
    )


def blocks_of(certificate: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the blocks that the certificate lists, data side first."""
    blocks = certificate.get("blocks")
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        return []
    return [block for block in blocks if isinstance(block, Mapping)]


def rests_on_bound(block: Mapping[str, object]) -> bool:
    """Tell whether the block has an inverse only if a bound is below 1."""
    return not text(block, "method").lower().startswith("closed form")


def _number(entry: object) -> float:
    """Return a bound as a float; what is not a finite number bounds nothing."""
    known = finite(entry)
    if known is not None:
        return known
    return float(entry) if isinstance(entry, float) else math.nan


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"
