"""Learned tables of levels."""

from bitwright.stages.codebooks.residual_kmeans import ResidualKMeans
from bitwright.stages.codebooks.weighted_kmeans import WeightedKMeans

__all__ = ["ResidualKMeans", "WeightedKMeans"]
