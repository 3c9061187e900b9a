"""An estimate of a job's time: a short probe of this machine and of the recipe's own rounding, and operation counts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bitwright.jobs.memory import is_matrix, runs_units
from bitwright.jobs.opening import Job, Opened
from bitwright.jobs.sampling import SolveLaw, probe_clock, timed_law
from bitwright.jobs.units import Unit, split_units

# A fresh process that imports torch and transformers and opens the result, on a machine of the usual speed.
_START_SECONDS = 4.0
# The report's page: its library is imported and a few pictures are drawn.
_REPORT_SECONDS = 0.8
# Reading back: every weight is unpacked and multiplied by 64 tokens, every tensor is scanned; passes over the weights.
_READ_BACK_PASSES = 12
# Passes over a weight that learning makes in one step: soft rounding, its gradient, the optimiser.
_LEARNING_PASSES = 20


@dataclass(frozen=True)
class Rates:
    """How fast this machine is.

    Attributes:
        matmul: multiply-adds per second of fp32 matrix products.
        copy: bytes per second of an elementwise pass (read and written once).
        digest: bytes per second of sha256.
        factorise: seconds per ``in^3`` of a Cholesky factorisation.
        slowness: how many times slower the interpreter runs than the one the fixed times were measured with.
        measured: whether a probe found them; otherwise they are those of two server cores.
    """

    matmul: float = 60e9
    copy: float = 4e9
    digest: float = 1.2e9
    factorise: float = 8e-12
    slowness: float = 1.0
    measured: bool = False


@dataclass(frozen=True)
class Probe:
    """What a probe found: the machine's rates, the rounding's law by the text of the quantizer, seconds of opening."""

    rates: Rates = field(default_factory=Rates)
    laws: dict[str, SolveLaw] = field(default_factory=dict)
    opening: float = 1.0

    @property
    def basis(self) -> str:
        """What the time rests on, in words."""
        if not self.rates.measured:
            return "operation counts and the speed of two server cores (no probe)"
        return (
            f"a probe: {self.rates.matmul / 1e9:.1f} billion multiply-adds per second, "
            f"{self.rates.copy / 1e9:.1f} GB/s, and the rounding of {len(self.laws)} small weights"
        )


def _best(work: Callable[[], object], repeats: int = 3) -> float:
    taken = []
    clock = probe_clock()
    for _ in range(repeats):
        started = clock()
        work()
        taken.append(clock() - started)
    return max(min(taken), 1e-9)


def _interpreted() -> int:
    return sum(i & 3 for i in range(100_000))


def measure_rates() -> Rates:
    """Time a matrix product, an elementwise pass, sha256, a factorisation and a loop; well under a second."""
    x, w = torch.randn(512, 1024), torch.randn(1024, 1024)
    data = torch.randn(1 << 21)
    symmetric = w @ w.t() + 1024 * torch.eye(1024)
    octets = bytes(1 << 22)
    return Rates(
        matmul=x.shape[0] * w.numel() / _best(lambda: x @ w),
        copy=2 * data.nbytes / _best(lambda: data * 2),
        digest=len(octets) / _best(lambda: hashlib.sha256(octets).digest(), 2),
        factorise=_best(lambda: torch.linalg.cholesky_ex(symmetric), 2) / 1024**3,
        slowness=max(_best(_interpreted) / 0.0045, 0.25),
        measured=True,
    )


def probe_job(opened: Opened, opening: float) -> Probe:
    """Measure the machine and time each of the job's quantizers on small weights; ``opening``: seconds that took."""
    rates = measure_rates()
    widths: dict[str, int] = {}
    quantizers = {}
    for choice in opened.choices.values():
        if choice.weight is not None:
            text = repr(choice.weight)
            quantizers[text] = choice.weight
            widths[text] = max(widths.get(text, 0), choice.site.shape[1])
    found = {t: timed_law(q, widths[t], rates.matmul, rates.factorise) for t, q in quantizers.items()}
    return Probe(rates, {text: law for text, law in found.items() if law is not None}, opening)


