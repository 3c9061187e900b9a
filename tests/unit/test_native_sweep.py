"""The compiled column sweep against its definition, and against the sweep on torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.native import extension, instruction_sets, library, unavailable
from bitwright.native.buffers import NOTHING, span
from bitwright.native.sweep import AFFINE, ColumnSweep, RoundingRule
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.ranges import MinMax
from bitwright.stages.rounding import sweep as torch_sweep
from bitwright.stages.rounding.asymmetric import carry_factor
from bitwright.stages.rounding.compiled import serves, sweep_blocks
from bitwright.stages.rounding.second_order import column_order, feedback_factor, ordered
from bitwright.stages.rounding.sweep import Factor
from tests.unit.layer_problem import Layer, correlated_layer

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()
TEXTS = ["int4 g16 asym", "int3 channel", "int8 g128", "nf4 g16", "e2m1 g16", "e4m3 channel", "mxfp4", "nvfp4",
         "int4 tensor", "int4 g8 axis=0", "int4 block8x16", "int4 g20 asym", "int4 b12 asym", "ternary channel",
         "lut3 channel", "lut2 g16", "int4 g16 zero=fp16"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Problem:
    """A layer, the order of its columns, and the factors in that order."""

    layer: Layer
    order: Tensor
    factor: Factor
    carry: Tensor | None

    def bind(self, text: str) -> BoundQuantizer:
        fmt = parse(text)
        tables = None
        if text.startswith("lut"):
            layout = fmt.granularity.layout((self.layer.w.shape[0], self.layer.w.shape[1]))
            share = torch.linspace(0.05, 0.95, 1 << fmt.grid.bits)
            tables = torch.quantile(layout.split(self.layer.w), share, dim=-1).permute(1, 2, 0).contiguous()
        return BoundQuantizer(fmt, MinMax(), self.layer.w, codebook=tables)


def problem(out: int, columns: int, order: str, carried: bool = False) -> Problem:
    layer = correlated_layer(out=out, columns=columns)
    places = column_order(layer.h, order)
    factor = feedback_factor(ordered(layer.h, places), 0.01, layer.context())
    carry = carry_factor(0.5 * ordered(layer.cross, places), factor) if carried else None
    return Problem(layer, places, factor, carry)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c rounded once: the product of two fp32 is exact in fp64."""
    return (a.double() * b.double() + c.double()).float()


def slow_sweep(given: Problem, bound: BoundQuantizer) -> Tensor:
    """The definition: each finished column feeds back to all later ones, one after the other."""
    w, upper, carry = given.layer.w, given.factor.upper, given.carry
    order = given.order.tolist()
    natural = order == sorted(order)
    importance = torch.empty(len(order))
    importance[given.order] = given.factor.pivots
    spans = dict(bound.spans) if natural and bound.refits else {}
    if not spans:
        bound.open_all(w, importance)
    x, value = w[:, given.order].clone(), torch.empty_like(w)
    for k, place in enumerate(order):
        if k in spans:
            free = x[:, k : spans[k]].clone()
            for i in range(k, spans[k]):
                change = (w[:, i] - free[:, i - k])[:, None]
                free[:, i - k + 1 :] = fused(upper[i, i + 1 : spans[k]], change, free[:, i - k + 1 :])
            bound.open(k, spans[k], free, importance)
        current = x[:, k : k + 1].clone()
        value[:, place] = bound.round(place, place + 1, current)[:, 0]
        error = (w[:, place] - value[:, place])[:, None]
        x[:, k + 1 :] = fused(upper[k, k + 1 :], error, x[:, k + 1 :])
        if carry is not None:
            x[:, k + 1 :] = fused(carry[k, k + 1 :], current, x[:, k + 1 :])
    return value


def run(given: Problem, bound: BoundQuantizer, block: int, name: str | None = None) -> Tensor:
    """The compiled sweep, as the stage calls it, on a chosen instruction set."""
    columns = given.layer.w.shape[1]
    importance = torch.empty(columns)
    importance[given.order] = given.factor.pivots
    refit = bool((given.order.diff() == 1).all()) and bound.refits
    spans = dict(bound.spans) if refit else {}
    if not refit:
        bound.open_all(given.layer.w, importance)
    widest = max((stop - start for start, stop in spans.items() if start > 0), default=0)
    blocks = torch_sweep._blocks(columns, max(block, widest), spans)
    kernels = library(name) if name else None
    return sweep_blocks(
        given.layer.w, bound, given.order, given.factor.upper, given.carry, blocks, spans, importance, kernels
    )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", TEXTS)
