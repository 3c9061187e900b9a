"""Compiled trellis codes: the search against its definition code by code, products against the decoded matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import TrellisGrid
from bitwright.formats.trellis import viterbi
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native import trellis as native
from bitwright.native.buffers import float_code, span
from bitwright.native.linear import tiled

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()
GRIDS = (
    TrellisGrid(1, "1mad", 6, 12), TrellisGrid(2, "3inst", 6, 8), TrellisGrid(3, "1mad", 7, 5),
    TrellisGrid(4, "3inst", 8, 3), TrellisGrid(1, "3inst", 11, 64), TrellisGrid(2, "1mad", 10, 33),
    TrellisGrid(3, "3inst", 12, 32), TrellisGrid(4, "1mad", 12, 32), TrellisGrid(2, "1mad", 16, 48),
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sought(grid: TrellisGrid, x: Tensor, name: str, importance: Tensor | None = None, around: int = 0) -> Tensor:
    found = native.search(
        x, grid.values(), grid.bits, grid.state_bits, grid.span, around or grid.span // 2, importance, library(name)
    )
    assert found is not None
    return found


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.text)
def test_finds_the_codes_of_the_definition(grid: TrellisGrid, name: str) -> None:
    rows, runs = (1, 1) if grid.state_bits == 16 else (6, 2)
    x = random(rows, runs * grid.span, seed=grid.bits)
    importance = random(runs * grid.span, seed=9).exp()
    assert torch.equal(sought(grid, x, name, importance), viterbi(grid, x, importance))
    if grid.state_bits == 16:
        return
    assert torch.equal(sought(grid, x, name), viterbi(grid, x))
    part = x[:, : grid.span].contiguous()
    assert torch.equal(sought(grid, part, name, around=1), viterbi(grid, part, around=1))


@pytest.mark.parametrize("name", SETS)
def test_ties_zeros_and_extremes(name: str) -> None:
    grid = TrellisGrid(2, "1mad", 8, 16)
    even = TrellisGrid(2, "1mad", 8, 16).values().round()  # many equal costs
    x = torch.stack([torch.zeros(16), torch.full((16,), 1e19), torch.full((16,), -1e-30), torch.arange(16.0) - 8])
    codes = sought(grid, x, name)
    assert torch.equal(codes, viterbi(grid, x))
    found = native.search(x, even, 2, 8, 16, 8, None, library(name))
    assert found is not None
    assert torch.equal(found, native.search(x, even, 2, 8, 16, 8, None, library("scalar")))
    nothing = sought(grid, x, name, torch.zeros(16))
    assert torch.equal(nothing, viterbi(grid, x, torch.zeros(16)))


def test_threads_change_nothing() -> None:
    grid = TrellisGrid(2, "1mad", 10, 32)
    x = random(9, 96, seed=3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = grid.encode(x)
        torch.set_num_threads(3)
        assert torch.equal(grid.encode(x), alone)
    finally:
        torch.set_num_threads(threads)


def packed(
    grid: TrellisGrid, out: int, columns: int, runs: int, dtype: torch.dtype
) -> tuple[native.TrellisWeight, Tensor]:
    """A weight with a scale for every `runs` runs, and its values in float64."""
    generator = torch.Generator().manual_seed(out + columns)
    codes = torch.randint(0, 1 << grid.bits, (out, columns), generator=generator).to(torch.uint8)
    groups = -(-columns // (grid.span * runs))
    scale = (torch.rand(out, groups, generator=generator) - 0.3).to(dtype)
    mean, deviation = grid.normal()
    centre = 510 if grid.code == "1mad" else 0
    factor = scale.float() / deviation
    weight = native.TrellisWeight(
        native.pack(codes, grid.span, grid.bits, grid.state_bits), tiled(factor), (out, columns), grid.span, grid.bits,
        grid.state_bits, native.ONE_MAD if grid.code == "1mad" else native.THREE_INST, runs, centre - mean,
    )  # fmt: skip
    whole = grid.numbers()[grid.states(codes).long()] - mean
    return weight, whole * factor.double().repeat_interleave(grid.span * runs, 1)[:, :columns]


def run(x: Tensor, weight: native.TrellisWeight, name: str, exact: bool, bias: Tensor | None = None) -> Tensor:
    y = x.new_empty(x.shape[0], weight.shape[0])
    handle = weight.handle()
    library(name).trellis_linear(handle, span(x), float_code(x.dtype), len(x), span(y), span(bias), exact, 2)
    return y


PRODUCTS = (
    (TrellisGrid(2), 40, 512, 1), (TrellisGrid(1), 16, 256, 1), (TrellisGrid(3), 33, 768, 2),
    (TrellisGrid(4), 17, 512, 2), (TrellisGrid(2, "3inst"), 31, 512, 1), (TrellisGrid(3, "3inst", 12, 96), 5, 288, 3),
    (TrellisGrid(2, "1mad", 9, 32), 1, 96, 2), (TrellisGrid(1, "3inst", 7, 64), 48, 192, 1),
    (TrellisGrid(4, "3inst"), 20, 256, 1),
)  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 9, 21])
@pytest.mark.parametrize(("grid", "out", "columns", "runs"), PRODUCTS)
def test_products_in_fp32(grid: TrellisGrid, out: int, columns: int, runs: int, rows: int, name: str) -> None:
    weight, values = packed(grid, out, columns, runs, torch.float32)
    x, bias = random(rows, columns, seed=rows), random(out, seed=7)
    for dtype, grain in ((torch.float32, 0.0), (torch.float16, 2e-3), (torch.bfloat16, 8e-3)):
        here = x.to(dtype)
        y = run(here, weight, name, True, bias)
        wanted = here.double() @ values.T + bias.double()
        size = here.double().abs() @ values.abs().T + 1
        assert bool(((y.double() - wanted).abs() <= 1e-6 * size + grain * wanted.abs()).all())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 20])
@pytest.mark.parametrize(("grid", "out", "columns", "runs"), [case for case in PRODUCTS if case[0].code == "1mad"])
def test_products_in_integers_are_exact(
    grid: TrellisGrid, out: int, columns: int, runs: int, rows: int, name: str
) -> None:
    """Activations that 8 bits hold, and scales of one: every sum is a whole number."""
    weight, _ = packed(grid, out, columns, runs, torch.float32)
    codes = torch.randint(-127, 128, (rows, columns), generator=torch.Generator().manual_seed(rows)).float()
    codes[:, :: grid.span] = 127  # the largest of every run: its step is 1
    ones = torch.ones_like(weight.scale)
    whole = native.TrellisWeight(
        weight.codes, ones, weight.shape, weight.columns, weight.bits, weight.state_bits, weight.code, runs, 0.0
    )
    numbers = unpacked(grid, weight, out, columns)
    wanted = codes.double() @ (numbers - 510).T
    y = run(codes, whole, name, False)
    # Runs are whole numbers below 2^24; their sums are rounded to fp32.
    assert bool(((y.double() - wanted).abs() <= 1e-7 * columns // grid.span * (wanted.abs() + 2**24)).all())
    if columns == grid.span:
        assert torch.equal(y, wanted.float())


def unpacked(grid: TrellisGrid, weight: native.TrellisWeight, out: int, columns: int) -> Tensor:
    """The numbers of a packed weight, one word and one bit after another."""
    words = weight.codes.view(-1, columns // grid.span, grid.span // 32, grid.bits, 16).long() & 0xFFFFFFFF
    bits = (words.unsqueeze(-1) >> torch.arange(31, -1, -1)) & 1  # [tiles, runs, pieces, k, 16, 32]
    strings = bits.permute(0, 4, 1, 2, 3, 5).reshape(-1, columns // grid.span, grid.span, grid.bits)[:out]
    codes = (strings << torch.arange(grid.bits - 1, -1, -1)).sum(-1).view(out, columns).to(torch.uint8)
    return grid.numbers()[grid.states(codes).long()]


@pytest.mark.parametrize("name", SETS)
def test_rounded_activations_cost_little(name: str) -> None:
    weight, values = packed(TrellisGrid(2), 64, 1024, 4, torch.float16)
    for rows in (1, 4, 32):
        x = random(rows, 1024, seed=rows)
        wanted = x.double() @ values.T
        error = (run(x, weight, name, False).double() - wanted).norm() / wanted.norm()
        assert 1e-4 < float(error) < 0.012
        bad = x.clone()
        bad[0, 5] = float("nan")
        assert bool(torch.isnan(run(bad, weight, name, False)[0]).all())


def test_the_operator() -> None:
    weight, values = packed(TrellisGrid(2), 24, 512, 1, torch.bfloat16)
    x = random(2, 3, 512)
    y = native.linear(x, weight)
    assert y.shape == (2, 3, 24)
    assert torch.allclose(y.double(), x.double() @ values.T, atol=1e-3, rtol=1e-5)
    assert weight.bytes() == 32 * 512 * 2 // 8 + weight.scale.nbytes
    assert torch.ops.bitwright.trellis.default(
        x.to("meta"), weight.codes, weight.scale, None, weight.geometry(), 0.0, True
    ).shape == (2, 3, 24)


def test_wrong_calls_are_refused() -> None:
    weight, _ = packed(TrellisGrid(2), 24, 512, 1, torch.float32)
    x = random(2, 512)
    for wrong in (x[:, :256], x.double(), x.to(torch.int32), x.t()):
        with pytest.raises(InputError):
            native.linear(wrong, weight)
    with pytest.raises(InputError, match="bias"):
        native.linear(x, weight, torch.zeros(23))
    inst, _ = packed(TrellisGrid(2, "3inst"), 24, 512, 1, torch.float32)
    with pytest.raises(InputError, match="1MAD"):
        native.linear(x, inst, exact=False)
    geometry = weight.geometry()
    wrong_numbers = (
        (0, 0),
        (1, 500),
        (1, 1024),
        (2, 128 + 16),
        (2, 512),
        (3, 5),
        (3, 0),
        (4, 17),
        (4, 3),
        (5, 2),
        (6, 0),
    )
    for place, number in wrong_numbers:
        changed = [*geometry[:place], number, *geometry[place + 1 :]]
        with pytest.raises(InputError):
            native._handle(weight.codes, weight.scale, changed, 0.0)
    with pytest.raises(InputError):
        native._handle(weight.codes[:-1].clone(), weight.scale, geometry, 0.0)
    with pytest.raises(InputError):
        native._handle(weight.codes, weight.scale.view(-1)[:-1].clone(), geometry, 0.0)
    with pytest.raises(InputError):
        native.pack(torch.zeros(4, 300, dtype=torch.uint8), 256, 2, 16)
    with pytest.raises(InputError):
        native.pack(torch.zeros(4, 256), 256, 2, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 0}, {"bits": 5}, {"state_bits": 17}, {"state_bits": 5}, {"columns": 0}, {"columns": 100},
        {"columns": 1}, {"around": 0}, {"around": 65}, {"values": torch.zeros(255)}, {"importance": torch.ones(127)},
        {"x": torch.zeros(2, 128, dtype=torch.float64)},
    ],
)  # fmt: skip
def test_wrong_searches_are_refused(wrong: dict[str, object]) -> None:
    given = {"x": random(2, 128), "values": random(256), "bits": 2, "state_bits": 8, "columns": 64, "around": 32}
    with pytest.raises(InputError):
        native.search(**{**given, **wrong})  # type: ignore[arg-type]
