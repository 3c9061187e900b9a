"""Learned tables of levels."""

from bitwright.stages.codebooks.weighted_kmeans import WeightedKMeans

__all__ = ["WeightedKMeans"]
