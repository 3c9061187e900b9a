"""What the float model answers to all recipes of one comparison, gathered in one pass over its units.

A recipe may take from the record what it would have read from the untouched float model: the statistics of its first
block transform or of its rounding, the float stream between the units, gradients of the whole model. Model-scope
transforms (rotations) change the coordinates of the stream, so a recipe that has one pays its own sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bitwright.jobs.engine import Engine
from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.opening import Job, make_batches, one_row
from bitwright.jobs.sweep import Requests, Results
from bitwright.models import discover, open_model
from bitwright.models.experts import open_experts
from bitwright.recipes import Recipe
from bitwright.statistics import Statistic

T = TypeVar("T")


class FloatRecord:
    """Statistics by unit and path, and the float stream behind every unit, of one model on one set of batches."""

    def __init__(self, streams: Mapping[str, HiddenStates], found: Mapping[str, Results]) -> None:
        self._streams = streams
        self._found = found
        self._once: dict[Hashable, Any] = {}

    def behind(self, unit: str) -> HiddenStates | None:
        """The float stream behind a unit; it stays the record's."""
        return self._streams.get(unit)

    def split(self, unit: str, requests: Requests) -> tuple[Results, Requests]:
        """What is known of the requests, and what is left to gather."""
        held = self._found.get(unit, {})
        known: Results = {path: {} for path in requests}
        left: dict[str, list[Statistic]] = {}
        for path, wanted in requests.items():
            for request in wanted:
                if request in held.get(path, {}):
                    known[path][request] = held[path][request]
                else:
                    left.setdefault(path, []).append(request)
        return known, left

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()`` of the first call with this key; for what the whole float model is run for."""
        if key not in self._once:
            self._once[key] = make()
        found: T = self._once[key]
        return found

    def clear(self) -> None:
        """Remove the streams' files."""
        for stream in self._streams.values():
            stream.clear()


def gather_float(jobs: Sequence[Job], window_bytes: int | None = None, spill: Path | None = None) -> FloatRecord | None:
    """One pass of the float model for all ``jobs``, which share model, data and batch size.

    Args:
        jobs: what will ask.
        window_bytes: bytes of each unit's stream that stay in memory; the rest goes to files under ``spill``.
        spill: folder for them.

    Returns:
        ``None`` where fewer than two of the jobs would read the float model.
    """
    batches = make_batches(jobs[0].data, jobs[0].batch_size)
    if not batches:
        return None
    model = open_model(jobs[0].model, stream=isinstance(jobs[0].model, str | Path))
    open_experts(model, one_row(batches[0]))
    structure = discover(model, one_row(batches[0]), proofs=False)
    asking = [Engine(job.recipe, model, structure, batches, twin=model) for job in jobs]
    asking = [e for e in asking if e.reads_float and not e.transforms_model]
    if len(asking) < 2:
        return None
    source = Engine(Recipe(name="float"), model, structure, batches, window_bytes=window_bytes, spill=spill)
    streams: dict[str, HiddenStates] = {}
    found: dict[str, Results] = {}
    for unit in source.units:
        wanted: dict[str, list[Statistic]] = {}
        for engine in asking:
            for path, requests in engine.float_requests(unit).items():
                wanted.setdefault(path, []).extend(requests)
        with source.loaded(unit):
            after = None
            if not all(engine.last_to_read(unit) for engine in asking):
                after = HiddenStates(len(batches), window_bytes, spill)
            found[unit.name] = source.sweep(unit, wanted, "float", onto=after)
        if after is not None:
            streams[unit.name] = source.float = after
    return FloatRecord(streams, found)
