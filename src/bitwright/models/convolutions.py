"""Pairs of convolutional networks: BatchNorms that fold into the layer before, and layers whose channels can be
equalized through a positively homogeneous activation (cross-layer equalization)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bitwright.models.edits import input_channels, scale_inputs, scale_outputs
from bitwright.models.flow import Flow
from bitwright.models.model import Model
from bitwright.models.norms import channel_affine
from bitwright.models.prove import Prover, relative_error
from bitwright.models.scales import power_scales
from bitwright.models.sites import Use
from bitwright.models.structure import NormSite, Pair

TOLERANCE = 1e-4
# Cross-layer equalization passes activations that may saturate (a clipped rectifier): the proof scales far.
POWERS = 8


class ConvolutionFinder:
    """Proposes and proves BatchNorm→convolution and convolution→convolution pairs."""

    def __init__(self, model: Model, flow: Flow, prover: Prover) -> None:
        self.model = model
        self.flow = flow
        self.prover = prover
        self.reasons: list[str] = []
        self._generator = torch.Generator().manual_seed(1)
        self._folds: dict[str, NormSite] = {}

    def all_pairs(self) -> list[Pair]:
        """Every proved pair of both kinds."""
        folds = [pair for norm in self.flow.norms if norm.kind == "batch" for pair in self._fold(norm)]
        for pair in folds:
            norm = next(norm for norm in self.flow.norms if norm.path == pair.source)
            self._folds[pair.sinks[0]] = norm
        chains = [pair for use in self.flow.uses if use.site.kind == "conv" for pair in self._equalize(use)]
        return folds + chains

    def _fold(self, norm: NormSite) -> list[Pair]:
        """The BatchNorm with the layer whose output it alone reads."""
        call = self.flow.norm_calls[norm.path]
        entry = call.hidden
        if entry is None:
            return []
        source = next((use for use in self.flow.uses if use.result.key == entry.key), None)
        if source is None or source.site.kind == "embedding" or not source.site.whole:
            self.reasons.append(f"{norm.path}: no convolution or linear directly before it, so it stays")
            return []
        if any(not call.enter <= op.index < call.exit for op in self.flow.readers(entry.key)):
            self.reasons.append(f"{norm.path}: the output of {source.site.path} has other readers, so it is not folded")
            return []
        with self.model.unit(norm.path) as module, self.model.unit(source.site.path) as layer:
            error = _folding_error(layer, module, source, entry.shape)
        if error > TOLERANCE:
            self.reasons.append(f"{norm.path}: folding into {source.site.path} moves its output by {error:.1e}")
            return []
        return [Pair("batchnorm_conv", norm.path, (source.site.path,), error=error, block=norm.block)]

    def _equalize(self, source: Use) -> list[Pair]:
        """The convolution with all layers that read its channels through homogeneous operations."""
        norm = self._folds.get(source.site.path)
        key = source.result.key
        if norm is not None:
            result = self.flow.norm_calls[norm.path].result
            assert result is not None
            key = result.key
        sinks = self._channel_readers(key, source)
        if not sinks or source.site.tied_to is not None or (norm is not None and norm.weight is None):
            return []
        channels = source.site.shape[0]
        scale = power_scales(channels, POWERS, self._generator)
        edits = self._source_edits(source, norm, scale)
        control = dict(edits)
        for use in sinks:
            edits[use.site.name] = scale_inputs(self._value(use.site.name), use.site, 1 / scale)
        region = self.prover.region(source.op, sinks[-1].op, {source.site.block, *(s.site.block for s in sinks)})
        if not self.prover.error(region, edits) <= TOLERANCE:
            return []
        if self.prover.error(region, control) <= 10 * TOLERANCE:
            self.reasons.append(f"{source.site.path}: its scale does not reach the output of the example")
            return []
        error = self.prover.error(region, edits)
        through = (norm.path,) if norm is not None else ()
        paths = tuple(dict.fromkeys(use.site.path for use in sinks))
        return [Pair("conv_conv", source.site.path, paths, error=error, through=through, block=source.site.block)]

    def _channel_readers(self, key: int, source: Use) -> list[Use]:
        """Layers that read ``key`` through operations of one operand; empty where anything else reads it."""
        outputs = {ref.key for ref in self.flow.run.outputs}
        sinks: dict[str, Use] = {}
        waiting, seen = [key], {key}
        while waiting:
            current = waiting.pop()
            readers = list(self.flow.readers(current, source.op))
            if current in outputs or not readers:
                return []
            for op in readers:
                use = self.flow.by_op.get(op.index)
                if use is not None:
                    shape = tuple(self.model.module.get_parameter(_owner(use)).shape)
                    if use.site.kind == "embedding" or input_channels(use.site, shape) != source.site.shape[0]:
                        return []
                    sinks[use.site.name] = use
                    continue
                others = [r for _, r in op.inputs if r.key != current and r.key not in self.flow.run.constants]
                if others or op.index in self.flow.in_norm:
                    return []
                fresh = [ref for ref in op.outputs if ref.key not in seen and ref.floating]
                seen.update(ref.key for ref in fresh)
                waiting.extend(ref.key for ref in fresh)
        return list(sinks.values())

    def _source_edits(self, source: Use, norm: NormSite | None, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        if norm is not None:
            names = [f"{norm.path}.{name}" for name in (norm.weight, norm.bias) if name is not None]
            return {name: value * scale.to(value) for name, value in ((n, self._value(n)) for n in names)}
        edits = {source.site.name: scale_outputs(self._value(source.site.name), source.site, scale)}
        if source.site.bias is not None:
            value = self._value(source.site.bias)
            edits[source.site.bias] = value * scale.to(value)
        return edits

    def _value(self, name: str) -> torch.Tensor:
        return self.model.read_parameter(name)


def _owner(use: Use) -> str:
    return use.site.tied_to or use.site.name


def _folding_error(layer: nn.Module, norm: nn.Module, use: Use, shape: tuple[int, ...]) -> float:
    """Relative difference between norm(layer(x)) and the layer with the norm folded in, on random x (float64).

    The norm sees the layer's output in ``shape`` (tokens may be joined with the batch).
    """
    scale, shift = channel_affine(norm, len(shape), use.site.shape[0])
    plain, folded, norm = copy.deepcopy(layer).double(), copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    weight = folded.get_parameter(use.site.parameter)
    with torch.no_grad():
        weight.copy_(scale_outputs(weight, use.site, scale))
        leaf = use.site.bias.rpartition(".")[2] if use.site.bias is not None else "bias"
        old = getattr(folded, leaf, None)
        bias = torch.zeros_like(shift) if old is None else old.detach()
        folded.register_parameter(leaf, nn.Parameter(bias * scale + shift))
        x = torch.randn(use.entry.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(weight)
        y = plain(x)
        return relative_error(folded(x), norm(y.reshape(shape)).reshape(y.shape))
