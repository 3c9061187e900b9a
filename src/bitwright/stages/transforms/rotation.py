"""Rotations that flatten outliers: QuaRot's Hadamard transforms (Ashkboos et al. 2024, arXiv:2404.00456)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.stages.transforms.base import (
    Block,
    DataFree,
    OnlineOperation,
    PairView,
    StreamTouch,
    TransformReport,
)
from bitwright.stages.transforms.equalization import has_weight
from bitwright.stages.transforms.hadamard import (
    apply_hadamard,
    apply_mean_keeping,
    hadamard_block,
    is_product,
)
from bitwright.stages.transforms.pair import own_rows
from bitwright.statistics import Statistic

# Only the low bits of a seed are stored with an online operation; they decide the signs.
_SEED_BITS = 31
_REFUSED = "the residual stream of this model cannot be rotated"
_MEND = "leave the transform out"

Turn = Callable[[Tensor], Tensor]


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

    Layer norms subtract the mean over the channels, which commutes with every Q that keeps the vector of ones: such a
    Q is used where the stream has a layer norm (:func:`~bitwright.stages.transforms.hadamard.apply_mean_keeping`), and
    the norms stay as they are. SliceGPT (Ashkboos et al. 2024, section 3.2) folds the subtraction into the writers and
    replaces the norms by RMS norms instead; the direction of the ones is then rotated too, but files need new modules.
    A norm's shift moves into the biases of its readers, or, where one of them has none, stays in the norm as
    ``Q (shift / gain)``.
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
        if stream is None:
            raise InputError(f"{_REFUSED}: none was proved (it is no pre-norm network, or see the plan); {_MEND}")
        for touch in stream.reads:
            if touch.parameter != "weight":
                raise InputError(f"{_REFUSED}: {touch.path}.{touch.parameter} reads it and is no weight; {_MEND}")
        size = hadamard_block(stream.dim)
        turn = partial(
            apply_mean_keeping if stream.kind == "layer" else apply_hadamard,
            size=size, seed=seed & ((1 << _SEED_BITS) - 1),
        )  # fmt: skip
        readers: dict[str | None, list[str]] = {}
        for touch in stream.reads:
            if block.holds(touch.path):
                readers.setdefault(touch.norm, []).append(touch.path)
        for norm, paths in readers.items():
            self._read(block, norm, paths, turn)
        for touch in stream.writes:
            if block.holds(touch.path):
                self._write(block, touch, turn)
        return TransformReport("residual rotation", ((block.name, {"block": float(size)}),))

    def _read(self, block: Block, norm: str | None, readers: Sequence[str], turn: Turn) -> None:
        """Fold one norm (``None``: the stream is read bare) into its readers and rotate these."""
        gain = shift = None
        if norm is not None:
            gain, shift = self._gain(block, norm), block.bias(norm)
        moves = shift is not None and all(block.bias(path) is not None for path in readers)
        for path in readers:
            w, bias = block.weight(path), block.bias(path)
            if moves and shift is not None and bias is not None:
                block.set_bias(path, bias + w @ shift)
            block.set_weight(path, turn(w if gain is None else w * gain))
        if norm is None:
            return
        if shift is not None:
            block.set_bias(norm, torch.zeros_like(shift) if moves else turn(self._behind(norm, shift, gain)))
        if gain is not None:
            block.set_weight(norm, torch.ones_like(gain) - self._offset(block, norm))

    @staticmethod
    def _offset(block: Block, norm: str) -> float:
        return 0.0 if block.residual is None else block.residual.offsets.get(norm, 0.0)

    def _gain(self, block: Block, norm: str) -> Tensor | None:
        return block.weight(norm) + self._offset(block, norm) if has_weight(block, norm) else None

    @staticmethod
    def _behind(norm: str, shift: Tensor, gain: Tensor | None) -> Tensor:
        """The shift of a norm whose gain has become 1."""
        if gain is None:
            return shift
        if bool(((gain == 0) & (shift != 0)).any()):
            raise InputError(f"{_REFUSED}: {norm} has a shift where its gain is zero; {_MEND}")
        return shift / torch.where(gain == 0, 1.0, gain)

    @staticmethod
    def _write(block: Block, touch: StreamTouch, turn: Turn) -> None:
        if touch.parameter == "bias":
            bias = block.bias(touch.path)
            if bias is not None:
                block.set_bias(touch.path, turn(bias))
            return
        if touch.parameter != "weight":
            table: Tensor = block.attribute(touch.path, touch.parameter).detach().float()
            turned = turn(table.movedim(touch.axis, -1)).movedim(-1, touch.axis)
            block.set_parameter(touch.path, touch.parameter, turned)
            return
        w = block.weight(touch.path)
        turned = turn(w) if touch.axis == 1 else turn(w.t().contiguous()).t().contiguous()
        block.set_weight(touch.path, turned)


def _is_values(pair: PairView) -> bool:
    """Whether the pair is a value and an output projection, whose channels lie in heads that may be turned."""
    return pair.kind == "linear_linear" and pair.turns and pair.head_dim > 1 and len(pair.sinks) == 1


def _turns_values(pair: PairView) -> bool:
    """Whether the heads of such a pair have a Hadamard matrix of Sylvester's."""
    return _is_values(pair) and pair.head_dim & (pair.head_dim - 1) == 0


