"""Densities: bases of the latent space, and two-dimensional sets to learn."""

from contraflow.distributions.base import Base, DiagonalNormal, StandardNormal
from contraflow.distributions.planar import PLANAR_SETS, PlanarSet, planar_set

__all__ = [
    "PLANAR_SETS",
    "Base",
    "DiagonalNormal",
    "PlanarSet",
    "StandardNormal",
    "planar_set",
]