def estimate_seconds(job: Job, opened: Opened, written: int, probe: Probe) -> float:
    """Seconds of the whole job: opening, every unit, the writing of ``written`` bytes, and reading back."""
    rates = probe.rates
    units = split_units(opened.structure)
    total = probe.opening + sum(_unit_seconds(job, opened, unit, probe) for unit in units)
    if job.out is not None:
        source = sum(i.bytes for i in opened.model.checkpoint.tensors.values()) if opened.model.checkpoint else written
        # Digests of what is read and of what is written; the file itself; the search for NaN in what is copied.
        total += (source + written) / rates.digest + 4 * written / rates.copy
        total += _REPORT_SECONDS * rates.slowness
        if job.verify:
            weights = sum(s.shape[0] * s.shape[1] for s in opened.structure.sites)
            total += _READ_BACK_PASSES * 8 * weights / rates.copy + 2 * 64 * weights / rates.matmul
            if job.fresh_process:
                total += _START_SECONDS * rates.slowness + probe.opening
    return total


def _unit_seconds(job: Job, opened: Opened, unit: Unit, probe: Probe) -> float:
    rates = probe.rates
    weights = sum(s.shape[0] * s.shape[1] for s in unit.sites)
    inner = sum(s.shape[0] * s.shape[1] for s in unit.sites if s.kind != "embedding")
    # Read, widened to fp32, and run on the probe of the verification.
    total = 8 * weights / rates.copy
    if runs_units(job, opened):
        total += 2 * 64 * inner / rates.matmul + 4 * 8 * weights / rates.copy
    for site in unit.sites:
        choice = opened.choices[site.path].weight
        if choice is None:
            continue
        law = probe.laws.get(repr(choice))
        total += law.seconds(site.shape) if law is not None else _counted_seconds(site.shape, bool(choice.needs), rates)
    if opened.reads_data:
        tokens = sum(_tokens(batch) for batch in opened.batches)
        total += tokens * inner * _passes(job, opened, unit) / rates.matmul
        total += _statistics_seconds(opened, unit, tokens, rates) + _learning_seconds(job, opened, unit, rates)
    return total


def _counted_seconds(shape: tuple[int, int], second_order: bool, rates: Rates) -> float:
    out, columns = shape
    feedback = rates.factorise * columns**3 + out * columns**2 / 2 / rates.matmul + 40e-6 * columns
    return 20 * 8 * out * columns / rates.copy + feedback * second_order


def _passes(job: Job, opened: Opened, unit: Unit) -> float:
    """Passes of all data through a unit; what a later sweep replays of an earlier one is not counted again."""
    if unit.kind in ("prefix", "suffix"):
        return 0.0
    prefixes = {r.prefix for c in opened.choices.values() if c.weight is not None for r in c.weight.needs}
    transforms = sum(t.scope == "block" for t in job.recipe.transforms)
    # A search within a transform compares about twenty candidates on a part of the unit and of the data.
    return opened.reads_float + opened.reads_quantized + ("block" in prefixes) + 3 * transforms


def _statistics_seconds(opened: Opened, unit: Unit, tokens: int, rates: Rates) -> float:
    """Second moments of a group's input: half a product, as they are symmetric; other statistics are one pass."""
    total = 0.0
    for group in unit.groups:
        columns = group[0].shape[1]
        weights = [w for s in group if (w := opened.choices[s.path].weight) is not None]
        for request in dict.fromkeys(r for w in weights for r in w.needs):
            matrix = is_matrix(request)
            total += tokens * columns**2 / 1.8 / rates.matmul if matrix else 8 * tokens * columns / rates.copy
    return total


def _learning_seconds(job: Job, opened: Opened, unit: Unit, rates: Rates) -> float:
    """Forward, backward by inputs and by weights, and elementwise work on the weights, at every step."""
    total = 0.0
    for learn in job.recipe.learn:
        steps = getattr(learn, "steps", 0)
        rows = learn.batch * _row_tokens(opened) if learn.batch else max(_tokens(b) for b in opened.batches)
        for site in unit.sites:
            if opened.choices[site.path].weight is not None and site.kind != "embedding":
                count = site.shape[0] * site.shape[1]
                total += steps * (3 * rows * count / rates.matmul + _LEARNING_PASSES * 8 * count / rates.copy)
    return total


def _row_tokens(opened: Opened) -> int:
    batch = opened.batches[0]
    first = next(iter(batch.values()))
    return math.ceil(_tokens(batch) / max(1, first.shape[0]))


def _tokens(batch: dict[str, torch.Tensor]) -> int:
    ids = batch.get("input_ids")
    return int(ids.numel()) if ids is not None else max(int(v.numel()) for v in batch.values())
