"""Minifloat casts and levels against ml_dtypes, over all codes, all 16-bit inputs and all middles of two levels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from bitwright.formats import MiniFloat, cast, parse
from bitwright.formats.scales import power_of_two

TYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3ieee": ml_dtypes.float8_e4m3,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def grid_named(name: str) -> MiniFloat:
    grid = parse(f"{name} tensor").grid
    assert isinstance(grid, MiniFloat)
    return grid


def sixteen_bit_inputs(dtype: np.dtype) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)


def middles(grid: MiniFloat) -> np.ndarray:
    """Every middle of two neighbouring levels, the overflow threshold, and one float32 step to both sides."""
    levels = grid.levels().numpy()
    ends = np.sort(levels[np.isfinite(levels)].astype(np.float64))
    top = ends[-1] + (ends[-1] - ends[-2])
    ends = np.concatenate([[-top], ends, [top]])
    exact = np.float32((ends[1:] + ends[:-1]) / 2)
    return np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_array_equal(ours, theirs)
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.signbit(ours[numbers]), np.signbit(theirs[numbers]))


@pytest.mark.parametrize("name", TYPES)
def test_every_code_has_the_value_of_the_reference_type(name: str) -> None:
    codes = np.arange(1 << grid_named(name).bits, dtype=np.uint8)
    theirs = codes.view(TYPES[name]).astype(np.float32)
    assert_same(grid_named(name).decode(torch.from_numpy(codes)).numpy(), theirs)


@pytest.mark.parametrize("source", ["bfloat16", "float16", "middles"])
@pytest.mark.parametrize("name", TYPES)
def test_casts_are_bit_exact(name: str, source: str) -> None:
    grid, reference = grid_named(name), TYPES[name]
    x = middles(grid) if source == "middles" else sixteen_bit_inputs(np.dtype(getattr(ml_dtypes, source, source)))
    with np.errstate(all="ignore"):
        theirs = x.astype(reference)
    assert_same(cast(torch.from_numpy(x), grid, saturate=False).numpy(), theirs.astype(np.float32))
    fits = np.abs(theirs.astype(np.float32)) <= grid.max_level
    codes = grid.encode(torch.from_numpy(x[fits])).numpy()
    expected = theirs[fits].view(np.uint8)
    numbers = ~np.isnan(x[fits])
    np.testing.assert_array_equal(codes[numbers], expected[numbers])


@pytest.mark.parametrize("name", TYPES)
def test_saturation_keeps_the_largest_level(name: str) -> None:
    grid = grid_named(name)
    x = torch.tensor([grid.max_level * 1.0625, 3e38, float("inf")])
    expected = torch.full((3,), grid.max_level)
    assert torch.equal(cast(x, grid), expected)
    assert torch.equal(cast(-x, grid), -expected)
    assert torch.equal(grid.decode(grid.encode(-x)), -expected)


def test_powers_of_two_are_those_of_e8m0() -> None:
    codes = np.arange(255, dtype=np.uint8)
    theirs = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(power_of_two(torch.arange(255, dtype=torch.int32)).numpy(), theirs)


def test_nvfp4_block_scales_are_e4m3_of_the_scaled_maximum() -> None:
    w = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.03
    scale = parse("nvfp4").quantize(w).scale
    assert scale.outer is not None
    whole = w.abs().max() / (448 * 6)
    torch.testing.assert_close(scale.outer[0], whole, rtol=1e-6, atol=0)
    inner = (w.view(24, 4, 16).abs().amax(-1) / 6 / scale.outer).numpy().astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(scale.stored.numpy(), inner.view(np.uint8))
    np.testing.assert_array_equal(scale.effective.numpy(), inner.astype(np.float32) * scale.outer.numpy())
