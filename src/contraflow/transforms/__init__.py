"""Bijections, one family a file."""

from contraflow.transforms.actnorm import ActNorm
from contraflow.transforms.autoregressive import Autoregressive
from contraflow.transforms.columns import DequantiseColumns, UnboundColumns
from contraflow.transforms.coupling import Coupling
from contraflow.transforms.dequantise import Dequantise, UniformDequantise
from contraflow.transforms.elementwise import Logit, Reshape, Standardise
from contraflow.transforms.linear import LULinear
from contraflow.transforms.marginal import MarginalSpline
from contraflow.transforms.multiscale import FactorOut, SplitPrior, Squeeze
from contraflow.transforms.residual import ResidualBlock
from contraflow.transforms.scalar import Affine, ScalarTransformer
from contraflow.transforms.spline import RationalQuadratic

__all__ = [
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Coupling",
    "Dequantise",
    "DequantiseColumns",
    "FactorOut",
    "LULinear",
    "Logit",
    "MarginalSpline",
    "RationalQuadratic",
    "Reshape",
    "ResidualBlock",
    "ScalarTransformer",
    "SplitPrior",
    "Squeeze",
    "Standardise",
    "UnboundColumns",
    "UniformDequantise",
]
