"""A plain fully connected network, the conditioner of vector flows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from contraflow._sizes import check_widths


class MLP(nn.Module):
    """``in -> h_1 -> ... -> h_n -> out`` with SiLU between.

    Args:
        in_features, out_features: sizes of the last dimension.
        hidden_features: widths h_1 ... h_n; none gives one linear layer.
        zero_last: start with an output of zero, so that a transform starts at the identity.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: Sequence[int] = (64, 64),
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_features, *check_widths("hidden_features", hidden_features)]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        last = nn.Linear(widths[-1], out_features)
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*B, in]`` to ``[*B, out]``."""
        return self.layers(x)
