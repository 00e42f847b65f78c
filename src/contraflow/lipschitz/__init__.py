"""Contractive networks: activations with slopes, bounded layers, branches, operator norms."""

from contraflow.lipschitz.activations import ACTIVATIONS, Activation, activation
from contraflow.lipschitz.branches import (
    Branch,
    ConvBranch,
    MLPBranch,
    PreparedBranch,
    PreparedChain,
)
from contraflow.lipschitz.convolutions import certified_conv_norm, conv_bound
from contraflow.lipschitz.layers import (
    BoundedLayer,
    LipschitzConv2d,
    LipschitzLinear,
    PreparedConv2d,
    PreparedLinear,
    PreparedMap,
)
from contraflow.lipschitz.norms import certified_norm, gram_bound
from contraflow.lipschitz.stacked import NormProblem, TakesNorms, norm_bounds

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BoundedLayer",
    "Branch",
    "ConvBranch",
    "LipschitzConv2d",
    "LipschitzLinear",
    "MLPBranch",
    "NormProblem",
    "PreparedBranch",
    "PreparedChain",
    "PreparedConv2d",
    "PreparedLinear",
    "PreparedMap",
    "TakesNorms",
    "activation",
    "certified_conv_norm",
    "certified_norm",
    "conv_bound",
    "gram_bound",
    "norm_bounds",
]
