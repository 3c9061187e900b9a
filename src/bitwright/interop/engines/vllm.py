"""vLLM, through compressed-tensors: what its fused layers, its kernels' tiles and tensor parallelism ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitwright.interop.compressed_tensors.refusal import Refusal
from bitwright.interop.compressed_tensors.scheme import FLOAT8, INTEGER, MXFP4, NVFP4, PACKED, Scheme, find_scheme
from bitwright.interop.engines.base import (
    Layer,
    Objection,
    block_objection,
    group_size,
    joined_objections,
    plain_objections,
    shard,
)

# Limits of the Marlin kernels that serve packed integers.
_BITS = (4, 8)
_GROUPS = (32, 64, 128)
_ROWS, _COLUMNS = 64, 128


@dataclass(frozen=True)
class Vllm:
    """Packed integers on Marlin, W8A8, FP8, MXFP4 and NVFP4 linear layers."""

    name: str = "vllm"
    candidates: tuple[str, ...] = (
        "int4 g128 sym", "int4 g128 asym", "int4 g64 sym", "int4 g64 asym", "int4 g32 sym", "int4 g32 asym",
        "int4 channel sym", "int8 g128 sym", "int8 g64 sym", "int8 g32 sym", "int8 channel sym", "nvfp4", "mxfp4",
        "e4m3 channel", "e4m3 tensor",
    )  # fmt: skip

    def object_to(self, layers: Sequence[Layer], parallel: int) -> list[Objection]:
        """Return why vLLM would refuse the layers on ``parallel`` devices."""
        coded = [layer for layer in layers if layer.weight is not None]
        found = [*plain_objections(layers), *joined_objections(layers)]
        for layer in coded:
            if layer.kind == "embedding":
                continue
            found += [Objection(layer.path, why) for why in self._limits(layer, parallel)]
        return found

    def _limits(self, layer: Layer, parallel: int) -> Iterator[str]:
        if layer.kind != "linear":
            yield f"layers of the kind {layer.kind} are not served quantized"
            return
        assert layer.weight is not None
        scheme = find_scheme(layer.weight, layer.shape, layer.input)
        if isinstance(scheme, Refusal):
            yield scheme.reason
            return
        part = shard(layer, parallel)
        if isinstance(part, str):
            yield part
        else:
            yield from self._tiles(layer, scheme, part)

    def _tiles(self, layer: Layer, scheme: Scheme, part: tuple[int, int]) -> Iterator[str]:
        """What the kernels ask of one device's part ``[out, in]``."""
        out, columns = part
        size = group_size(layer)
        if scheme.container == PACKED:
            bits = scheme.weight.grid.bits
            if bits not in _BITS:
                yield f"kernels serve packed integers of 4 and 8 bits, not {bits}"
            if scheme.input is not None:
                yield "packed integers are served with float inputs"
            if size is not None and size not in _GROUPS:
                yield f"kernels serve groups of 32, 64 and 128, not {size}"
            if out % _ROWS or columns % _COLUMNS:
                yield f"kernels work on tiles of {_ROWS} x {_COLUMNS} and a device holds {out} x {columns}"
        if size is not None and columns % size:
            yield f"groups of {size} do not divide the {columns} columns of a device's part"
        if scheme.container in (NVFP4, MXFP4) and columns % (scheme.group or 1):
            yield f"{scheme.weight} needs columns in multiples of {scheme.group}, a device holds {columns}"
        if scheme.container == FLOAT8 and (why := block_objection(layer, part)):
            yield why
        if scheme.container == INTEGER and (out % 16 or columns % 16):
            yield f"int8 products need multiples of 16 and a device holds {out} x {columns}"
