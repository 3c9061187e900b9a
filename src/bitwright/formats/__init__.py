"""What numbers look like: grids, granularity, scales, formats as text, quantized tensors and their stored bits."""

from bitwright.formats.derived import dynamic_tree, lloyd_max, normal_float
from bitwright.formats.format import Format
from bitwright.formats.granularity import Block, Channel, FlatBlock, Granularity, Group, Tensor, Token
from bitwright.formats.grids import Grid, IntGrid
from bitwright.formats.lattice import LatticeGrid
from bitwright.formats.layout import Layout
from bitwright.formats.minifloat import MiniFloat, cast
from bitwright.formats.packing import pack, packed_columns, unpack
from bitwright.formats.scales import Outer, Scale, ScaleFormat, ZeroFormat
from bitwright.formats.tables import CodebookGrid, TableGrid, table
from bitwright.formats.tensor import Codes, LowRank, QuantizedTensor, Sparse
from bitwright.formats.text import NAMED, parse
from bitwright.formats.trellis import TrellisGrid
from bitwright.formats.vectors import AdditiveGrid

__all__ = [
    "NAMED",
    "AdditiveGrid",
    "Block",
    "Channel",
    "CodebookGrid",
    "Codes",
    "FlatBlock",
    "Format",
    "Granularity",
    "Grid",
    "Group",
    "IntGrid",
    "LatticeGrid",
    "Layout",
    "LowRank",
    "MiniFloat",
    "Outer",
    "QuantizedTensor",
    "Scale",
    "ScaleFormat",
    "Sparse",
    "TableGrid",
    "Tensor",
    "Token",
    "TrellisGrid",
    "ZeroFormat",
    "cast",
    "dynamic_tree",
    "lloyd_max",
    "normal_float",
    "pack",
    "packed_columns",
    "parse",
    "table",
    "unpack",
]
