"""What a job would take on a cluster: time and memory, simulated unit by unit from counts of operations.

The passes through a block and the rounding of its weights are spread, everything else stays in the process that runs
the job: what lies before and behind the blocks, installing, packing and writing, merging the collectors. Learning,
corrections and gradients of the whole model stay there too and are not counted. Sending is counted at the speed of the
network of that one process, from which every block and every second moment has to come.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitwright.errors import InputError, nearest_key
from bitwright.jobs.coding import coded_groups
from bitwright.jobs.command import size
from bitwright.jobs.engine import Engine
from bitwright.jobs.memory import estimate_peak
from bitwright.jobs.opening import Job, Opened, open_job
from bitwright.jobs.units import Unit
from bitwright.machine import usable_cores
from bitwright.statistics import Statistic

_FLOAT = 4
_NARROW = 2048
_KEYS = {"nodes", "mem", "cpus", "net"}


@dataclass(frozen=True)
class Nodes:
    """Equal machines: how many, bytes of memory, CPUs, and bytes per second that one sends or receives."""

    count: int
    memory: int
    cpus: int
    network: float


@dataclass(frozen=True)
class Rates:
    """What one task reaches with its threads.

    ``products`` and ``solve`` are multiply-adds per second of passes and second-order solves, ``handling`` float bytes
    per second that are installed, packed and written, ``merging`` bytes of collectors per second that are added up,
    ``task`` seconds that a task takes by itself.
    """

    products: float
    solve: float
    handling: float = 2e8
    merging: float = 2e9
    task: float = 0.01


@dataclass(frozen=True)
class ClusterPlan:
    """The simulated job: seconds on the cluster, in one process, and of the part that stays in one process.

    ``sent_bytes`` leave or reach the process that runs the job; ``driver_bytes`` and ``node_bytes`` are peaks of memory
    of that process' machine and of every other one.
    """

    nodes: int
    tasks_at_a_time: int
    seconds: float
    seconds_alone: float
    serial_seconds: float
    sent_bytes: int
    driver_bytes: int
    node_bytes: int
    fits: bool


@dataclass(frozen=True)
class _Sweep:
    """A pass over the data: multiply-adds per token on a cluster and in one process, bytes of all its collectors."""

    spread: float
    alone: float
    collected: int
    moves: bool
    spreads: bool


def parse_nodes(text: str) -> Nodes:
    """``nodes=8,mem=512GB`` with, if they are known, ``cpus=64`` (this machine's by default) and ``net=25Gb``.

    Raises:
        InputError: for unknown keys or values that are no numbers.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        key, sign, value = part.strip().partition("=")
        if key not in _KEYS or not sign:
            raise InputError(
                f"--cluster of a plan takes nodes=8,mem=512GB,cpus=64,net=25Gb, not {part!r}; {nearest_key(key, _KEYS)}"
            )
        found[key] = value
    bits = found.get("net", "10Gb")
    try:
        counts = int(found.get("nodes", "1")), int(found.get("cpus", str(usable_cores())))
        network = float(bits.removesuffix("Gb")) * 1e9 / 8
    except ValueError as error:
        raise InputError(f"--cluster {text!r}: {error}; write e.g. nodes=8,mem=512GB,cpus=64,net=25Gb") from error
    if min(counts) < 1 or network <= 0:
        raise InputError(f"--cluster {text!r}: nodes, cpus and net are positive")
    return Nodes(counts[0], size(found.get("mem", "")), counts[1], network)


def probe_rates(side: int = 1024) -> Rates:
    """Rates of this machine with torch's threads from a few matrix products; a solve reaches about half of them."""
    x = torch.ones(side, side)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - started)
    products = side**3 / best
    return Rates(products, products / 2)


def plan_cluster(job: Job, nodes: Nodes, rates: Rates | None = None) -> ClusterPlan:
    """Simulate a job on equal machines like this one, with as many threads per task as torch uses here.

    Raises:
        InputError: for everything that would stop the run itself before its first unit.
    """
    return simulate(job, open_job(job), nodes, rates or probe_rates(), torch.get_num_threads())


