"""The plain forms that sweeps run on round as the grids themselves do, ties included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.formats import parse
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.lowered import Affine, Levels, lower
from bitwright.stages.ranges import MinMax
from tests.unit.layer_problem import correlated_layer

GRIDS = ["int4 channel", "int4 channel asym", "int3 narrow channel", "int1 channel", "e2m1 channel", "e3m2 channel",
         "e4m3 channel", "e5m2 channel", "nf4 b64", "nf2 b64", "fp4-bnb b64", "pot4 channel", "apot4 channel",
         "ternary channel", "binary channel", "table[-3,-1,0.5,2] channel"]  # fmt: skip


def awkward(levels: Tensor) -> Tensor:
    """Levels, their midpoints, the neighbours of both in fp32, far values and many ordinary ones."""
    ordered = levels[torch.isfinite(levels)].sort().values
    places = torch.cat([ordered, (ordered[1:] + ordered[:-1]) / 2])
    up, down = (torch.nextafter(places, torch.full_like(places, s * torch.inf)) for s in (1, -1))
    ordinary = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * float(ordered.abs().max()) / 2
    return torch.cat([places, up, down, torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-30, -1e-30]), ordinary])


@pytest.mark.parametrize("text", GRIDS)
@pytest.mark.parametrize("copies", [1, 20], ids=["search", "own rounding"])
def test_rounds_as_the_grid_does(text: str, copies: int) -> None:
    grid = parse(text).grid
    x = awkward(grid.levels()).repeat(copies)
    form, out = lower(grid), torch.empty_like(x)
    assert isinstance(form, Affine if text.startswith("int") else Levels)
    form.round_(x, out)
    assert torch.equal(out, grid.round(x))


@pytest.mark.parametrize("text", [*GRIDS, "int4 g12 asym", "int4 tensor", "int4 block5x12", "int4 g5 axis=0", "nf4 b20",
                                  "mxfp4", "nvfp4", "mxint8", "int4 channel axis=1", "int4 b12 asym"])  # fmt: skip
def test_tiles_equal_whole_matrix_rounding(text: str) -> None:
    """Columns in any order through tiles: the same values and codes as at once by the format."""
    w = correlated_layer(out=15, columns=48).w
    once, tiled = (BoundQuantizer(parse(text), MinMax(), w) for _ in range(2))
    once.open_all(w)
    tiled.open_all(w)
    expected = once.round(0, 48, w)
    value = torch.empty(48, 15)
    for columns in torch.randperm(48, generator=torch.Generator().manual_seed(0)).split(13):
        tile = tiled.tile(columns)
        for index, column in enumerate(columns.tolist()):
            tile.round(index, w[:, column].contiguous(), value[column])
        tiled.take(columns, tile)
    assert torch.equal(value.t(), expected)
    assert torch.equal(tiled.codes, once.codes)
    if not parse(text).scale.outer and not text.startswith("table"):
        assert torch.equal(once.finish().codes, parse(text).quantize(w).codes)
    assert torch.equal(once.finish().dequantize(), expected)


def test_parts_of_the_columns_equal_the_whole() -> None:
    w = correlated_layer(out=15, columns=48).w
    for text in ("int4 g16 asym", "nf4 b16", "int4 channel"):
        whole, parts = (BoundQuantizer(parse(text), MinMax(), w) for _ in range(2))
        whole.open_all(w)
        parts.open_all(w)
        expected = whole.round(0, 48, w)
        found = torch.cat([parts.round(a, b, w[:, a:b]) for a, b in ((0, 5), (5, 32), (32, 48))], 1)
        assert torch.equal(found, expected)
        assert torch.equal(parts.codes, whole.codes)


def test_learned_codebooks_have_no_plain_form() -> None:
    with pytest.raises(ValueError, match="codebook"):
        lower(parse("lut4 channel").grid)
