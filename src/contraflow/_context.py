"""The one rule about context: whoever is built for one needs it, everybody else ignores it."""

from __future__ import annotations

from torch import Tensor

from contraflow.errors import ShapeError


def expected_context(owner: object, context: Tensor | None, features: int) -> Tensor | None:
    """Return the context that ``owner`` uses: None if it was built without one.

    Args:
        owner: names the module in the message.
        context: ``[*B, M]`` or None.
        features: M that the owner was built for; 0 for none.

    Raises:
        ShapeError: a context is missing or has another number of features.
    """
    if features == 0:
        return None
    if context is None or context.ndim == 0 or context.shape[-1] != features:
        got = "no context" if context is None else f"a context of shape {tuple(context.shape)}"
        raise ShapeError(f"{type(owner).__name__}: got {got}; expected one of (*B, {features}).")
    return context
