"""Unconstrained conditioners: networks that give a transform its parameters."""

from contraflow.nn.masked import MADE, MaskedLinear
from contraflow.nn.mlp import MLP

__all__ = ["MADE", "MLP", "MaskedLinear"]
