"""Stored scales: powers of two by exact bits, two levels, float types at their ends; ranges to scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import ScaleFormat, dynamic_tree, parse


def magnitudes() -> torch.Tensor:
    """Every power of two of float32 with its neighbours, subnormals included, and random values."""
    powers = np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32)
    around = [np.nextafter(powers, np.float32(np.inf)), powers, np.nextafter(powers, np.float32(0))[1:]]
    random = np.random.default_rng(0).lognormal(0, 20, 500).astype(np.float32)
    return torch.from_numpy(np.concatenate([*around, random]))


@pytest.mark.parametrize(
    ("text", "top"),
    [("mxfp4", 2), ("mxfp6_e2m3", 2), ("mxfp6_e3m2", 4), ("mxfp8_e4m3", 8), ("mxfp8_e5m2", 15), ("mxint8", 0)],
)
def test_the_ocp_exponent_is_exact_around_every_power_of_two(text: str, top: int) -> None:
    fmt, absmax = parse(text), magnitudes()
    scale, zero = fmt.scale_from_range(-absmax.view(-1, 1), absmax.view(-1, 1))
    stored = fmt.store_scale(scale)
    exponents = [min(max(math.frexp(value)[1] - 1 - top, -127), 127) for value in absmax.tolist()]
    assert zero is None
    assert stored.stored.view(-1).tolist() == [exponent + 127 for exponent in exponents]
    step = 6 if text == "mxint8" else 0
    assert stored.effective.view(-1).tolist() == [2.0 ** (exponent - step) for exponent in exponents]


def test_mx_scales_of_zeros_are_one() -> None:
    for text in ("mxfp4", "mxint8", "int4 g32 asym scale=e8m0"):
        fmt = parse(text)
        scale, _ = fmt.scale_from_range(torch.zeros(1, 1), torch.zeros(1, 1))
        assert fmt.store_scale(scale).stored.tolist() == [[127]]


@pytest.mark.parametrize("text", ["mxfp4", "mxint8", "e4m3 g32 scale=e8m0-ct"])
def test_any_scale_goes_to_the_nearest_power_of_two(text: str) -> None:
    fmt = parse(text)
    step = 2.0**fmt.step_exponent
    given = torch.tensor([[1.0, 1.49, 1.5, 1.99, 0.76, 2.0**-127, 2.0**-126, 1.4 * 2.0**-127]]) * step
    expected = torch.tensor([[1.0, 1.0, 2.0, 2.0, 1.0, 2.0**-127, 2.0**-126, 2.0**-127]]) * step
    assert torch.equal(fmt.store_scale(given).effective, expected)
    assert torch.equal(fmt.store_scale(expected).effective, expected)


@pytest.mark.parametrize("word", ["e2m1", "e2m3", "e3m2", "int4", "int8"])
def test_the_ct_rule_rounds_up_exactly_what_would_round_beyond_the_largest_level(word: str) -> None:
    fmt, absmax = parse(f"{word} g32 scale=e8m0-ct"), magnitudes().clamp(2.0**-90, 2.0**90).view(-1, 1)
    scaled = absmax / fmt.scale_from_range(-absmax, absmax)[0]
    levels = fmt.grid.levels().sort().values
    half_step = (levels[-1] - levels[-2]) / 2
    ocp = absmax / parse(f"{word} g32 scale=e8m0").scale_from_range(-absmax, absmax)[0]
    assert torch.equal(scaled, torch.where(ocp >= fmt.grid.max_level + half_step, ocp / 2, ocp))


@pytest.mark.parametrize("text", ["nf4 g32 scale=e8m0", "uint4 g32 scale=e8m0", "int4 g32 asym scale=e8m0"])
def test_other_grids_take_the_power_of_two_that_clips_nothing(text: str) -> None:
    fmt, high = parse(text), magnitudes().clamp(2.0**-100, 2.0**100).view(-1, 1)
    scale, _ = fmt.scale_from_range(torch.zeros_like(high), high)
    effective = fmt.store_scale(scale).effective
    assert bool((high / effective <= fmt.grid.max_level).all())
    assert bool((high / effective > fmt.grid.max_level / 2).all())
    mantissa, _ = torch.frexp(effective)
    assert bool((mantissa == 0.5).all())


def test_integer_scales_by_hand() -> None:
    low, high = torch.tensor([[-3.0]]), torch.tensor([[1.5]])
    expected = {"int4": 3 / 7.5, "int4 narrow": 3 / 7, "int8": 3 / 127.5, "uint4": 1.5 / 15, "int1": 3.0, "int2": 2.0}
    for text, value in expected.items():
        scale, zero = parse(text).scale_from_range(low, high)
        assert (scale.item(), zero) == (pytest.approx(value, rel=1e-6), None)
    scale, zero = parse("int4 asym").scale_from_range(low, high)
    assert zero is not None
    assert (scale.item(), zero.item()) == (pytest.approx(0.3), 10.0)
    scale, zero = parse("int4 zero=fp16").scale_from_range(torch.tensor([[-2.9]]), high)
    assert zero is not None
    assert zero.item() == pytest.approx(2.9 / (4.4 / 15), rel=1e-5)


@pytest.mark.parametrize(("text", "top"), [("e2m1", 6.0), ("e4m3", 448.0), ("nf4", 1.0), ("ternary", 1.0)])
def test_other_scales_take_the_largest_value_to_the_largest_level(text: str, top: float) -> None:
    scale, _ = parse(text).scale_from_range(torch.tensor([[-3.0]]), torch.tensor([[1.5]]))
    assert scale.item() == pytest.approx(3.0 / top, rel=1e-6)


def test_a_lopsided_table_clips_neither_end() -> None:
    fmt = parse("table[-0.5,0,1] tensor")
    for low, high, expected in ((-3.0, 1.5, 6.0), (-0.1, 1.5, 1.5)):
        scale, _ = fmt.scale_from_range(torch.tensor([[low]]), torch.tensor([[high]]))
        assert scale.item() == pytest.approx(expected)


@pytest.mark.parametrize("text", ["int4 token", "int4 token asym", "e2m1 token", "int4 token narrow"])
def test_a_clip_covers_a_share_of_the_range_and_the_rest_saturates(text: str) -> None:
    low, high = torch.tensor([[-3.0]]), torch.tensor([[5.0]])
    whole, clipped = parse(text), parse(f"{text} clip=0.8")
    (scale, zero), (less, same) = whole.scale_from_range(low, high), clipped.scale_from_range(low, high)
    torch.testing.assert_close(less, 0.8 * scale)
    assert (zero is None and same is None) or torch.equal(zero, same)
    x = torch.linspace(-3, 5, 41).view(1, -1)
    inside = x.clamp(-2.4, 4.0) if whole.asymmetric else x.clamp(-4.0, 4.0)
    torch.testing.assert_close(clipped.fake_quantize(x), whole.fake_quantize(inside), rtol=0, atol=1e-6)


def test_ranges_that_miss_zero_are_widened_to_it() -> None:
    scale, zero = parse("int4 asym").scale_from_range(torch.tensor([[2.0], [-5.0]]), torch.tensor([[3.0], [-1.0]]))
    assert zero is not None
    assert torch.allclose(scale, torch.tensor([[3.0 / 15], [5.0 / 15]]))
    assert zero.view(-1).tolist() == [0.0, 15.0]


@pytest.mark.parametrize("storage", ["fp32", "fp16", "bf16"])
def test_float_scales_are_rounded_and_never_zero(storage: str) -> None:
    fmt = parse(f"int4 scale={storage}")
    raw = torch.tensor([[1 / 3], [1e-20], [1e-45], [65504.0]])
    scale = fmt.store_scale(raw)
    assert scale.stored.dtype == {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[storage]
    assert torch.equal(scale.effective, scale.stored.float())
    assert scale.stored[0, 0] == (raw[0, 0].to(scale.stored.dtype))
    assert bool((scale.effective > 0).all())


def test_scales_below_the_normal_range_of_fp16_are_rounded_up() -> None:
    raw = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * 2.0**-14
    effective = parse("int4").store_scale(raw).effective
    assert bool((effective >= raw).all())
    assert bool((effective < raw + 2.0**-24).all())
    assert torch.equal(parse("int4").store_scale(effective).effective, effective)


def test_a_scale_beyond_fp16_is_refused_with_the_mend() -> None:
    with pytest.raises(InputError, match="scale=bf16"):
        parse("int4").store_scale(torch.tensor([[1e6]]))
    assert parse("int4 scale=bf16").store_scale(torch.tensor([[1e6]])).effective.item() == pytest.approx(1e6, rel=4e-3)


def test_zero_points_are_stored_as_codes_or_floats() -> None:
    zero = torch.tensor([[3.4], [99.0]])
    assert parse("int4 asym").store_zero(zero).tolist() == [[3], [15]]  # type: ignore[union-attr]
    half = parse("int4 zero=fp16").store_zero(zero)
    assert half is not None
    assert half.dtype == torch.float16
    assert parse("int4").store_zero(None) is None
    with pytest.raises(InputError, match="zero=bf16"):
        parse("int4 zero=fp16").store_zero(torch.tensor([[1e6]]))


def test_nvfp4_shares_one_outer_scale_and_survives_zero_blocks() -> None:
    w = torch.zeros(4, 32)
    w[0, :16] = 12.0
    fmt = parse("nvfp4")
    scale = fmt.quantize(w).scale
    assert scale.outer is not None
    assert scale.outer.item() == pytest.approx(12.0 / (448 * 6))
    assert scale.stored[0, 0] == 0b0_1111_110
    assert bool((scale.effective > 0).all())
    assert torch.allclose(fmt.quantize(w).dequantize(), w)
    shared = torch.tensor([0.5])
    assert fmt.quantize(w, outer=shared).scale.outer == shared
    assert bool((fmt.quantize(torch.zeros(4, 32)).scale.effective > 0).all())


def reference_double_quantization(scale: list[float]) -> list[float]:
    """Scales by the published formula, one at a time, in float64."""
    levels, mean = dynamic_tree(), sum(scale) / len(scale)
    decoded = []
    for start in range(0, len(scale), 256):
        block = [value - mean for value in scale[start : start + 256]]
        largest = max(abs(value) for value in block)
        decoded += [min(levels, key=lambda level: abs(level - v / largest)) * largest + mean for v in block]
    return decoded


def test_double_quantization_follows_the_formula() -> None:
    scale = torch.rand(1, 700, generator=torch.Generator().manual_seed(3)) * 0.02 + 0.03
    fmt = parse("nf4 b64 scale=double")
    stored = fmt.store_scale(scale)
    assert stored.outer is not None
    assert stored.offset is not None
    assert (stored.stored.dtype, tuple(stored.outer.shape), tuple(stored.offset.shape)) == (torch.uint8, (3,), (1,))
    expected = torch.tensor([reference_double_quantization(scale.view(-1).tolist())])
    torch.testing.assert_close(stored.effective, expected, rtol=2e-6, atol=0)
    assert float(((stored.effective - scale).abs() / scale).max()) < 0.01
    outer = fmt.fit_outer(scale)
    assert outer is not None
    assert torch.equal(fmt.store_scale(scale, outer).effective, stored.effective)


@pytest.mark.parametrize("fill", [0.0, 1e-38, 0.5])
def test_double_quantized_scales_stay_positive(fill: float) -> None:
    w = torch.full((64, 64), fill)
    w[:8] = 1.0
    w[8] = 1e-6
    codes = parse("nf4 b16 scale=double").quantize(w)
    assert bool((codes.scale.effective > 0).all())
    assert bool(torch.isfinite(codes.dequantize()).all())
    if fill == 0.0:
        assert not bool(codes.dequantize()[9:].any())


def test_words_of_scale_formats() -> None:
    assert ScaleFormat.named("double").text == "double"
    assert ScaleFormat("e8m0", rule="ct").text == "e8m0-ct"
    assert [ScaleFormat.named(word).storage_bits(512) for word in ("fp16", "e8m0", "e4m3", "double", "none")] == [
        512 * 16,
        512 * 8,
        512 * 8 + 32,
        512 * 8 + 3 * 32,
        0,
    ]