def test_equals_the_definition(text: str, name: str) -> None:
    """The same codes, parameters and values, bit for bit, on every instruction set and in blocks of any width."""
    for order, carried, block in (("natural", False, 24), ("activation", True, 512)):
        given = problem(35, 45, order, carried)
        plain, fast = given.bind(text), given.bind(text)
        assert serves(given.layer.w, fast)
        wanted = slow_sweep(given, plain)
        value = run(given, fast, block, name)
        assert torch.equal(plain.codes, fast.codes)
        assert torch.equal(plain.scale, fast.scale)
        assert torch.equal(value, wanted)
        assert torch.equal(fast.finish().dequantize(), value)


def test_long_spans_are_looked_at_in_pieces() -> None:
    """A span of more columns than one call rounds, behind a column 0 that is another's, with a carry."""
    given = problem(3, 300, "natural", carried=True)
    plain, fast = given.bind("int4 g140 asym"), given.bind("int4 g140 asym")
    wanted = slow_sweep(given, plain)
    assert torch.equal(run(given, fast, 64), wanted)
    assert torch.equal(plain.scale, fast.scale)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(1, 100),
    st.sampled_from(["natural", "activation"]),
    st.booleans(),
)
def test_nothing_but_the_problem_matters(out: int, columns: int, block: int, order: str, carried: bool) -> None:
    """Odd shapes: blocks, threads and instruction sets give the same bits."""
    given = problem(out, columns, order, carried)
    found = []
    for name in SETS:
        bound = given.bind("int4 g16 asym")
        found.append((run(given, bound, block, name), bound.codes))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        bound = given.bind("int4 g16 asym")
        found.append((run(given, bound, 512), bound.codes))
    finally:
        torch.set_num_threads(threads)
    for value, codes in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(codes, found[0][1])


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("text", ["int4 g32", "nf4 g32", "lut3 channel"])
def test_differs_from_torch_only_from_a_border_on(text: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of feedback differ in their last bits; a code does only where that decides, and behind it in the row."""
    given = problem(64, 256, order, carried=True)
    plain, fast = given.bind(text), given.bind(text)
    with monkeypatch.context() as patch:
        patch.setattr(torch_sweep, "serves", lambda w, bound: False)
        torch_sweep.sweep(given.layer.w, plain, given.order, given.factor, given.carry)
    torch_sweep.sweep(given.layer.w, fast, given.order, given.factor, given.carry)
    differs = (plain.codes != fast.codes)[:, given.order]
    rows = differs.any(1)
    # Neighbouring levels: the two sums lie on the two sides of one border.
    first = differs.int().argmax(1)
    pairs = [codes[:, given.order].gather(1, first[:, None])[rows].int() for codes in (plain.codes, fast.codes)]
    assert bool(((pairs[0] - pairs[1]).abs() <= 1).all())
    assert int(rows.sum()) <= 3


def zero_problem(out: int = 33, columns: int = 20) -> Problem:
    layer = Layer(torch.zeros(out, columns), torch.eye(columns), torch.zeros(columns, columns))
    return Problem(layer, torch.arange(columns), Factor(torch.zeros(columns, columns), torch.ones(columns)), None)


@pytest.mark.parametrize("text", ["int4 g16 asym", "nf4 g16", "int4 channel"])
def test_zeros_stay_zeros(text: str) -> None:
    given = zero_problem()
    bound = given.bind(text)
    assert torch.equal(run(given, bound, 512), torch.zeros(33, 20))


@pytest.mark.parametrize("name", SETS)
def test_values_that_are_no_numbers_go_to_an_end_of_the_grid(name: str) -> None:
    w = torch.tensor([[float("nan"), float("inf"), float("-inf"), 0.4]]).T.contiguous()
    rule = RoundingRule(AFFINE, torch.zeros(1, dtype=torch.int32), torch.ones(1, 32), None, -8.0, 7.0)
    sweep = ColumnSweep(w, torch.arange(1), torch.zeros(1, 1), None, 1, library(name))
    sweep.begin(0, 1)
    sweep.round(0, 1, rule)
    assert sweep.codes.flatten().tolist() == [0, 15, 0, 8]
    assert sweep.values().flatten().tolist() == [-8.0, 7.0, -8.0, 0.0]


def sweep_arguments(**changes: Any) -> list[Any]:
    """Arguments of the compiled view of a sweep over [40, 8], some of them wrong."""
    plain: dict[str, Any] = {
        "out": 40,
        "in": 8,
        "upper": torch.zeros(8, 8),
        "carry": None,
        "order": torch.arange(8),
        "target": torch.zeros(64 * 8),
        "history": torch.zeros(64 * 8),
    }
    return list((plain | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"out": 0},
        {"in": 9},
        {"out": 65},
        {"in": 1 << 40},
        {"upper": torch.zeros(8, 7)},
        {"carry": torch.zeros(3)},
        {"order": torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])},
        {"order": torch.tensor([0, 1, 2, 3, 4, 5, 6, 8])},
        {"order": torch.tensor([0, 1, 2, 3, 4, 5, 6, -1])},
        {"target": torch.zeros(63 * 8)},
        {"carry": torch.zeros(8, 8)},
    ],
)
def test_wrong_sweeps_are_refused(changes: dict[str, Any]) -> None:
    values = [NOTHING if v is None else span(v) if isinstance(v, Tensor) else v for v in sweep_arguments(**changes)]
    with pytest.raises(ValueError):
        extension().Sweep(*values)


def test_wrong_calls_are_refused() -> None:
    kernels, x = library(), torch.zeros(64 * 4)
    kept = sweep_arguments()
    sweep = extension().Sweep(*[NOTHING if v is None else span(v) if isinstance(v, Tensor) else v for v in kept])
    rule = RoundingRule(AFFINE, torch.zeros(8, dtype=torch.int32), torch.ones(1, 64), None, -8.0, 7.0)
    codes, current = torch.zeros(40, 8, dtype=torch.uint8), torch.zeros(40, 4)
    for start, count in ((-1, 4), (5, 4), (0, 5), (0, -1)):
        with pytest.raises(ValueError):
            kernels.sweep_begin(sweep, start, count, span(x), 1)
    for run_of in ((0, 3, 2, 4), (-1, 0, 0, 4), (0, 1, 1, 5), (2, 1, 2, 4)):
        with pytest.raises(ValueError):
            kernels.sweep_feed(sweep, 0, 4, span(x), *run_of, 1)
    for first, last, handle, target in (
        (0, 5, rule.handle(40, 8), codes),
        (3, 2, rule.handle(40, 8), codes),
        (0, 4, rule.handle(40, 8), codes[:39]),
        (0, 4, RoundingRule(AFFINE, rule.sets, torch.ones(1, 32), None, -8.0, 7.0).handle(32, 8), codes),
    ):
        with pytest.raises(ValueError):
            kernels.sweep_round(sweep, 0, 4, span(x), first, last, handle, span(target), 1)
    for stride, offset in ((3, 0), (4, 1), (4, -1), (5, 0)):
        with pytest.raises(ValueError):
            kernels.sweep_look(sweep, 0, 4, span(x), 0, 4, span(current), stride, offset, 1)
    with pytest.raises(ValueError):
        kernels.sweep_values(sweep, span(current), 1)


@pytest.mark.parametrize(
    "rule",
    [
        RoundingRule(AFFINE, torch.ones(8, dtype=torch.int32), torch.ones(1, 64)),
        RoundingRule(AFFINE, torch.zeros(7, dtype=torch.int32), torch.ones(1, 64)),
        RoundingRule(AFFINE, torch.zeros(8, dtype=torch.int32), torch.ones(1, 40)),
        RoundingRule(AFFINE, torch.zeros(8, dtype=torch.int32), torch.ones(1, 64), torch.ones(1, 1)),
        RoundingRule(AFFINE, torch.zeros(8, dtype=torch.int32), torch.ones(1, 64), None, 0.0, 256.0),
        RoundingRule(
            1, torch.zeros(8, dtype=torch.int32), torch.ones(1, 64), table=torch.ones(4), borders=torch.ones(2)
        ),
        RoundingRule(2, torch.zeros(8, dtype=torch.int32), table=torch.ones(1, 4, 64), borders=torch.ones(1, 3, 63)),
        RoundingRule(3, torch.zeros(8, dtype=torch.int32), torch.ones(1, 64)),
    ],
)
def test_wrong_rules_are_refused(rule: RoundingRule) -> None:
    with pytest.raises(InputError):
        rule.handle(40, 8)
