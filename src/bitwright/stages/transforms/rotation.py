"""Rotations that flatten outliers: QuaRot's Hadamard transforms (Ashkboos et al. 2024, arXiv:2404.00456)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.stages.transforms.base import Block, DataFree, OnlineOperation, StreamTouch, TransformReport
from bitwright.stages.transforms.hadamard import apply_hadamard, hadamard_block
from bitwright.stages.transforms.pair import source_rows
from bitwright.statistics import Statistic

# Only the low bits of a seed are stored with an online operation; they decide the signs.
_SEED_BITS = 31


def usable_block(dim: int, where: str, events: Events) -> int:
    """Largest Hadamard block of ``dim`` channels; an event where it is not the whole."""
    size = hadamard_block(dim)
    if size != dim:
        events.record("block-diagonal rotation", where, f"no Hadamard matrix of order {dim}; blocks of {size} are used")
    return size


@dataclass(frozen=True)
class ResidualRotation(DataFree):
    """Rotate the residual stream by one randomised Hadamard matrix Q (section 4.1, "stage 1a").

    Norm gains are folded into the layers that read the norm; whatever writes the stream is multiplied by Q, whatever
    reads it by Q on its input side. Nothing is left to do at run time.
    """

    @property
    def unties(self) -> bool:
        """The head reads the final norm's gain, the embedding does not: they cannot stay one tensor."""
        return True

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Rotate the parameters that this unit holds.

        Raises:
            InputError: if the model has no residual stream that can be rotated.
        """
        stream = block.residual
        if stream is None or stream.kind != "rms":
            reason = "it has no pre-norm residual stream" if stream is None else "its norms subtract the mean"
            raise InputError(f"the residual stream of this model cannot be rotated: {reason}; leave the transform out")
        size = hadamard_block(stream.dim)
        norms = set()
        for touch in stream.reads:
            if not block.holds(touch.path):
                continue
            gain = None
            if touch.norm is not None:
                gain = self._gain(block, touch.norm, stream.offsets.get(touch.norm, 0.0))
                norms.add(touch.norm)
            self._rotate(block, touch, size, seed, gain)
        for touch in stream.writes:
            if block.holds(touch.path):
                self._rotate(block, touch, size, seed, None)
        for norm in sorted(norms):
            offset = stream.offsets.get(norm, 0.0)
            block.set_weight(norm, block.weight(norm) * 0 + (1.0 - offset))
        return TransformReport("residual rotation", ((block.name, {"block": float(size)}),))

    @staticmethod
    def _gain(block: Block, norm: str, offset: float) -> Tensor:
        return block.weight(norm) + offset

    @staticmethod
    def _rotate(block: Block, touch: StreamTouch, size: int, seed: int, gain: Tensor | None) -> None:
        seed &= (1 << _SEED_BITS) - 1
        if touch.parameter == "bias":
            bias = block.bias(touch.path)
            if bias is not None:
                block.set_bias(touch.path, apply_hadamard(bias, size, seed))
            return
        w = block.weight(touch.path)
        if touch.axis == 1:
            w = w if gain is None else w * gain
            block.set_weight(touch.path, apply_hadamard(w, size, seed))
        else:
            block.set_weight(touch.path, apply_hadamard(w.t().contiguous(), size, seed).t().contiguous())


@dataclass(frozen=True)
class ValueRotation(DataFree):
    """Rotate every value head by a Hadamard matrix, undone in the output projection (the folded half of stage 1b)."""

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Fold the rotation into value and output projections."""
        places = []
        for pair in block.pairs:
            if pair.kind != "linear_linear" or pair.head_dim == 0 or len(pair.sinks) != 1:
                continue
            if pair.head_dim & (pair.head_dim - 1):
                events.record("not rotated", pair.source, f"heads of {pair.head_dim} channels are no power of two")
                continue
            sink = pair.sinks[0]
            rows = source_rows(pair, block.weight(sink).shape[1]).unique()
            value = block.weight(pair.source)
            part = apply_hadamard(value[rows].t().contiguous(), pair.head_dim).t()
            value[rows] = part
            block.set_weight(pair.source, value)
            bias = block.bias(pair.source)
            if bias is not None:
                bias[rows] = apply_hadamard(bias[rows], pair.head_dim)
                block.set_bias(pair.source, bias)
            block.set_weight(sink, apply_hadamard(block.weight(sink), pair.head_dim))
            places.append((pair.source, {"head_dim": float(pair.head_dim)}))
        return TransformReport("value rotation", tuple(places))


@dataclass(frozen=True)
class OnlineRotation(DataFree):
    """A Hadamard transform in front of linears that read neither a norm nor (with ``heads``) plain value heads.

    These inputs (of the down projection; of the output projection) come out of products that no folded rotation
    passes, so the transform runs at inference time and is owned by the site.
    """

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Fold the inverse into the weights and leave the transform to the sites."""
        seed &= (1 << _SEED_BITS) - 1
        behind_norms = {sink for pair in block.pairs if pair.kind == "norm_linear" for sink in pair.sinks}
        places = []
        for path in block.linears:
            if path in behind_norms or block.quantizer(path) is None or not self._wanted(block, path):
                continue
            w = block.weight(path)
            size = usable_block(w.shape[1], path, events)
            block.set_weight(path, apply_hadamard(w, size, seed))
            block.add_online(path, OnlineOperation("hadamard", (("size", size), ("seed", seed))))
            places.append((path, {"block": float(size)}))
        return TransformReport("online rotation", tuple(places))

    @staticmethod
    def _wanted(block: Block, path: str) -> bool:
        stream = block.residual
        return stream is not None and path in {touch.path for touch in stream.writes}


@dataclass(frozen=True)
class KeyRotation(DataFree):
    """Rotate keys by a Hadamard matrix of the head size before they are coded in the cache.

    QuaRot rotates queries too, behind the rotary embedding, so that the product stays; here the cache turns decoded
    keys back, which gives the same numbers without touching the attention.
    """

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Leave the operation to the key site, once."""
        heads = [pair.head_dim for pair in block.pairs if pair.head_dim]
        if heads:
            block.add_online("key", OnlineOperation("hadamard", (("size", hadamard_block(heads[0])), ("seed", -1))))
        return TransformReport("key rotation", ())
