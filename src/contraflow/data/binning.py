"""Coarser grey levels: 8 bits cut to n."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from contraflow.errors import ConfigurationError

Levels = TypeVar("Levels", Tensor, np.ndarray)


def check_bits(owner: str, bits: int) -> None:
    """Refuse what is no number of bits that 8 can be cut to.

    Raises:
        ConfigurationError: ``bits`` is not 1 to 8.
    """
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ConfigurationError(
            f"{owner}: got bits={bits}, expected 1 to 8: so many of the 8 bits of a level are kept."
        )


def bin_levels(x: Levels, bits: int) -> Levels:
    """Keep the highest ``bits`` of each level: ``x // 2^(8 - bits)``.

    The 256 levels tile the ``2^bits`` ones, ``2^(8 - bits)`` to each. Rounding would not: it
    halves the bin of level 0.

    Args:
        x: uint8, any shape.
        bits: 1 to 8; 8 returns x itself.

    Returns:
        uint8 levels 0 to ``2^bits - 1``, of x's shape.

    Example:
        >>> bin_levels(torch.tensor([0, 7, 8, 255], dtype=torch.uint8), bits=5)
        tensor([ 0,  0,  1, 31], dtype=torch.uint8)

    Reference:
        Kingma and Dhariwal 2018, arXiv:1807.03039, Section 6: CelebA-HQ at 5 bits.
    """
    return x if bits == 8 else x // 2 ** (8 - bits)
