"""transformers alone, llama.cpp and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitwright.formats import Channel, Format, Group, IntGrid, Tensor, parse
from bitwright.interop.engines.base import Layer, Objection, group_size, plain_objections, shard, unrepresentable


@dataclass(frozen=True)
class Transformers:
    """transformers with the compressed-tensors package, without Bitwright: what the file format can express.

    (With ``import bitwright.transformers`` every result loads.)
    """

    name: str = "transformers"
    candidates: tuple[str, ...] = (
        "int4 g128 sym", "int4 g128 asym", "int4 g64 asym", "int4 g32 asym", "int4 channel asym", "int3 g128 asym",
        "int3 channel asym", "int2 g64 asym", "int2 channel asym", "int8 g128 sym", "int8 channel sym", "nvfp4",
        "mxfp4", "e4m3 channel", "e4m3 tensor",
    )  # fmt: skip

    def object_to(self, layers: Sequence[Layer], parallel: int) -> list[Objection]:
        """Return what the format cannot express, or cannot be cut for ``parallel`` devices."""
        found = list(plain_objections(layers))
        for layer in layers:
            if layer.weight is None or layer.kind == "embedding":
                continue
            found += [Objection(layer.path, why) for why in self._limits(layer, layer.weight, parallel)]
        return found

    def _limits(self, layer: Layer, weight: Format, parallel: int) -> Iterator[str]:
        if layer.kind != "linear":
            yield f"layers of the kind {layer.kind} are not read quantized"
            return
        if why := unrepresentable(layer):
            yield why
            return
        yield from divided(layer, parallel)


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp: blocks of 32 (or 16) columns that GGUF has a type for; float inputs."""

    name: str = "llama.cpp"
    candidates: tuple[str, ...] = ("int4 g32 sym", "int5 g32 sym", "int8 g32 sym", "int8 g32 narrow", "mxfp4", "nvfp4")

    def object_to(self, layers: Sequence[Layer], parallel: int) -> list[Objection]:
        """Return what GGUF has no block for; llama.cpp splits between layers or rows, so ``parallel`` asks nothing."""
        found = list(plain_objections(layers))
        for layer in layers:
            if layer.weight is None or layer.kind == "embedding":
                continue
            found += [Objection(layer.path, why) for why in self._limits(layer, layer.weight)]
        return found

    def _limits(self, layer: Layer, weight: Format) -> Iterator[str]:
        if layer.kind != "linear":
            yield f"layers of the kind {layer.kind} are not served quantized"
            return
        if weight not in map(parse, self.candidates):
            yield f"GGUF has no block for '{weight}'"
            return
        width = 64 if str(weight) == "nvfp4" else 32
        if layer.shape[1] % width:
            yield f"rows of {layer.shape[1]} are no multiple of {width}"
        if layer.input is not None:
            yield "inputs are quantized by the engine itself, not by the file"


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime: MatMulNBits for weights alone, QDQ with 8-bit weights and inputs."""

    name: str = "onnxruntime"
    candidates: tuple[str, ...] = (
        "int4 g128 asym", "int4 g64 asym", "int4 g32 asym", "int4 g16 asym", "int8 g128 asym", "int8 g64 asym",
        "int8 g32 asym", "int2 g64 asym", "int2 g32 asym", "int8 channel sym", "int8 tensor sym",
    )  # fmt: skip

    def object_to(self, layers: Sequence[Layer], parallel: int) -> list[Objection]:
        """Return what no operator serves; ONNX Runtime runs a model on one device."""
        found = list(plain_objections(layers))
        if parallel > 1:
            found.append(Objection("the model", f"it runs on one device, not on {parallel}"))
        for layer in layers:
            if layer.weight is not None and layer.kind != "embedding":
                found += [Objection(layer.path, why) for why in self._limits(layer, layer.weight)]
        return found

    def _limits(self, layer: Layer, weight: Format) -> Iterator[str]:
        if not isinstance(weight.grid, IntGrid):
            yield f"its operators take integers, not '{weight}'"
            return
        granularity, bits = weight.granularity, weight.grid.bits
        if layer.input is not None or layer.kind == "conv":
            if bits != 8 or not isinstance(granularity, Channel | Tensor):
                yield "beside quantized inputs and in convolutions weights are int8 per channel or tensor"
            return
        if isinstance(granularity, Channel | Tensor) and bits == 8:
            return
        if bits not in (2, 4, 8):
            yield f"MatMulNBits takes 2, 4 and 8 bits, not {bits}"
        size = granularity.size if isinstance(granularity, Group) and granularity.axis == 1 else 0
        if size < 16 or size & (size - 1):
            yield f"MatMulNBits takes groups of a power of two from 16 on, not {granularity.text}"


def divided(layer: Layer, parallel: int) -> Iterator[str]:
    """Why a layer's groups cannot be cut for ``parallel`` devices."""
    part = shard(layer, parallel)
    if isinstance(part, str):
        yield part
        return
    size = group_size(layer)
    if parallel > 1 and layer.split == "columns" and size is not None and part[1] % size:
        yield f"groups of {size} do not divide the {part[1]} columns of a device's part"