@dataclass(frozen=True)
class ValueRotation(DataFree):
    """Rotate every value head by a Hadamard matrix, undone in the output projection (the folded half of stage 1b)."""

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Fold the rotation into value and output projections."""
        places = []
        for pair in block.pairs:
            if not _turns_values(pair):
                if _is_values(pair):
                    events.record("not rotated", pair.source, f"heads of {pair.head_dim} channels are no power of two")
                elif pair.head_dim and not pair.turns:
                    events.record("not rotated", pair.source, "what lies behind its heads does not let them be turned")
                continue
            sink = pair.sinks[0]
            rows = own_rows(pair, block.weight(sink).shape[1])
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
    """A Hadamard transform in front of linears that write the residual stream and read no norm.

    These inputs (of the down projection; of the output projection) come out of products that no folded rotation
    passes, so the transform runs at inference time and is owned by the site.

    An output projection behind value heads that :class:`ValueRotation` turns by ``I (x) H_head`` gets ``H_heads (x) I``
    (section 4.1, "stage 1b"), so that both together are one Hadamard matrix of all channels. It runs as a transform of
    all channels and one within the heads, whose product it is: twice the paper's work, with one kind of operation.
    Where the number of heads has no matrix, or discovery does not know the heads, all channels are turned by a
    randomised matrix on top of the folded one.
    """

    @property
    def leaves_online(self) -> bool:
        """Its operation runs with the model."""
        return True

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Fold the inverse into the weights and leave the transform to the sites."""
        behind_norms = {sink for pair in block.pairs if pair.kind == "norm_linear" for sink in pair.sinks}
        heads = {sink: pair.head_dim for pair in block.pairs if _turns_values(pair) for sink in pair.sinks}
        places = []
        for path in block.linears:
            if path in behind_norms or block.quantizer(path) is None or not self._wanted(block, path):
                continue
            w = block.weight(path)
            head = heads.get(path, 0)
            if head and head < w.shape[1] and is_product(w.shape[1], head):
                turns = [(w.shape[1], -1), (head, -1)]
            else:
                turns = [(usable_block(w.shape[1], path, events), seed & ((1 << _SEED_BITS) - 1))]
            for size, signs in turns:
                w = apply_hadamard(w, size, signs)
                block.add_online(path, OnlineOperation("hadamard", (("size", size), ("seed", signs))))
            block.set_weight(path, w)
            places.append((path, {"block": float(turns[0][0])}))
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

    @property
    def leaves_online(self) -> bool:
        """Its operation runs with the model."""
        return True

    def apply(
        self, block: Block, statistics: Mapping[str, Mapping[Statistic, Any]], seed: int, events: Events
    ) -> TransformReport:
        """Leave the operation to the key site, once."""
        values = [pair.head_dim for pair in block.pairs if pair.kind == "linear_linear"]
        heads = [head for head in values if head]
        if values and not heads:
            reason = "no proved pair of a value and an output projection tells the size of a head"
            events.record("not rotated", f"{block.name}: keys and values", reason)
        if heads:
            block.add_online("key", OnlineOperation("hadamard", (("size", hadamard_block(heads[0])), ("seed", -1))))
        return TransformReport("key rotation", ())
