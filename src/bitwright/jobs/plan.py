"""The plan: what each tensor gets and why, how large the result is, what the run will cost.

No weight is read, except by discovery, which runs the float model on one sequence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bitwright.jobs.legality import Legality, check_engine
from bitwright.jobs.memory import estimate_peak
from bitwright.jobs.opening import Job, Opened, open_job
from bitwright.jobs.planned_kernels import FLOAT_KERNEL, planned_decoding, planned_kernels
from bitwright.jobs.sizes import disk_bytes, is_exact, output_bytes, quantizer_bits
from bitwright.jobs.timing import Probe, estimate_seconds, probe_job
from bitwright.jobs.units import Unit, split_units


@dataclass(frozen=True)
class PlanRow:
    """One weight: where, its role and shape, the format it gets (or why it stays float), bits and bytes stored.

    ``kernel`` multiplies one token where activations may be rounded to 8 bits (``generate``, ``bench``, ``serve``),
    ``kernel_exact`` where not.
    """

    path: str
    role: str
    kind: str
    shape: tuple[int, int]
    format: str
    input_format: str
    bits_per_weight: float
    bytes: int
    reason: str
    kernel: str = ""
    kernel_exact: str = ""


@dataclass(frozen=True)
class Plan:
    """A planned job.

    ``bytes`` are those of the result's tensors (``bytes_exact``: to the byte), ``disk_bytes`` what the disk has to hold
    while the job runs, ``peak_memory_bytes`` anonymous memory above the start; ``time_basis`` says what ``seconds``
    rests on. ``floats`` are the parameters beside the rows, which stay float, with the reason; ``decoding`` is what
    :func:`bitwright.jobs.planned_kernels.planned_decoding` says.
    """

    recipe: str
    rows: tuple[PlanRow, ...]
    bytes: int
    bits_per_weight: float
    peak_memory_bytes: int
    seconds: float
    sweeps: tuple[str, ...]
    blocks: int
    reasons: tuple[str, ...]
    disk_bytes: int = 0
    bytes_exact: bool = True
    time_basis: str = ""
    legality: Legality | None = None
    floats: tuple[tuple[str, str], ...] = ()
    decoding: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The stable JSON form (``tensors`` holds the rows)."""
        found = asdict(self)
        found["tensors"] = found.pop("rows")
        found["floats"] = [{"name": name, "reason": why, "kernel": FLOAT_KERNEL} for name, why in self.floats]
        found.update(found.pop("decoding"))
        found["legal"] = self.legality is None or self.legality.legal
        return found


def plan(job: Job, *, probe: bool = False) -> Plan:
    """Plan a job, and ask the engine that it names whether it would serve the result.

    Args:
        job: what to do.
        probe: time this machine and the recipe's rounding on small random weights (a second or two), so that
            ``seconds`` is about what the run will take here; else it is what two server cores would take.

    Raises:
        InputError: for everything that would stop the run itself before its first unit.
    """
    started = time.perf_counter()
    opened = open_job(job)
    found = plan_opened(job, opened, probe_job(opened, time.perf_counter() - started) if probe else Probe())
    return replace(found, legality=check_engine(job, opened)) if job.engine else found


def plan_opened(job: Job, opened: Opened, probe: Probe | None = None) -> Plan:
    """Plan an opened job."""
    probe = probe or Probe()
    rows = [_row(opened, path) for path in opened.choices]
    coded = [r for r in rows if r.format]
    weights = sum(r.shape[0] * r.shape[1] for r in coded)
    written = output_bytes(opened)
    return Plan(
        recipe=job.recipe.name,
        rows=tuple(rows),
        bytes=written,
        bits_per_weight=sum(r.bits_per_weight * r.shape[0] * r.shape[1] for r in coded) / max(1, weights),
        peak_memory_bytes=estimate_peak(job, opened),
        seconds=estimate_seconds(job, opened, written, probe),
        sweeps=tuple(sweeps(job, opened, split_units(opened.structure))),
        blocks=len(opened.structure.blocks),
        reasons=opened.structure.reasons,
        disk_bytes=disk_bytes(job, opened),
        bytes_exact=all(is_exact(c.weight) for c in opened.choices.values()),
        time_basis=probe.basis,
        floats=tuple(_floats(opened)),
        decoding=planned_decoding(job, opened),
    )


def _row(opened: Opened, path: str) -> PlanRow:
    choice = opened.choices[path]
    site = choice.site
    weight = choice.weight
    bits = quantizer_bits(weight, site.shape) if weight is not None else 0
    count = site.shape[0] * site.shape[1]
    kernels = planned_kernels(choice)
    return PlanRow(
        path, site.role, site.kind, site.shape, "" if weight is None else str(weight.format),
        "" if choice.input is None else str(choice.input.format), bits / count if count else 0.0, -(-bits // 8),
        choice.reason, kernels.kernel, kernels.exact,
    )  # fmt: skip


def _floats(opened: Opened) -> Iterator[tuple[str, str]]:
    """Parameters that are no site of a product, with what they are."""
    structure = opened.structure
    sites = {choice.site.name for choice in opened.choices.values()} | {name for name, _ in structure.ties}
    known = {**dict.fromkeys(structure.unaccounted, "nothing is known of it"), **dict(structure.exceptions)}
    for norm in structure.norms:
        names = [f"{norm.path}.{name}" for name in (norm.weight, norm.bias) if name is not None]
        known.update(dict.fromkeys(names, f"of a {norm.kind} norm"))
    for name, parameter in opened.model.module.named_parameters():
        if name not in sites:
            yield name, known.get(name) or ("a vector: rules select matrices" if parameter.dim() < 2 else "no site")


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