def simulate(job: Job, opened: Opened, nodes: Nodes, rates: Rates, threads: int) -> ClusterPlan:
    """Simulate an opened job.

    Raises:
        InputError: if a task wants more threads than a machine has CPUs.
    """
    slots = nodes.cpus // threads
    if not slots:
        raise InputError(f"a task computes with {threads} threads and a machine has {nodes.cpus} CPUs; lower --threads")
    engine = Engine(
        job.recipe, opened.model, opened.structure, opened.batches if opened.reads_data else [], twin=opened.twin
    )
    tokens = [next(iter(b.values())).numel() for b in engine.batches]
    found = _Simulated(nodes, rates, slots * nodes.count, tokens, _width(opened))
    for unit in engine.units:
        found.unit(engine, unit)
    driver = estimate_peak(job, opened) + found.largest_block + 2 * found.largest_shared
    node = found.largest_block + found.largest_shared + slots * (found.largest_task + 2 * found.largest_answer)
    fits = not nodes.memory or max(driver, node) <= nodes.memory
    return ClusterPlan(
        nodes.count, slots * nodes.count, found.seconds, found.alone, found.serial, found.sent, driver, node, fits
    )


class _Simulated:
    """Adds up units; all times in seconds."""

    def __init__(self, nodes: Nodes, rates: Rates, slots: int, tokens: Sequence[int], width: int) -> None:
        self.nodes, self.rates, self.slots, self.tokens, self.width = nodes, rates, slots, tokens, width
        self.seconds = self.alone = self.serial = 0.0
        self.sent = 0
        self.largest_block = self.largest_task = self.largest_shared = self.largest_answer = 0

    def unit(self, engine: Engine, unit: Unit) -> None:
        """Add one unit: its sweeps, its solves, and what is done with the results."""
        weights = sum(s.shape[0] * s.shape[1] for s in unit.sites)
        block = 2 * weights * _FLOAT  # rounded layers carry their codes and the values that they run on
        for sweep in _sweeps(engine, unit):
            self._sweep(sweep, block)
        self._solves(engine, unit)
        handled = sum(s.shape[0] * s.shape[1] for s in unit.sites if engine.coded(s)) * _FLOAT / self.rates.handling
        self._serial(handled)

    def _serial(self, seconds: float) -> None:
        self.seconds += seconds
        self.alone += seconds
        self.serial += seconds

    def _sweep(self, sweep: _Sweep, block: int) -> None:
        alone = sum(self.tokens) * sweep.alone / self.rates.products
        if not sweep.spreads or len(self.tokens) < 2:
            self._serial(alone)
            return
        self.alone += alone
        times = [t * sweep.spread / self.rates.products + self.rates.task for t in self.tokens]
        states = sum(self.tokens) * self.width * _FLOAT * (1 + sweep.moves)
        answers = len(self.tokens) * sweep.collected
        out = self.nodes.count * block / self.nodes.network
        streamed = (states + answers) / self.nodes.network + answers / self.rates.merging
        self.seconds += out + max(_scheduled(times, self.slots), streamed)
        self.sent += self.nodes.count * block + states + answers
        self.largest_block = max(self.largest_block, block)
        self.largest_answer = max(self.largest_answer, sweep.collected)
        activations = max(self.tokens) * self.width * _FLOAT * 8
        self.largest_task = max(self.largest_task, block + activations + sweep.collected)

    def _solves(self, engine: Engine, unit: Unit) -> None:
        for group in coded_groups(engine, unit):
            times = []
            needs = _needs(engine, [s.path for s in group])
            shared = sum(r.memory_bytes(group[0].shape[1]) for r in needs)
            for site in group:
                out, columns = site.shape
                work = 10.0 * out * columns + bool(needs) * columns * columns * (columns / 3 + out)
                sent = out * columns * _FLOAT + out * columns
                self.alone += work / self.rates.solve
                times.append(work / self.rates.solve + self.rates.task + sent / self.nodes.network)
                self.sent += sent
                own = 7 * out * columns * _FLOAT + shared + 3 * columns * columns * _FLOAT * bool(needs)
                self.largest_task = max(self.largest_task, own)
            readers = min(len(group), self.nodes.count)
            self.seconds += _scheduled(times, self.slots) + readers * shared / self.nodes.network
            self.sent += readers * shared
            self.largest_shared = max(self.largest_shared, shared)


