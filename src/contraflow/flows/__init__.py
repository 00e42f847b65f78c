"""Ready flows: recipes of published models, one paper a file."""

from contraflow.flows.invertible_resnet import InvertibleResNet
from contraflow.flows.maf import MAF
from contraflow.flows.realnvp import RealNVP
from contraflow.flows.residual import ResidualFlow

__all__ = ["MAF", "InvertibleResNet", "RealNVP", "ResidualFlow"]
