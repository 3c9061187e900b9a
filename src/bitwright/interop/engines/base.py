"""What an engine is told of a planned network, and what it answers: objections, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bitwright.formats import Block, Channel, Format, Group, Tensor
from bitwright.interop.compressed_tensors.refusal import Refusal
from bitwright.interop.compressed_tensors.scheme import find_scheme

Split = Literal["rows", "columns", "none"]
"""How tensor parallelism cuts a weight ``[out, in]``: by its rows (what reads the residual stream), by its columns
(what writes to it), or not at all."""


@dataclass(frozen=True)
class Layer:
    """One weight of a planned network.

    Attributes:
        path: its module (for a fused expert, the module with the expert's number).
        kind: ``linear``, ``conv`` or ``embedding``.
        shape: ``(out, in)``.
        weight: format of the weight; None where it stays float.
        input: format of the layer's input; None where it stays float.
        split: how tensor parallelism cuts it.
        head_dim: rows that one device cannot share with another, 0 where any number may be cut.
        joined: layers with an equal name here are one matrix in engines that join what reads one tensor (q, k, v; gate,
            up; the experts of a block).
        terms: names of what the weight has beside codes (``sparse``, ``low rank``).
        online: it needs an operation on its input while the model runs.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    weight: Format | None
    input: Format | None = None
    split: Split = "none"
    head_dim: int = 0
    joined: str = ""
    terms: tuple[str, ...] = ()
    online: bool = False


@dataclass(frozen=True)
class Objection:
    """Why an engine would not serve a layer."""

    path: str
    why: str


class Engine(Protocol):
    """A program that serves quantized models."""

    @property
    def name(self) -> str:
        """What ``--for`` calls it."""
        ...

    @property
    def candidates(self) -> tuple[str, ...]:
        """Weight formats that it serves, as text, from which a legal neighbour is named."""
        ...

    def object_to(self, layers: Sequence[Layer], parallel: int) -> list[Objection]:
        """Return why it would refuse the layers on ``parallel`` devices; empty where it serves them."""
        ...


def unrepresentable(layer: Layer) -> str:
    """Why compressed-tensors cannot express a layer's weight; empty where it can."""
    assert layer.weight is not None
    found = find_scheme(layer.weight, layer.shape, layer.input)
    return found.reason if isinstance(found, Refusal) else ""


def shard(layer: Layer, parallel: int) -> tuple[int, int] | str:
    """Shape of a device's part of a layer, or why it cannot be cut so.

    Heads that are fewer than the devices are copied to several of them, as engines do with key and value heads.
    """
    out, columns = layer.shape
    if parallel == 1 or layer.split == "none":
        return out, columns
    if layer.split == "columns":
        if columns % parallel:
            return f"{columns} columns cannot be cut into {parallel} parts"
        return out, columns // parallel
    unit = layer.head_dim or 1
    heads = out // unit
    if parallel > heads and layer.head_dim:
        return (unit, columns) if parallel % heads == 0 else f"{heads} heads do not fit on {parallel} devices"
    if heads % parallel:
        what = f"{heads} heads" if layer.head_dim else f"{out} rows"
        return f"{what} cannot be cut into {parallel} parts"
    return out // parallel, columns


def plain_objections(layers: Iterable[Layer]) -> Iterator[Objection]:
    """What no engine but our own runtime serves."""
    for layer in layers:
        if layer.terms:
            yield Objection(layer.path, f"its weight is a sum of codes and {', '.join(layer.terms)}")
        if layer.online:
            yield Objection(layer.path, "its input needs an operation that is run with the model")
        if layer.kind == "embedding" and layer.weight is not None:
            yield Objection(layer.path, "quantized embeddings are not served")
        if layer.weight is None and layer.input is not None:
            yield Objection(layer.path, "its input is quantized and its weight is float")


def joined_objections(layers: Sequence[Layer]) -> Iterator[Objection]:
    """Layers that are one matrix in the engine and have different formats."""
    first: dict[str, Layer] = {}
    for layer in layers:
        if not layer.joined:
            continue
        other = first.setdefault(layer.joined, layer)
        if (other.weight, other.input) != (layer.weight, layer.input):
            yield Objection(
                layer.path,
                f"it is {_text(layer)} and {other.path}, with which it is joined, is {_text(other)}",
            )


def _text(layer: Layer) -> str:
    return "float" if layer.weight is None else f"'{layer.weight}'"


def group_size(layer: Layer) -> int | None:
    """Columns that share a scale; None for one scale per row or tensor, and for layouts that are no groups of a row."""
    granularity = layer.weight.granularity if layer.weight is not None else Channel()
    if isinstance(granularity, Channel | Tensor):
        return None
    return granularity.size if isinstance(granularity, Group) and granularity.axis == 1 else None


def block_objection(layer: Layer, part: tuple[int, int]) -> str:
    """Why a two-dimensional block does not fit a device's part; empty where it does."""
    granularity = layer.weight.granularity if layer.weight is not None else Channel()
    if isinstance(granularity, Block) and (part[0] % granularity.rows or part[1] % granularity.cols):
        return f"blocks of {granularity.rows} x {granularity.cols} do not fit its part of {part[0]} x {part[1]}"
    return ""