def _sweeps(engine: Engine, unit: Unit) -> list[_Sweep]:
    """The passes of a unit, in the order of :meth:`Engine.work`."""
    if not engine.batches:
        return []
    sizes = {s.path: float(s.shape[0] * s.shape[1]) for s in unit.sites if s.kind != "embedding"}
    whole, block = sum(sizes.values()), unit.kind == "block"
    found = []
    for transform in engine.transforms_block:
        everywhere = [(s.shape[1], r) for s in unit.sites if s.path in sizes for r in transform.needs]
        found.append(_gathering(everywhere, whole, whole, block))
    if engine.reads_float:
        found.append(_gathering(_early(engine, unit, "float"), whole, whole, block))
    if early := _early(engine, unit, "block"):
        found.append(_gathering(early, whole, whole, block))
    ran = before = 0.0
    for group in coded_groups(engine, unit):
        late = [(group[0].shape[1], r) for r in _needs(engine, [s.path for s in group]) if r.prefix == "layer"]
        before = _before(sizes, group[0].path)
        if late:
            found.append(_gathering(late, before, before - ran, block))
            ran = before
    if engine.reads_quantized and not engine.last_to_read(unit):
        found.append(_Sweep(whole, whole - ran, 0, True, block))
    return found


def _gathering(wanted: Sequence[tuple[int, Statistic]], spread: float, alone: float, block: bool) -> _Sweep:
    """A sweep that gathers statistics, each at an input of so many channels."""
    held = [request.memory_bytes(columns) for columns, request in wanted]
    # A symmetric product of all channels costs a little more than half of a general one.
    work = sum(min(h / 8, 0.56 * columns**2) for h, (columns, _) in zip(held, wanted, strict=True))
    # What travels is the sum alone: fp64 for narrow layers, fp32 for wide ones.
    sums = [min(h, columns**2 * (8 if columns <= _NARROW else 4)) for h, (columns, _) in zip(held, wanted, strict=True)]
    spreads = block and all(getattr(r, "spreads", False) and not r.reads_twin for _, r in wanted)
    return _Sweep(spread + work, alone + work, sum(sums), False, spreads)


def _early(engine: Engine, unit: Unit, prefix: str) -> list[tuple[int, Statistic]]:
    groups = coded_groups(engine, unit)
    return [(g[0].shape[1], r) for g in groups for r in _needs(engine, [s.path for s in g]) if r.prefix == prefix]


def _needs(engine: Engine, paths: Sequence[str]) -> list[Statistic]:
    """What the weights of a group ask of their input, without repeats."""
    found: dict[Statistic, None] = {}
    for path in paths:
        weight = engine.choices[path].weight
        for request in weight.needs if weight is not None else ():
            if getattr(request, "reads", "input") == "input":
                found[request] = None
    return list(found)


def _before(sizes: dict[str, float], path: str) -> float:
    """Multiply-adds per token of the layers that run before one."""
    total = 0.0
    for other, work in sizes.items():
        if other == path:
            break
        total += work
    return total


def _scheduled(times: Sequence[float], slots: int) -> float:
    """Seconds until the last task ends when each starts, in order, where a place becomes free first."""
    free = [0.0] * min(slots, max(1, len(times)))
    for seconds in times:
        place = free.index(min(free))
        free[place] += seconds
    return max(free)


def _width(opened: Opened) -> int:
    if opened.structure.residual is not None:
        return opened.structure.residual.dim
    return max((s.shape[1] for s in opened.structure.sites), default=1)
