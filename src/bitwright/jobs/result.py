"""What a finished unit hands to the writer and to the running model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bitwright.formats import Format, QuantizedTensor
from bitwright.runtime.online import online_entries
from bitwright.stages.transforms import OnlineOperation


@dataclass(frozen=True)
class CodedFacts:
    """What is left of a coded weight once its tensors were written: text, shape, bits."""

    format: str
    terms: str
    shape: tuple[int, int]
    bits: int

    def storage_bits(self) -> int:
        """Stored bits of the weight."""
        return self.bits

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights."""
        return self.bits / (self.shape[0] * self.shape[1])


def coded_facts(weight: QuantizedTensor) -> CodedFacts:
    """Facts of a quantized tensor."""
    text = str(weight.codes.format) if weight.codes is not None else weight.normal_form
    return CodedFacts(text, weight.normal_form, weight.shape, weight.storage_bits())


@dataclass
class ModuleResult:
    """The coded form of one module: weight terms, input quantizer, online operations, bias."""

    path: str
    kind: str
    transposed: bool
    weight: QuantizedTensor | None
    bias: Tensor | None = None
    input_format: Format | None = None
    input_scale: Tensor | None = None
    input_zero: Tensor | None = None
    online: tuple[OnlineOperation, ...] = ()
    error: float = 0.0
    facts: CodedFacts | None = None
    _manifest: dict[str, Any] | None = field(default=None, repr=False)
    _packed: tuple[QuantizedTensor, dict[str, Tensor], dict[str, Any]] | None = field(default=None, repr=False)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weight's packed tensors and their metadata; packed once."""
        assert self.weight is not None
        if self._packed is None or self._packed[0] is not self.weight:
            self._packed = (self.weight, *self.weight.to_tensors())
        return self._packed[1], self._packed[2]

    def describe(self) -> CodedFacts | None:
        """Facts of the weight, ``None`` where it stays float."""
        return coded_facts(self.weight) if self.weight is not None else self.facts

    def let_go(self) -> None:
        """Drop the tensors (they are on disk); what the report and the manifest say stays."""
        self._manifest = self.manifest()
        self.facts = self.describe()
        self.weight = self.bias = self.input_scale = self.input_zero = self._packed = None

    def manifest(self) -> dict[str, Any]:
        """The module's entry in the manifest (see ``docs/formats.md``)."""
        if self._manifest is not None:
            return self._manifest
        meta = self.packed()[1] if self.weight is not None else None
        return {
            "kind": self.kind,
            "transposed": self.transposed,
            "weight": meta,
            "input": None if self.input_format is None else {"format": str(self.input_format)},
            "online": online_entries(self.online),
            "bias": self.bias is not None,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors as they are stored."""
        found: dict[str, Tensor] = {}
        if self.weight is not None:
            for key, value in self.packed()[0].items():
                found[f"{self.path}.weight_{key.replace('.', '_')}"] = value
        if self.bias is not None:
            found[f"{self.path}.bias"] = self.bias
        if self.input_scale is not None:
            found[f"{self.path}.input_scale"] = self.input_scale
        if self.input_zero is not None:
            found[f"{self.path}.input_zero"] = self.input_zero
        return found


@dataclass
class UnitResult:
    """A finished unit: coded modules, float parameters that a stage changed, modules that were folded away.

    ``tokens`` counts the calibration tokens of every expert by path.
    """

    name: str
    modules: dict[str, ModuleResult] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    cache_online: Mapping[str, tuple[OnlineOperation, ...]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[dict[str, Any]] = field(default_factory=list)

    def let_go(self) -> None:
        """Drop all tensors of a unit that was written."""
        for module in self.modules.values():
            module.let_go()
        self.changed.clear()
