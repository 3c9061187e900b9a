"""Rounds small random weights as a recipe would, to learn what the real ones will cost.

Memory: the tensors that live at the same time are counted, which is exact and the same on every machine. All of a
solver's matrices are ``[out, in]`` or ``[in, in]``, so a sample of the same aspect scales with the square of its side.

Time: a sample of ``out`` rows and ``in`` columns takes

    A(in) + B(in) out,   A = a in + c in^3,   B = b in + d in^2,

per-column work, the factorisation of a second moment, work per weight, and the feedback between columns.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitwright.errors import BitwrightError
from bitwright.jobs.workers import Noted
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.solve import quantize_weight
from bitwright.statistics import Statistic

Shape = tuple[int, int]

# Weights of a sample whose memory is counted: twice what solvers round at once.
_COUNTED = 1 << 18
# Rows and columns of the samples that are timed, at most.
_ROWS, _COLUMNS = (32, 160), 512
# A sample that took so many seconds is not run again.
_LONG = 0.1
# Channels are counted in groups of this many, a multiple of the usual group sizes.
_GROUP = 128


class _Living(TorchDispatchMode):
    """Counts the bytes of storages that are alive, and their peak."""

    def __init__(self, given: Mapping[int, object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes = 0
        self._given = given
        self._holders: dict[int, set[int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and not x.is_meta:
                self._hold(x)
        return found

    def _hold(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self._given or id(x) in self._holders.get(place, ()):
            return
        if place not in self._holders:
            self._holders[place] = set()
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
        self._holders[place].add(id(x))
        weakref.finalize(x, self._drop, place, id(x), size)

    def _drop(self, place: int, holder: int, size: int) -> None:
        holders = self._holders.get(place)
        if holders is None:
            return
        holders.discard(holder)
        if not holders:
            del self._holders[place]
            self._bytes -= size


def probe_clock() -> Callable[[], float]:
    """What a probe is timed with: the processor's seconds on one thread, so that other processes do not slow it."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _statistic(request: Statistic, shape: Shape, generator: torch.Generator) -> Any:
    """What a request would give for inputs that are noise."""
    if getattr(request, "reads", "input") == "weight gradient":
        return torch.rand(shape, generator=generator)
    collector = request.open(shape[1])
    x = torch.randn(2 * shape[1], shape[1], generator=generator)
    collector.update(x, x * 1.01 if request.reads_twin else None)
    return collector.result()


def _sample(quantizer: Quantizer, shape: Shape) -> tuple[Tensor, WeightContext]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    return w, WeightContext("sample", {r: _statistic(r, shape, generator) for r in quantizer.needs}, 0, Noted())


def _solve(w: Tensor, quantizer: Quantizer, context: WeightContext) -> None:
    """What is done with a weight between its reading and its writing."""
    coded = quantize_weight(w, quantizer, context)
    (coded.dequantize() - w).norm()
    coded.to_tensors()


def working_bytes(quantizer: Quantizer, shape: Shape) -> int:
    """Bytes that rounding a weight ``[out, in]`` adds to the weight and its statistics, at the peak.

    The codes are among them. Where the recipe refuses the sample, six copies of the weight are assumed.
    """
    small = _smaller(shape)
    try:
        w, context = _sample(quantizer, small)
        with torch.no_grad(), _Living(_storages([w, *context.statistics.values()])) as living:
            _solve(w, quantizer, context)
    except (BitwrightError, ValueError):
        return 6 * 4 * shape[0] * shape[1]
    return int(living.peak * (shape[0] * shape[1]) / (small[0] * small[1]))


def _storages(values: list[Any]) -> dict[int, object]:
    """The storages of tensors, also of those in dataclasses."""
    found: dict[int, object] = {}
    for value in values:
        parts = [value] if isinstance(value, Tensor) else vars(value).values() if hasattr(value, "__dict__") else []
        found |= {x.untyped_storage().data_ptr(): x for x in parts if isinstance(x, Tensor)}
    return found


def _smaller(shape: Shape) -> Shape:
    """A shape of about the same aspect and at most about ``_COUNTED`` weights."""
    share = (_COUNTED / (shape[0] * shape[1])) ** 0.5
    if share >= 1:
        return shape
    columns = min(shape[1], max(_GROUP, round(shape[1] * share / _GROUP) * _GROUP))
    return max(1, round(shape[0] * columns / shape[1])), columns


@dataclass(frozen=True)
class SolveLaw:
    """Seconds of rounding one weight: ``a in + c in^3 + out (b in + d in^2)``."""

    a: float
    b: float
    c: float
    d: float

    def seconds(self, shape: Shape) -> float:
        """For a weight ``[out, in]``."""
        out, columns = shape
        return self.a * columns + self.c * columns**3 + out * (self.b * columns + self.d * columns**2)


def timed_law(quantizer: Quantizer, columns: int, matmul: float, factorise: float) -> SolveLaw | None:
    """Time a quantizer on small weights; ``None`` where it refuses them.

    Args:
        quantizer: what rounds.
        columns: width of the widest weight; samples are not wider.
        matmul: multiply-adds per second of this machine.
        factorise: seconds per ``in^3`` of a factorisation; counted where second moments are read.
    """
    wide = min(columns, _COLUMNS)
    narrow = max(wide // 2 // _GROUP * _GROUP, min(wide, _GROUP))
    moments = any(r.view == "columns" and r.memory_bytes(2) >= 16 for r in quantizer.needs)
    c = factorise if moments else 0.0
    try:
        fits = [(i, *_rows_law(quantizer, i)) for i in dict.fromkeys((narrow, wide))]
    except (BitwrightError, ValueError):
        return None
    i, constant, per_row = fits[-1]
    a = max(constant - c * i**3, 0.0) / i
    if len(fits) == 1:
        return SolveLaw(a, per_row / i, c, 0.0)
    first, second = (row / n for n, _, row in fits)
    d = min(max(second - first, 0.0) / (i - narrow), 8 / matmul)
    return SolveLaw(a, max(second - d * i, 0.0), c, d)


def _rows_law(quantizer: Quantizer, columns: int) -> tuple[float, float]:
    """Seconds of no rows, and of one more row."""
    least, most = (_seconds(quantizer, (rows, columns)) for rows in _ROWS)
    per_row = max(most - least, 0.1 * most) / (_ROWS[1] - _ROWS[0])
    return max(least - per_row * _ROWS[0], 0.0), per_row


def _seconds(quantizer: Quantizer, shape: Shape) -> float:
    """The shorter of two runs."""
    w, context = _sample(quantizer, shape)
    taken, clock = [], probe_clock()
    for _ in range(2):
        started = clock()
        with torch.no_grad():
            _solve(w, quantizer, context)
        taken.append(clock() - started)
        if taken[0] > _LONG:
            break
    return min(taken)
