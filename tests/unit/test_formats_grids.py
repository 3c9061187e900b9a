"""Integer, table and codebook grids; derived tables and their closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import CodebookGrid, Grid, IntGrid, TableGrid, dynamic_tree, lloyd_max, normal_float, table
from bitwright.formats.tables import middles_below

INTEGERS = [IntGrid(b, signed) for b in range(1, 9) for signed in (True, False)]
INTEGERS += [IntGrid(b, narrow=True) for b in range(2, 9)]
TABLES = [f"nf{b}" for b in range(2, 9)] + [f"lloyd{b}" for b in range(1, 9)] + [f"pot{b}" for b in range(2, 7)]
TABLES += [f"apot{b}" for b in range(2, 9)] + ["fp4-bnb", "ternary", "binary"]


@pytest.mark.parametrize("grid", INTEGERS, ids=str)
def test_integer_levels_are_consecutive_and_every_code_survives(grid: IntGrid) -> None:
    levels = grid.levels()
    assert isinstance(grid, Grid)
    assert torch.equal(levels.diff(), torch.ones(len(levels) - 1))
    assert len(levels) == 2**grid.bits - grid.narrow
    assert (levels[0], levels[-1]) == (grid.min_level, grid.max_level)
    codes = torch.arange(len(levels)).to(torch.uint8)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    assert torch.equal(grid.decode(codes), levels)


def test_integer_ends() -> None:
    ends = {(g.bits, g.signed, g.narrow): (g.low, g.high) for g in INTEGERS}
    assert ends[4, True, False] == (-8, 7)
    assert ends[4, True, True] == (-7, 7)
    assert ends[4, False, False] == (0, 15)
    assert ends[1, True, False] == (-1, 0)


@pytest.mark.parametrize("grid", INTEGERS, ids=str)
def test_integers_round_half_to_even_and_saturate(grid: IntGrid) -> None:
    x = torch.arange(-300, 301) / 2
    expected = torch.tensor(
        [min(max(round(v / 2), grid.low), grid.high) for v in range(-300, 301)], dtype=torch.float32
    )
    assert torch.equal(grid.decode(grid.encode(x)), expected)
    assert torch.equal(grid.round(x).view(torch.int32), grid.decode(grid.encode(x)).view(torch.int32))
    infinite = torch.tensor([float("-inf"), float("inf")])
    assert grid.round(infinite).tolist() == [grid.low, grid.high]


@pytest.mark.parametrize("args", [(0,), (9,), (4, False, True), (1, True, True)])
def test_impossible_integers_are_refused(args: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        IntGrid(*args)


def nearest_by_scan(x: torch.Tensor, grid: TableGrid) -> torch.Tensor:
    """The level nearest to each value, the smaller one on a tie; in float64, where the distances compare exactly."""
    ordered = grid.levels().to(torch.float64).unique()
    middles = (ordered[1:] + ordered[:-1]) / 2
    return ordered[(x.to(torch.float64).unsqueeze(-1) > middles).sum(-1)].to(torch.float32)


@pytest.mark.parametrize("name", TABLES)
def test_tables_give_the_nearest_level(name: str) -> None:
    grid = TableGrid.derived(name)
    ordered = grid.levels().unique()
    exact = (ordered[1:] + ordered[:-1]) / 2
    around = [exact, torch.nextafter(exact, exact + 1), torch.nextafter(exact, exact - 1), ordered]
    x = torch.cat([*around, torch.randn(500, generator=torch.Generator().manual_seed(1)), torch.tensor([1e30, -1e30])])
    assert torch.equal(grid.decode(grid.encode(x)) + 0.0, nearest_by_scan(x, grid) + 0.0)
    # The fast way for large tensors gives the same codes.
    many = x.repeat(2**15 // len(x) + 1)
    assert torch.equal(grid.encode(many)[: len(x)], grid._encode_by_search(x))


@pytest.mark.parametrize("name", TABLES)
def test_table_codes_survive(name: str) -> None:
    grid = TableGrid.derived(name)
    levels = grid.levels()
    codes = torch.arange(len(levels)).to(torch.uint8)
    again = grid.encode(grid.decode(codes))
    distinct = torch.tensor([levels.tolist().index(v) for v in levels.tolist()]).to(torch.uint8)
    assert torch.equal(again, distinct)
    assert 2 ** (grid.bits - 1) < len(levels) <= 2**grid.bits or grid.bits == 1
    assert grid.max_level == max(levels.tolist()) or abs(grid.max_level - max(levels.tolist())) < 1e-6


def test_nf4_is_the_published_table() -> None:
    published = (-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0)
    published += (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1)
    assert normal_float(4) == pytest.approx(published, abs=5e-7)
    assert (normal_float(4)[0], normal_float(4)[7], normal_float(4)[-1]) == (-1.0, 0.0, 1.0)


def test_fp4_of_bitsandbytes_counts_its_exponent_down() -> None:
    twelfths = [round(value * 12, 9) for value in TableGrid.derived("fp4-bnb").values]
    assert twelfths == [0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3]


def test_dynamic_tree_has_256_levels_and_decades() -> None:
    levels = dynamic_tree()
    assert len(set(levels)) == 256
    assert (max(levels), min(v for v in levels if v > 0)) == (1.0, pytest.approx(0.55e-6))
    assert sorted(-v for v in levels if abs(v) < 1) == [v for v in levels if abs(v) < 1]


def test_powers_of_two() -> None:
    assert TableGrid.derived("pot3").values == (-1, -0.5, -0.25, 0, 0.25, 0.5, 1)
    # Two-bit magnitude: zero and three powers; three bits: {0, 1/2, 1/4, 1/16} + {0, 1/8}, largest 5/8.
    assert TableGrid.derived("apot3").values == (-1, -0.5, -0.25, 0, 0.25, 0.5, 1)
    positive = [v * 0.625 for v in TableGrid.derived("apot4").values if v > 0]
    assert positive == pytest.approx([1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8])


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_additive_powers_have_distinct_sums(bits: int) -> None:
    assert len(TableGrid.derived(f"apot{bits}").values) == 2**bits - 1


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_has_the_known_error(bits: int, error: float) -> None:
    levels = lloyd_max(bits)
    borders = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(levels)), math.inf]
    law = torch.distributions.Normal(0.0, 1.0)
    mass = law.cdf(torch.tensor(borders, dtype=torch.float64)).diff()
    # Each level is its cell's mean, so the error is the variance less that of the levels (Max published 0.009497).
    assert 1 - float((mass * torch.tensor(levels, dtype=torch.float64) ** 2).sum()) == pytest.approx(error, rel=5e-4)
    # And the grid reaches it on a sample that stands for the law: its quantiles.
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float()
    assert float((TableGrid.derived(f"lloyd{bits}").round(x) - x).square().mean()) == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_finer_lloyd_max_tables_are_fixed_points(bits: int) -> None:
    levels = torch.tensor(lloyd_max(bits), dtype=torch.float64)
    borders = (levels[1:] + levels[:-1]) / 2
    edges = torch.cat([torch.tensor([-math.inf]), borders, torch.tensor([math.inf])]).to(torch.float64)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    means = -density.diff() / torch.special.ndtr(edges).diff()
    torch.testing.assert_close(means, levels, rtol=0, atol=1e-9)


def test_middles_compare_as_real_numbers() -> None:
    ordered = torch.tensor([0.0, 0.1, 0.3, 1e-3]).sort().values
    middles = middles_below(ordered).to(torch.float64)
    exact = (ordered[1:].to(torch.float64) + ordered[:-1].to(torch.float64)) / 2
    above = torch.nextafter(middles.float(), torch.ones(3)).to(torch.float64)
    assert bool((middles <= exact).all())
    assert bool((above > exact).all())


@pytest.mark.parametrize("values", [(1.0,), (float("nan"), 1.0), (-1.0, 0.0), tuple(range(257))])
def test_impossible_tables_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        TableGrid("mine", values)


@pytest.mark.parametrize("word", ["nf9", "nf1", "lloyd9", "pot7", "apot1", "nope", "nf"])
def test_unknown_tables_are_refused(word: str) -> None:
    with pytest.raises(InputError):
        TableGrid.derived(word)


def test_codebooks_are_learned_per_group_and_need_not_be_sorted() -> None:
    generator = torch.Generator().manual_seed(2)
    codebook = torch.randn(3, 2, 8, generator=generator)
    x = torch.randn(3, 2, 50, generator=generator)
    grid = CodebookGrid(3)
    codes = grid.encode_with(x, codebook)
    best = (x.unsqueeze(-1) - codebook.unsqueeze(2)).abs().argmin(-1)
    assert torch.equal(codes.long(), best)
    assert torch.equal(grid.decode_with(codes, codebook), codebook.gather(-1, best))


def test_a_codebook_grid_alone_has_no_levels() -> None:
    for call in (CodebookGrid(4).levels, lambda: CodebookGrid(4).round(torch.zeros(1))):
        with pytest.raises(InputError, match="codebook"):
            call()


def test_custom_tables_carry_their_levels_in_their_name() -> None:
    assert table([-1, 0.25, 1]).text == "table[-1,0.25,1]"
    assert table([0.1, -0.1]).values == (0.10000000149011612, -0.10000000149011612)
