"""An estimate of a job's peak memory, made before any weight is read.

Three moments compete: the opening (discovery proves what transforms rely on), the rounding of a weight (its unit,
what was coded of it so far, the statistics, what the solver holds: counted on a small random weight) and the passes of
the data through a unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bitwright.jobs.opening import Job, Opened
from bitwright.jobs.sampling import Shape, working_bytes
from bitwright.jobs.units import Unit, split_units
from bitwright.machine import memory
from bitwright.models import WeightSite
from bitwright.stages.quantizer import Quantizer
from bitwright.statistics import Statistic

_FLOAT = 4
# What a job allocates whatever the model: journal, report, buffers of the matrix library.
_FIXED = 8_000_000
# The report's page, with the library that draws it.
_REPORT = 18_000_000
# Copies of what lies outside the blocks (embedding, head) that the proof of a rotation holds.
_ENDS_COPIES = 2.5
# Copies of all parameters while the whole float model is loaded and run backwards for gradients at its outputs, and for
# gradients of its weights.
_OUTPUT_COPIES, _WEIGHT_COPIES = 2.2, 3.2
# Copies of a weight that learning holds beside the weight: soft form, gradient, two moments and what autograd keeps.
_LEARNING_COPIES = 8


@dataclass(frozen=True)
class WorkingLaw:
    """Bytes that rounding a weight adds at its peak: ``per_weight out in + per_square in^2``."""

    per_weight: float
    per_square: float = 0.0

    def bytes(self, shape: Shape) -> int:
        """For a weight ``[out, in]``."""
        return int(self.per_weight * shape[0] * shape[1] + self.per_square * shape[1] ** 2)


def working_law(quantizer: Quantizer, shapes: Iterable[Shape]) -> WorkingLaw:
    """Count what a quantizer holds on small weights of the widest and the narrowest aspect among ``shapes``."""
    ordered = sorted(shapes, key=lambda s: (s[1] / s[0], s[0] * s[1]))
    tall, wide = ordered[0], ordered[-1]
    x, y = tall[1] / tall[0], wide[1] / wide[0]
    second = working_bytes(quantizer, wide) / (wide[0] * wide[1])
    if y < 1.5 * x:
        return WorkingLaw(second)
    first = working_bytes(quantizer, tall) / (tall[0] * tall[1])
    square = max((second - first) / (y - x), 0.0)
    return WorkingLaw(max(first - square * x, 0.0), square)


def estimate_peak(job: Job, opened: Opened) -> int:
    """Bytes of anonymous memory above the start, as :func:`bitwright.evaluation.memory.peak_memory` measures them."""
    units = split_units(opened.structure)
    laws = _laws(opened)
    kept = 0
    largest = max(opening_bytes(job, opened), gradients_bytes(job, opened), _REPORT if job.out is not None else 0)
    for unit in units:
        largest = max(largest, kept + _unit_bytes(job, opened, unit, laws) + _streams(job, opened))
        if job.out is None or not opened.model.streamed:
            kept += sum(_coded_bytes(job, opened, s) for s in unit.sites)
    return largest + _FIXED


def _laws(opened: Opened) -> dict[str, WorkingLaw]:
    """One law per quantizer, by its text."""
    shapes: dict[str, tuple[Quantizer, list[Shape]]] = {}
    for choice in opened.choices.values():
        if choice.weight is not None:
            shapes.setdefault(repr(choice.weight), (choice.weight, []))[1].append(choice.site.shape)
    return {text: working_law(quantizer, found) for text, (quantizer, found) in shapes.items()}


def opening_bytes(job: Job, opened: Opened) -> int:
    """What discovery holds of a streamed model: recently used weights and, for the proofs of transforms, a block and
    what is rewritten. Recipes that read no data run nothing.
    """
    if not opened.model.streamed or not (job.recipe.transforms or opened.reads_data):
        return 0
    blocks = [sum(s.shape[0] * s.shape[1] for s in unit.sites) * _FLOAT for unit in split_units(opened.structure)]
    largest = max((s.shape[0] * s.shape[1] * _FLOAT for s in opened.structure.sites), default=0)
    kept = min(sum(blocks), max(opened.model.kept_bytes, largest))
    if not job.recipe.transforms:
        return kept
    outside = max((s.shape[0] * s.shape[1] * _FLOAT for s in opened.structure.sites if s.block is None), default=0)
    return max(kept + 3 * max(blocks, default=0) // 2, int(_ENDS_COPIES * outside))


def gradients_bytes(job: Job, opened: Opened) -> int:
    """What backward passes of the whole float model hold, where a stage asks for them."""
    weights = sum(s.shape[0] * s.shape[1] for s in opened.structure.sites) * _FLOAT
    needs = [r for c in opened.choices.values() if c.weight is not None for r in c.weight.needs]
    if any(getattr(r, "reads", "input") == "weight gradient" for r in needs):
        return int(_WEIGHT_COPIES * weights)
    return int(_OUTPUT_COPIES * weights) if any(learn.needs_importance for learn in job.recipe.learn) else 0


def runs_units(job: Job, opened: Opened) -> bool:
    """Whether anything runs through the units, so that all of their weights are read."""
    return opened.reads_data or (job.verify and job.out is not None) or bool(job.recipe.transforms)


def _unit_bytes(job: Job, opened: Opened, unit: Unit, laws: dict[str, WorkingLaw]) -> int:
    runs = runs_units(job, opened)
    sites = [s for s in unit.sites if runs or opened.choices[s.path].weight is not None]
    held = 0
    if opened.model.streamed:
        held = sum(s.shape[0] * s.shape[1] * _FLOAT for s in sites)
    held *= 1 + (opened.twin is not None)
    early = sum(_result_bytes(r, g[0].shape[1]) for g in unit.groups for r in _needs(opened, g) if r.prefix != "layer")
    peak = held + _pass_bytes(opened, unit) + early
    coded, families = 0, dict[str, int]()
    for group in (*unit.groups, *((s,) for s in unit.sites if s.kind == "embedding")):
        columns = group[0].shape[1]
        late = [r for r in _needs(opened, group) if r.prefix == "layer"]
        results = sum(_result_bytes(r, columns) for r in late)
        collected = max((r.memory_bytes(columns) for r in late), default=0) + results
        if group[0].family:  # the experts of a family share a sweep, as far as the window allows
            families[group[0].family] = families.get(group[0].family, 0) + results
            collected = results = max(results, min(families[group[0].family], replay_window(job)))
        peak = max(peak, held + coded + early + collected + _pass_bytes(opened, unit) * bool(late))
        for site in group:
            weight = opened.choices[site.path].weight
            if weight is not None:
                working = laws[repr(weight)].bytes(site.shape) + site.shape[0] * site.shape[1] * _FLOAT
                peak = max(peak, held + coded + early + results + working)
                coded += _coded_bytes(job, opened, site)
    learning = _LEARNING_COPIES * _FLOAT * sum(s.shape[0] * s.shape[1] for s in unit.sites) if job.recipe.learn else 0
    return max(peak, held + coded + learning + _pass_bytes(opened, unit) * (3 if learning else 1))


def _coded_bytes(job: Job, opened: Opened, site: WeightSite) -> int:
    """A coded weight until its unit is written: a byte per code, the packed tensors, the copy that runs."""
    weight = opened.choices[site.path].weight
    if weight is None:
        return 0
    count = site.shape[0] * site.shape[1]
    # Without data only the few tokens of the verification run, on kernels that keep a form of the codes.
    running = _FLOAT * opened.reads_data or 1.5 * runs_units(job, opened)
    return int(count * (1 + running)) + weight.format.storage_bits(site.shape) // 8


def _needs(opened: Opened, group: Sequence[WeightSite]) -> list[Statistic]:
    found: dict[Statistic, None] = {}
    for site in group:
        weight = opened.choices[site.path].weight
        found.update(dict.fromkeys(weight.needs if weight is not None else ()))
    return [r for r in found if getattr(r, "reads", "input") == "input"]


def _result_bytes(request: Statistic, columns: int) -> int:
    """A finished statistic: second moments are fp32 matrices, all else is as large as what gathers it."""
    held = request.memory_bytes(columns)
    return min(held, _FLOAT * columns**2) if is_matrix(request) else held


def is_matrix(request: Statistic) -> bool:
    """Whether a statistic is a matrix over pairs of channels (asked at widths that sum in one precision)."""
    return request.memory_bytes(128) > 3 * request.memory_bytes(64)


def _pass_bytes(opened: Opened, unit: Unit) -> int:
    """Tensors that one batch makes inside a unit: what the widest group answers and half as much, and four streams."""
    if not opened.reads_data or unit.kind in ("prefix", "suffix"):
        return 0
    widest = max((sum(s.shape[0] for s in group) for group in unit.groups if not group[0].family), default=0)
    tokens = max((_tokens(batch) for batch in opened.batches), default=0)
    return int(tokens * _FLOAT * (1.5 * widest + 4 * _width(opened)))


def _streams(job: Job, opened: Opened) -> int:
    """Hidden states in memory, and what is kept of a unit's answers for its later sweeps."""
    if not opened.reads_data:
        return 0
    tokens = sum(_tokens(batch) for batch in opened.batches)
    # The float stream behind a unit is made before the one in front of it is let go.
    count = 2 * opened.reads_float + opened.reads_quantized
    held = tokens * _width(opened) * _FLOAT * count
    window = activation_window(job)
    held = held if window is None or job.out is None else min(held, count * window)
    return held + min(tokens * _FLOAT * _replayed_width(opened), replay_window(job))


