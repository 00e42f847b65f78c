"""Contractive networks: activations with slopes, bounded layers, branches, operator norms."""

from contraflow.lipschitz.activations import ACTIVATIONS, Activation, activation
from contraflow.lipschitz.aol import AOLConv2d, AOLLinear, PreparedAOLConv2d, overlap_bound
from contraflow.lipschitz.branches import (
    Branch,
    ConvBranch,
    MLPBranch,
    PreparedBranch,
    PreparedChain,
)
from contraflow.lipschitz.composition import certified_chain_norm
from contraflow.lipschitz.convolutions import certified_conv_norm, conv_bound
from contraflow.lipschitz.dense import DenseBranch, DenseConvBranch, DenseMLPBranch, PreparedDense
from contraflow.lipschitz.layers import (
    BoundedLayer,
    LipschitzConv2d,
    LipschitzLinear,
    PreparedConv2d,
    PreparedLinear,
    PreparedMap,
)
from contraflow.lipschitz.mixed_norms import (
    MixedNormBranch,
    MixedNormConvBranch,
    MixedNormMLPBranch,
    PreparedMixedNorms,
    mixed_norm_estimate,
)
from contraflow.lipschitz.normalisation import AOL, Normalisation, SpectralNorm
from contraflow.lipschitz.norms import certified_norm, gram_bound
from contraflow.lipschitz.sandwich import PreparedSandwich, SandwichBranch
from contraflow.lipschitz.stacked import NormProblem, TakesNorms, norm_bounds

__all__ = [
    "ACTIVATIONS",
    "AOL",
    "AOLConv2d",
    "AOLLinear",
    "Activation",
    "BoundedLayer",
    "Branch",
    "ConvBranch",
    "DenseBranch",
    "DenseConvBranch",
    "DenseMLPBranch",
    "LipschitzConv2d",
    "LipschitzLinear",
    "MLPBranch",
    "MixedNormBranch",
    "MixedNormConvBranch",
    "MixedNormMLPBranch",
    "NormProblem",
    "Normalisation",
    "PreparedAOLConv2d",
    "PreparedBranch",
    "PreparedChain",
    "PreparedConv2d",
    "PreparedDense",
    "PreparedLinear",
    "PreparedMap",
    "PreparedMixedNorms",
    "PreparedSandwich",
    "SandwichBranch",
    "SpectralNorm",
    "TakesNorms",
    "activation",
    "certified_chain_norm",
    "certified_conv_norm",
    "certified_norm",
    "conv_bound",
    "gram_bound",
    "mixed_norm_estimate",
    "norm_bounds",
    "overlap_bound",
]
