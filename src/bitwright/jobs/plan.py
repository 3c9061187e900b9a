"""The plan: what each tensor gets and why, how large the result is, what the run will cost. No weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bitwright.jobs.legality import Legality, check_engine
from bitwright.jobs.memory import estimate_peak
from bitwright.jobs.opening import Job, Opened, open_job
from bitwright.jobs.stored import source_bytes
from bitwright.jobs.units import Unit, split_units
from bitwright.stages.quantizer import Quantizer

# Multiply-adds per second that two server cores reach in fp32 matrix products; only the time estimate uses it.
_FLOPS = 60e9


@dataclass(frozen=True)
class PlanRow:
    """One weight: where, its role and shape, the format it gets (or why it stays float), bits and bytes stored."""

    path: str
    role: str
    kind: str
    shape: tuple[int, int]
    format: str
    input_format: str
    bits_per_weight: float
    bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """A planned job."""

    recipe: str
    rows: tuple[PlanRow, ...]
    bytes: int
    bits_per_weight: float
    peak_memory_bytes: int
    seconds: float
    sweeps: tuple[str, ...]
    blocks: int
    reasons: tuple[str, ...]
    legality: Legality | None = None

    def as_json(self) -> dict[str, Any]:
        """The stable JSON form (``tensors`` holds the rows)."""
        found = asdict(self)
        found["tensors"] = found.pop("rows")
        found["legal"] = self.legality is None or self.legality.legal
        return found


def plan(job: Job) -> Plan:
    """Plan a job, and ask the engine that it names whether it would serve the result.

    Raises:
        InputError: for everything that would stop the run itself before its first unit.
    """
    opened = open_job(job)
    found = plan_opened(job, opened)
    return replace(found, legality=check_engine(job, opened)) if job.engine else found


def plan_opened(job: Job, opened: Opened) -> Plan:
    """Plan an opened job."""
    rows = [_row(opened, path) for path in opened.choices]
    coded = [r for r in rows if r.format]
    weights = sum(r.shape[0] * r.shape[1] for r in coded)
    units = split_units(opened.structure)
    return Plan(
        recipe=job.recipe.name,
        rows=tuple(rows),
        bytes=_total_bytes(opened, coded),
        bits_per_weight=sum(r.bits_per_weight * r.shape[0] * r.shape[1] for r in coded) / max(1, weights),
        peak_memory_bytes=estimate_peak(job, opened),
        seconds=_seconds(opened, units),
        sweeps=tuple(sweeps(job, opened, units)),
        blocks=len(opened.structure.blocks),
        reasons=opened.structure.reasons,
    )


def _row(opened: Opened, path: str) -> PlanRow:
    choice = opened.choices[path]
    site = choice.site
    weight = choice.weight
    bits = quantizer_bits(weight, site.shape) if weight is not None else 0
    count = site.shape[0] * site.shape[1]
    return PlanRow(
        path, site.role, site.kind, site.shape, "" if weight is None else str(weight.format),
        "" if choice.input is None else str(choice.input.format), bits / count if count else 0.0, -(-bits // 8),
        choice.reason,
    )  # fmt: skip


def quantizer_bits(quantizer: Quantizer, shape: tuple[int, int]) -> int:
    """Stored bits of a weight under a quantizer, with its residual terms (sparse ones as planned)."""
    bits = quantizer.format.storage_bits(shape)
    for residual in quantizer.residuals:
        estimate = getattr(residual, "storage_bits", None)
        bits += int(estimate(shape)) if estimate is not None else 0
    return bits


def _total_bytes(opened: Opened, coded: Sequence[PlanRow]) -> int:
    checkpoint = opened.model.checkpoint
    if checkpoint is not None:
        total = sum(info.bytes for info in checkpoint.tensors.values())
        for row in coded:
            total += row.bytes - source_bytes(opened.model, f"{row.path}.weight")
        return total
    total = sum(t.nbytes for t in opened.model.module.state_dict().values())
    for row in coded:
        weight = opened.model.module.get_submodule(row.path).get_parameter("weight")
        total += row.bytes - weight.nbytes
    return total


def sweeps(job: Job, opened: Opened, units: Sequence[Unit]) -> list[str]:
    """Passes over the data per unit, in words."""
    found = []
    scopes = [type(t).__name__ for t in job.recipe.transforms if t.scope == "block"]
    found += [f"float statistics for {name}" for name in scopes]
    prefixes: dict[str, int] = {}
    for unit in units:
        for group in unit.groups:
            needs = {r.prefix for s in group if (q := opened.choices[s.path].weight) is not None for r in q.needs}
            for prefix in needs:
                prefixes[prefix] = prefixes.get(prefix, 0) + 1
    for prefix in ("float", "block"):
        if prefix in prefixes:
            found.append(f"one {prefix}-stream sweep per unit")
    if "layer" in prefixes:
        found.append(f"{prefixes['layer']} sweeps over parts of units (one per group of layers with a shared input)")
    if opened.reads_quantized:
        found.append("one pass per unit to move the quantized stream on")
    if opened.reads_float:
        found.append("one pass per unit to move the float stream on")
    return found


def _seconds(opened: Opened, units: Sequence[Unit]) -> float:
    """A rough time from operation counts: forward passes of the sweeps and second-order solves."""
    tokens = sum(next(iter(b.values())).numel() for b in opened.batches) if opened.reads_data else 0
    work = 0.0
    for unit in units:
        size = sum(s.shape[0] * s.shape[1] for s in unit.sites if s.kind != "embedding")
        passes = 1 + len(unit.groups) + opened.reads_float
        work += passes * tokens * size * opened.reads_data
        for site in unit.sites:
            choice = opened.choices[site.path].weight
            out, columns = site.shape
            if choice is not None:
                # Packing and rounding cost about ten elementwise passes.
                work += 10 * out * columns
                if choice.needs:
                    work += columns * columns * (columns / 3 + out) + tokens * columns * columns
    return work / _FLOPS