def spilled_bytes(job: Job, opened: Opened) -> int:
    """Hidden states that go to disk."""
    window = activation_window(job)
    if window is None or job.out is None or not opened.reads_data:
        return 0
    stream = sum(_tokens(batch) for batch in opened.batches) * _width(opened) * _FLOAT
    return (2 * opened.reads_float + opened.reads_quantized) * max(0, stream - window)


def activation_window(job: Job) -> int | None:
    """Bytes of one stream that stay in memory; ``None``: all of it."""
    return None if job.max_memory is None else max(job.max_memory // 8, 16 << 20)


def replay_window(job: Job) -> int:
    """Bytes of what a unit's layers answered that are kept for its later sweeps: an eighth of what may be used."""
    allowed = job.max_memory if job.max_memory is not None else memory().available
    return max((allowed or 0) // 8, 16 << 20)


def _replayed_width(opened: Opened) -> int:
    """Channels per token that a unit keeps at most between its sweeps: its layers' outputs, except that of modules
    that are done with, only the last layer's output is left."""
    widest = 0
    for unit in split_units(opened.structure):
        late = [s for group in unit.groups for s in group if _reads_rounded(opened, s.path)]
        done: dict[str, list[int]] = {}
        for site in late:
            done.setdefault(site.path.rpartition(".")[0], []).append(site.shape[0])
        modules = list(done.values())
        for index, widths in enumerate(modules):
            widest = max(widest, sum(widths[:-1]) + sum(before[-1] for before in modules[:index]))
    return widest


def _reads_rounded(opened: Opened, path: str) -> bool:
    weight = opened.choices[path].weight
    return weight is not None and any(r.prefix == "layer" for r in weight.needs)


def _tokens(batch: dict[str, Tensor]) -> int:
    ids = batch.get("input_ids")
    return int(ids.numel()) if ids is not None else max(int(v.numel()) for v in batch.values())


def _width(opened: Opened) -> int:
    residual = opened.structure.residual
    if residual is not None:
        return residual.dim
    sites = (s for s in opened.structure.sites if s.kind == "linear" and s.role == "block")
    return max((s.shape[1] for s in sites), default=1)
