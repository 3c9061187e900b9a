"""Runtime: modules and caches that run quantized models, on kernels chosen from a table."""

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.conv import QuantConv2d
from bitwright.runtime.dispatch import Kernel, Request, Table, UnsupportedError
from bitwright.runtime.embedding import QuantEmbedding
from bitwright.runtime.geometry import ConvGeometry
from bitwright.runtime.install import install
from bitwright.runtime.kernels.table import REFERENCE, TABLE
from bitwright.runtime.linear import QuantLinear
from bitwright.runtime.manifest import Manifest, read_manifest
from bitwright.runtime.module import Options, QuantModule, describe

__all__ = [
    "REFERENCE",
    "TABLE",
    "ActivationQuantizer",
    "ConvGeometry",
    "Kernel",
    "Manifest",
    "Options",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLinear",
    "QuantModule",
    "Request",
    "Table",
    "UnsupportedError",
    "describe",
    "install",
    "read_manifest",
]
