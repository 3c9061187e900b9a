"""What Bitwright does with one model: what it finds, whether recipes run, whether transforms keep the float output."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.formats import parse
from bitwright.jobs.engine import Engine
from bitwright.jobs.transforming import transform_unit
from bitwright.jobs.untie import untie
from bitwright.models import Model, Structure, discover, open_model
from bitwright.models.calling import call_module
from bitwright.models.experts import open_experts
from bitwright.models.prove import relative_error
from bitwright.models.stream import logits_of
from bitwright.recipes import Recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.site import rule
from bitwright.stages.transforms import Transform, TransformReport
from bitwright.stages.transforms.activation_aware import ActivationAwareScaling
from bitwright.stages.transforms.rotation import ResidualRotation
from bitwright.stages.transforms.smoothing import Smoothing
from tests.architectures.batches import Batch
from tests.architectures.building import Built, NotBuilt, build, quiet
from tests.architectures.mappings import Entry

WEIGHTS = "int4 g32 sym"
TOLERANCE = 1e-3
TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "smoothing": lambda: Smoothing(kinds=("norm_linear", "linear_linear")),
    "scaling": lambda: ActivationAwareScaling(points=3),
    "rotation": ResidualRotation,
}


@dataclass(frozen=True)
class Kept:
    """Largest change of the output over its largest value under one transform, where and how often it was applied.

    ``error`` is None where it was not applied at all; ``why`` then says the reason. A failure has neither.
    """

    error: float | None = None
    places: int = 0
    why: str = ""
    failure: str = ""

    @property
    def fine(self) -> bool:
        """The output stayed, or there is a reason why the transform is not offered."""
        return not self.failure and (bool(self.why) if self.error is None else self.error < TOLERANCE)


@dataclass
class Row:
    """One class of the table."""

    key: str
    built: bool = False
    reason: str = ""
    parameters: int = 0
    blocks: int = 0
    sites: int = 0
    pairs: int = 0
    accounted: float = 0.0
    coded: float = 0.0
    unaccounted: list[str] = field(default_factory=list)
    exceptions: dict[str, str] = field(default_factory=dict)
    rtn: str = ""
    gptq: str = ""
    fallbacks: int = 0
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0


def measure(entry: Entry) -> Row:
    """Everything about one class."""
    started = time.perf_counter()
    row = Row(entry.key)
    try:
        built = build(entry)
    except NotBuilt as error:
        row.reason = str(error)
        return row
    row.built = True
    with quiet():
        measure_built(row, built)
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def measure_built(row: Row, built: Built) -> Row:
    """Fill a row for a model in memory; what fails is written down with its reason."""
    row.parameters = sum(p.numel() for p in built.module.parameters())
    try:
        structure = discover(_opened(copy.deepcopy(built.module), built.batch), built.batch)
    except Exception as error:
        row.reason = said("discovery", error)
    else:
        _account(row, built.module, structure)
        for name, make in TRANSFORMS.items():
            row.kept[name] = asdict(_kept(built, structure, name, make()))
    row.rtn, row.coded, _ = _quantized(built, "rtn")
    row.gptq, _, row.fallbacks = _quantized(built, "gptq")
    return row


def _account(row: Row, module: nn.Module, structure: Structure) -> None:
    row.blocks, row.sites, row.pairs = len(structure.blocks), len(structure.sites), len(structure.pairs)
    row.reasons = list(structure.reasons)
    sizes = {name: p.nbytes for name, p in module.named_parameters() if p.dim() >= 2}
    missing = list(structure.unaccounted)
    row.unaccounted = missing
    row.exceptions = dict(structure.exceptions)
    row.accounted = 1 - sum(sizes.get(name, 1) for name in missing) / max(1, sum(sizes.values()))


def _quantized(built: Built, recipe: str) -> tuple[str, float, int]:
    """("ok" or the reason, share of the weights' bytes that were coded, layers that fell back)."""
    module = copy.deepcopy(built.module)
    sizes = sum(p.numel() for p in module.parameters() if p.dim() >= 2)
    try:
        result = bw.quantize(module, recipe, [tensors_only(built.batch)], weights=WEIGHTS)
        output = output_of(module, built.batch)
    except Exception as error:
        return said(recipe, error), 0.0, 0
    if not bool(torch.isfinite(output).all()):
        return "the quantized model's output is not finite", 0.0, 0
    coded = sum(q.shape[0] * q.shape[1] for q in result.coded.values())
    fallbacks = sum(event.kind == "no calibration signal" for event in result.events)
    return "ok", coded / max(1, sizes), fallbacks


def _kept(built: Built, structure: Structure, name: str, transform: Transform) -> Kept:
    refused = _not_offered(structure, name)
    if refused:
        return Kept(why=refused)
    module = copy.deepcopy(built.module)
    expected = output_of(module, built.batch)
    try:
        places = apply(module, built.batch, structure, transform)
        error = relative_error(output_of(module, built.batch), expected)
    except InputError as refusal:
        return Kept(why=str(refusal))
    except Exception as failure:
        return Kept(failure=said(name, failure))
    if not places:
        return Kept(why=_idle(structure))
    return Kept(error, places)


def _idle(structure: Structure) -> str:
    """Why a transform of norms and linears found no place although there are pairs."""
    kinds = {pair.kind for pair in structure.pairs}
    if kinds and kinds <= {"batchnorm_conv", "conv_conv"}:
        return "its pairs are those of convolutions, which BatchNorm folding and equalization take"
    others = (r for r in structure.reasons if not r.startswith("residual rotation"))
    return next(others, "no pair lies inside one block")


def _not_offered(structure: Structure, name: str) -> str:
    if name == "rotation" and structure.residual is None:
        return next((r for r in structure.reasons if r.startswith("residual rotation")), "") or "no reason was given"
    if name != "rotation" and not structure.pairs:
        others = [r for r in structure.reasons if not r.startswith("residual rotation")]
        return others[0] if others else "no reason was given"
    return ""


def apply(module: nn.Module, batch: Batch, structure: Structure, *transforms: Transform) -> int:
    """Apply transforms to a module in place, weights stay float; the number of places that were changed."""
    weights = (rule("linear", Quantizer(parse("int4 channel"))),)
    recipe = Recipe(transforms=transforms, weights=weights, name="transforms")
    model = _opened(module, batch)
    if structure.ties and any(transform.unties for transform in transforms):
        untie(model, structure, [name for name, _ in structure.ties])
    engine = Engine(recipe, model, structure, [tensors_only(batch)])
    places = 0
    for unit in engine.units:
        reports: list[TransformReport] = transform_unit(engine, unit, engine._view(unit), Events())
        places += sum(len(report.places) for report in reports)
        engine._advance(unit, engine._float_outputs(unit))
    return places


def _opened(module: nn.Module, batch: Batch) -> Model:
    """The model as a job opens it."""
    model = open_model(module)
    open_experts(model, batch)
    return model


def tensors_only(batch: Batch) -> dict[str, Tensor]:
    """What a job takes as a calibration batch."""
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def output_of(module: nn.Module, batch: Batch) -> Tensor:
    """The output that is compared."""
    with torch.no_grad():
        return logits_of(call_module(module, batch))


def said(doing: str, error: BaseException) -> str:
    """A failure in one line."""
    return f"{doing}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
