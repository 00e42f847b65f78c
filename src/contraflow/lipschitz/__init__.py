"""Contractive networks: activations with slopes, bounded layers, branches, operator norms."""

from contraflow.lipschitz.activations import ACTIVATIONS, Activation, activation
from contraflow.lipschitz.branches import (
    Branch,
    ConvBranch,
    MLPBranch,
    PreparedBranch,
    PreparedChain,
)
from contraflow.lipschitz.layers import (
    LipschitzConv2d,
    LipschitzLinear,
    PreparedConv2d,
    PreparedLinear,
    PreparedMap,
)
from contraflow.lipschitz.norms import certified_conv_norm, certified_norm, conv_bound, gram_bound

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Branch",
    "ConvBranch",
    "LipschitzConv2d",
    "LipschitzLinear",
    "MLPBranch",
    "PreparedBranch",
    "PreparedChain",
    "PreparedConv2d",
    "PreparedLinear",
    "PreparedMap",
    "activation",
    "certified_conv_norm",
    "certified_norm",
    "conv_bound",
    "gram_bound",
]
