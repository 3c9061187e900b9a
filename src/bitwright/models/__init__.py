"""Models: checkpoints on disk, modules in memory or streamed, and the discovery of their structure by experiment."""

from bitwright.models.checkpoint import Checkpoint
from bitwright.models.discover import block_stream, discover
from bitwright.models.model import Model, open_model
from bitwright.models.stream import BlockStream
from bitwright.models.structure import NormSite, Pair, ResidualStream, Structure, WeightSite

__all__ = [
    "BlockStream",
    "Checkpoint",
    "Model",
    "NormSite",
    "Pair",
    "ResidualStream",
    "Structure",
    "WeightSite",
    "block_stream",
    "discover",
    "open_model",
]
