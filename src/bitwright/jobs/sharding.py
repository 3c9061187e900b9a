"""One sweep through a block with its batches spread over workers.

Every batch is a task: it takes the block as it is now, and answers the collectors of every layer call and the hidden
state behind the block. The collectors are merged in the order in which one process would have made the calls. For
statistics that are a sum (or a maximum) over calls that is the same arithmetic, so the result has the same bits; only
those statistics are spread (``spreads``), whatever the number of workers.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.jobs.hidden import HiddenStates
from bitwright.jobs.runner import Runner
from bitwright.jobs.sweep import Gatherer, Results, StopSweep, input_hooks, stop_after
from bitwright.jobs.units import Unit
from bitwright.jobs.workers import Shared
from bitwright.models.stream import Call, hidden_of
from bitwright.statistics import Collector, Statistic

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine

logger = logging.getLogger(__name__)

Asked = Mapping[str, Sequence[Statistic]]
Seen = list[tuple[str, Statistic, Collector]]


@dataclass(frozen=True)
class ShardTask:
    """One batch through one block; paths are relative to the block.

    ``alone`` are layers that are their own twins, ``keep`` marks real tokens, ``stop`` is where the pass ends.
    """

    block: Shared[nn.Module]
    call: Call
    hidden: Tensor
    keep: Tensor | None
    asked: Asked
    alone: frozenset[str]
    stop: str | None
    moves: bool


def run_shard(task: ShardTask) -> tuple[Seen, Tensor | None]:
    """The collectors of the batch in call order, and the hidden state behind the block where it is wanted."""
    block = task.block.get()
    found: Seen = []

    def seen(path: str, module: nn.Module, x: Tensor) -> None:
        one = Gatherer(block, {path: task.asked[path]})
        one.alone, one.keep = task.alone, task.keep
        one(path, module, x)
        found.extend((path, request, collector) for (_, request), collector in one.collectors.items())

    output: Tensor | None = None
    with ExitStack() as stack:
        stack.enter_context(input_hooks(block, task.asked, seen))
        if task.stop is not None:
            stack.enter_context(stop_after(block, task.stop))
        stack.enter_context(suppress(StopSweep))
        with torch.no_grad():
            args, kwargs = task.call.filled(task.hidden)
            output = hidden_of(block(*args, **kwargs))
    return found, output if task.moves else None


def sweep_shards(
    engine: Engine,
    unit: Unit,
    runner: Runner,
    gatherer: Gatherer,
    hidden: HiddenStates,
    stop: str | None,
    onto: HiddenStates | None,
) -> Results | None:
    """Sweep on the engine's workers; ``None`` where this sweep belongs into one process."""
    requests = [r for wanted in gatherer.requests.values() for r in wanted]
    spreads = all(getattr(r, "spreads", False) for r in requests) and not gatherer.reads_twin
    alone_here = unit.kind != "block" or len(engine.batches) < 2 or engine.record is not None
    if alone_here or not spreads or not engine.workers.remote:
        return None
    block = _sent(engine, runner.model.module.get_submodule(unit.paths[0]))
    if block is None:
        return None
    inside = len(unit.paths[0]) + 1
    asked = {path[inside:]: wanted for path, wanted in gatherer.requests.items()}
    alone = frozenset(path[inside:] for path in gatherer.alone if path.startswith(unit.paths[0] + "."))
    end = None if stop is None else stop[inside:]

    def tasks() -> Iterator[ShardTask]:
        assert unit.block is not None
        for index in range(len(engine.batches)):
            call, state = runner.calls(index).blocks[unit.block], hidden[index]
            assert state is not None
            yield ShardTask(block, call, state, runner.keep(index), asked, alone, end, onto is not None)

    merged: dict[tuple[str, Statistic], Collector] = {}
    for index, (seen, output) in enumerate(engine.workers.map(run_shard, tasks())):
        for path, request, collector in seen:
            key = (unit.paths[0] + "." + path, request)
            if key in merged:
                merged[key].merge(collector)
            else:
                merged[key] = collector
        if onto is not None:
            assert output is not None
            onto[index] = output
    found: Results = {path: {} for path in gatherer.requests}
    for (path, request), total in merged.items():
        found[path][request] = total.result()
    return found


def _sent(engine: Engine, block: nn.Module) -> Shared[nn.Module] | None:
    """The block on its way to the workers; ``None`` where it cannot be pickled."""
    try:
        with _without_sources(block):
            return engine.workers.share(block)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        logger.info("%s cannot be sent to other machines (%s); its passes run in this process", type(block), error)
        return None


@contextmanager
def _without_sources(block: nn.Module) -> Iterator[None]:
    """Leave the float modules, which rounded ones keep beside them, at home."""
    kept: list[tuple[dict[str, Any], Any]] = [
        (m.__dict__, m.__dict__.pop("float_source")) for m in block.modules() if "float_source" in m.__dict__
    ]
    try:
        yield
    finally:
        for place, source in kept:
            place["float_source"] = source
