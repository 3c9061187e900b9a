"""Every minifloat of 3 to 8 bits against levels and middles in exact rational numbers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import MiniFloat, cast

GRIDS = [MiniFloat(e, bits - 1 - e, "fn") for bits in range(3, 9) for e in range(1, bits)]
GRIDS += [MiniFloat(e, bits - 1 - e, "ieee") for bits in range(4, 9) for e in range(2, bits - 1)]


def rational_levels(grid: MiniFloat) -> list[Fraction]:
    """Magnitudes of the codes 0, 1, 2, ... that are finite, from the definition alone."""
    e, m = grid.exponent, grid.mantissa
    bias = 2 ** (e - 1) - 1
    magnitudes = []
    for code in range(2 ** (e + m)):
        field, fraction = divmod(code, 2**m)
        if grid.convention == "ieee" and field == 2**e - 1:
            break
        if grid.convention == "fn" and e + m == 7 and code == 2**7 - 1:
            break
        whole = Fraction(fraction, 2**m) + (1 if field else 0)
        magnitudes.append(whole * Fraction(2) ** (max(field, 1) - bias))
    return magnitudes


def reference_magnitude_codes(x: np.ndarray, grid: MiniFloat) -> np.ndarray:
    """Nearest code of |x|, ties to the even code (one-digit types: to the larger), saturating; exact in float64."""
    levels = rational_levels(grid)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    exact = np.array([float(middle) for middle in middles])
    assert all(Fraction(value) == middle for value, middle in zip(exact.tolist(), middles, strict=True))
    size = np.abs(x.astype(np.float64))
    code = np.searchsorted(exact, size, side="left")
    tie = (code < len(exact)) & (exact[np.minimum(code, len(exact) - 1)] == size)
    # The tie lies between code and code + 1.
    up = tie & ((code % 2 == 1) if grid.mantissa else (code > 0))
    return code + up


def inputs(grid: MiniFloat, source: str) -> np.ndarray:
    if source == "bfloat16":
        bits = np.arange(1 << 16, dtype=np.uint32) << 16
        x = bits.view(np.float32)
    elif source == "float16":
        x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    else:
        levels = np.array([float(level) for level in rational_levels(grid)])
        exact = np.float32((levels[1:] + levels[:-1]) / 2)
        x = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(0))])
        x = np.concatenate([x, -x, np.float32(levels), -np.float32(levels)])
    return x[~np.isnan(x)]


@pytest.mark.parametrize("source", ["bfloat16", "float16", "middles"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"e{grid.exponent}m{grid.mantissa}{grid.convention}")
def test_rounding_is_exact(grid: MiniFloat, source: str) -> None:
    x = inputs(grid, source)
    codes = grid.encode(torch.from_numpy(x)).numpy()
    sign = np.signbit(x).astype(np.int64) << (grid.bits - 1)
    np.testing.assert_array_equal(codes, reference_magnitude_codes(x, grid) | sign)
    decoded = grid.decode(torch.from_numpy(codes))
    rounded = grid.round(torch.from_numpy(x))
    # Compared as bit patterns: -0 is not +0.
    assert torch.equal(rounded.view(torch.int32), decoded.view(torch.int32))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"e{grid.exponent}m{grid.mantissa}{grid.convention}")
def test_levels_are_the_rational_ones_and_survive_a_round_trip(grid: MiniFloat) -> None:
    expected = [float(level) for level in rational_levels(grid)]
    levels = grid.levels()
    half = len(levels) // 2
    assert levels[: len(expected)].tolist() == expected
    assert levels[half : half + len(expected)].tolist() == [-value for value in expected]
    assert grid.max_level == expected[-1] == -grid.min_level
    assert 2.0**grid.max_exponent <= grid.max_level < 2.0 ** (grid.max_exponent + 1)
    finite = torch.nonzero(torch.isfinite(levels)).view(-1).to(torch.uint8)
    assert len(finite) == 2 * len(expected)
    assert torch.equal(grid.encode(grid.decode(finite)), finite)


def test_overflow_without_saturation() -> None:
    x = torch.tensor([448.0, 464.0, 464.1, -1e9])
    out = cast(x, MiniFloat(4, 3), saturate=False)
    assert out[:2].tolist() == [448.0, 448.0]
    assert torch.isnan(out[2:]).all()
    x = torch.tensor([57344.0, 61439.0, 61440.0, -1e9])
    assert cast(x, MiniFloat(5, 2), saturate=False).tolist() == [57344.0, 57344.0, float("inf"), float("-inf")]
    assert cast(torch.tensor([1e9]), MiniFloat(2, 1), saturate=False).tolist() == [6.0]


def test_nan_stays_nan_where_the_type_has_one() -> None:
    nan = torch.tensor([float("nan")])
    assert torch.isnan(cast(nan, MiniFloat(4, 3)))
    assert torch.isnan(cast(nan, MiniFloat(5, 2), saturate=False))
    assert cast(nan, MiniFloat(2, 1)).item() == 0.0


def test_casts_take_other_types_strides_and_leave_their_input() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    out = cast(x.t(), MiniFloat(3, 2))
    assert torch.equal(out, cast(x, MiniFloat(3, 2)).t())
    assert torch.equal(x, kept)
    half = x.to(torch.bfloat16)
    assert torch.equal(cast(half, MiniFloat(3, 2)), cast(half.float(), MiniFloat(3, 2)))
    assert torch.equal(half, kept.to(torch.bfloat16))
    MiniFloat(3, 2).encode(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("exponent", "mantissa", "convention"),
    [(0, 3, "fn"), (1, 0, "fn"), (5, 3, "fn"), (4, -1, "fn"), (4, 0, "ieee"), (1, 4, "ieee"), (4, 3, "posit")],
)
def test_impossible_types_are_refused(exponent: int, mantissa: int, convention: str) -> None:
    with pytest.raises(InputError):
        MiniFloat(exponent, mantissa, convention)  # type: ignore[arg-type]


def test_ocp_names_the_usual_form() -> None:
    assert MiniFloat(4, 3) == MiniFloat(4, 3, "fn")
    assert MiniFloat(5, 2) == MiniFloat(5, 2, "ieee")
    assert (MiniFloat(5, 2, "fn").text, MiniFloat(4, 3, "ieee").text) == ("e5m2fn", "e4m3ieee")
