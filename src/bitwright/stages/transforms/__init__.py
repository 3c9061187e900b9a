"""Function-preserving rewrites of the float network."""

from bitwright.stages.transforms.base import Block, OnlineOperation, Transform, TransformReport

__all__ = ["Block", "OnlineOperation", "Transform", "TransformReport"]
