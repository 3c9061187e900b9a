"""Whole matrices in every format: the fast way equals the plain one, errors are as theory says, odd input is safe."""

from __future__ import annotations

import itertools

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import Codes, IntGrid, parse
from bitwright.formats import nearest as nearest_module

TEXTS = [
    "int4 g128 asym",
    "int8 channel",
    "int3 g32",
    "int2 g16 narrow",
    "int1 g16",
    "int1 g16 asym",
    "uint4 channel",
    "int5 g24 axis=0 asym",
    "int6 channel axis=1",
    "int4 block16x24 zero=fp16",
    "int7 tensor scale=fp32",
    "int8 token dynamic",
    "int4 g32 asym scale=e8m0",
    "e4m3 tensor",
    "e5m2 channel scale=bf16",
    "e3m2 block32x32",
    "e7m0 channel scale=fp32",
    "nf4 b64",
    "nf4 b64 scale=double",
    "nf3 g48",
    "fp4-bnb b32",
    "pot4 channel",
    "apot4 g32",
    "lloyd3 channel",
    "ternary channel",
    "binary g16",
    "table[-1,-0.25,0.5,1] g20",
    "table[-3,-1,0.5,2] channel",
    "table[-0.5,0,3] g20",
    "table[0,1,3] channel",
    "mxfp4",
    "e2m1 g32 scale=e8m0-ct",
    "mxfp6_e2m3",
    "mxfp6_e3m2",
    "mxfp8_e4m3",
    "mxfp8_e5m2",
    "mxint8",
    "nvfp4",
]


def matrix(out: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def quantize_plainly(text: str, w: torch.Tensor) -> Codes:
    """The definition, on the whole matrix at once."""
    fmt = parse(text)
    layout = fmt.granularity.layout(tuple(w.shape))
    g = layout.split(w.float())
    raw, zero = fmt.scale_from_range(g.amin(-1), g.amax(-1))
    scale, zero = fmt.store_scale(raw), fmt.store_zero(zero)
    return Codes(layout.join(fmt.encode(g, scale.effective, zero)), fmt, scale, zero)


@pytest.mark.parametrize("chunk", [64, 1 << 17])
@pytest.mark.parametrize("text", TEXTS)
def test_the_fast_way_equals_the_plain_one(text: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_module, "CHUNK", chunk)
    for w in (matrix(50, 96), matrix(33, 70), matrix(40, 64).to(torch.bfloat16)):
        fast, plain = parse(text).quantize(w), quantize_plainly(text, w)
        assert torch.equal(fast.codes, plain.codes)
        assert torch.equal(fast.scale.stored, plain.scale.stored)
        assert torch.equal(fast.scale.effective, plain.scale.effective)
        assert (fast.zero is None) == (plain.zero is None)
        assert fast.zero is None or plain.zero is None or torch.equal(fast.zero, plain.zero)


@pytest.mark.parametrize("text", TEXTS)
def test_rounding_equals_decoded_codes(text: str) -> None:
    w = matrix(40, 72)
    fmt, decoded = parse(text), parse(text).quantize(w).dequantize()
    assert torch.equal(fmt.fake_quantize(w), decoded)
    stacked = fmt.fake_quantize(w.view(5, 8, 72).to(torch.bfloat16))
    assert (stacked.shape, stacked.dtype) == ((5, 8, 72), torch.bfloat16)


@pytest.mark.parametrize("text", TEXTS)
def test_quantized_values_survive_with_their_parameters(text: str) -> None:
    codes = parse(text).quantize(matrix(40, 72))
    layout = codes.format.granularity.layout(codes.shape)
    again = codes.format.encode(layout.split(codes.dequantize()), codes.scale.effective, codes.zero)
    g = codes.format.decode(again, codes.scale.effective, codes.zero)
    assert torch.equal(layout.join(g), codes.dequantize())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("value", [0.0, 0.37, -0.37, 1e-30, 1e-42, -1e-6])
def test_constant_matrices_are_safe(text: str, value: float) -> None:
    w = torch.full((33, 70), value)
    codes = parse(text).quantize(w)
    assert bool((torch.isfinite(codes.scale.effective) & (codes.scale.effective > 0)).all())
    decoded = codes.dequantize()
    assert bool(torch.isfinite(decoded).all())
    if 0.0 in codes.format.grid.levels().tolist() and value == 0.0:
        assert not bool(decoded.any())
    if parse(text).asymmetric and abs(value) == 0.37:
        # A constant is an end of its widened range; the stored scale alone is rounded.
        assert torch.allclose(decoded, w, rtol=0.5 if parse(text).scale.storage == "e8m0" else 1e-3)


@pytest.mark.parametrize("text", TEXTS)
def test_a_zero_group_beside_others_stays_zero(text: str) -> None:
    w = matrix(64, 128)
    w[32:] = 0.0
    codes = parse(text).quantize(w)
    if 0.0 in codes.format.grid.levels().tolist():
        assert not bool(codes.dequantize()[32:].any())
    assert bool(torch.isfinite(codes.dequantize()).all())


@pytest.mark.parametrize("text", ["nvfp4", "nf4 b64 scale=double"])
def test_zero_groups_do_not_set_the_outer_scale(text: str) -> None:
    w = matrix(64, 128)
    alone = parse(text).quantize(w[:32]).dequantize()
    w[32:] = 0.0
    together = parse(text).quantize(w).dequantize()[:32]
    if text == "nvfp4":
        assert torch.equal(together, alone)
    # The mean of double quantization does move with the zeros, but its steps stay those of the real scales.
    assert float((together - w[:32]).norm()) < 1.1 * float((alone - w[:32]).norm())


@pytest.mark.parametrize("text", ["int4 g1 asym", "int4 g1", "nf4 b1", "e2m1 g1 scale=e8m0", "int8 channel"])
def test_groups_of_one(text: str) -> None:
    w = matrix(8, 1 if text == "int8 channel" else 8)
    error = (parse(text).quantize(w).dequantize() - w).abs() / w.abs()
    assert float(error.max()) < (0.51 if "e8m0" in text else 0.08)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("text", ["int4 g128 asym", "int8 channel", "nf4 b64", "mxfp4", "nvfp4", "e4m3 tensor"])
def test_nan_and_infinity_are_refused(text: str, bad: float) -> None:
    w = matrix(16, 70)
    w[7, 69] = bad
    with pytest.raises(InputError, match="NaN or Inf"):
        parse(text).quantize(w)


def test_huge_weights_are_refused_or_served_by_bf16() -> None:
    w = matrix(8, 64) * 1e8
    with pytest.raises(InputError, match="scale=bf16"):
        parse("int4 g32").quantize(w)
    decoded = parse("int4 g32 scale=bf16").quantize(w).dequantize()
    assert float((decoded - w).norm() / w.norm()) < 0.15


def test_learned_grids_need_a_stage() -> None:
    with pytest.raises(InputError, match="learned codebook"):
        parse("lut4 channel").quantize(matrix(4, 8))
    with pytest.raises(InputError, match="needs a codebook"):
        parse("lut4 channel").encode(torch.zeros(2, 1, 4), torch.ones(2, 1))


def test_learned_codebooks_encode_and_decode() -> None:
    fmt, g = parse("lut2 channel"), matrix(3, 16).view(3, 1, 16)
    codebook = torch.tensor([-0.06, -0.02, 0.02, 0.06]).expand(3, 1, 4).to(torch.float16)
    ones = torch.ones(3, 1)
    codes = fmt.encode(g, ones, None, codebook)
    values = fmt.decode(codes, ones, None, codebook)
    distance = (g.unsqueeze(-1) - codebook.float().unsqueeze(2)).abs()
    assert torch.equal((values - g).abs(), distance.amin(-1))
    assert torch.equal(fmt.round(g, ones, None, codebook), values)


@pytest.mark.parametrize("kind", ["sym", "narrow", "asym"])
def test_the_error_falls_fourfold_per_bit(kind: str) -> None:
    w = torch.rand(64, 512, generator=torch.Generator().manual_seed(5)) * 2 - 1
    formats = [parse(f"int{bits} g128 scale=fp32 {kind}") for bits in range(4, 9)]
    errors = [(fmt.quantize(w).dequantize() - w).square().mean() for fmt in formats]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.3 < float(coarse / fine) < 4.8


def test_uniform_error_is_a_twelfth_of_the_squared_step() -> None:
    w = torch.rand(64, 4096, generator=torch.Generator().manual_seed(6))
    fmt = parse("uint8 tensor scale=fp32")
    codes = fmt.quantize(w)
    step = codes.scale.effective.item()
    assert float((codes.dequantize() - w).square().mean()) == pytest.approx(step**2 / 12, rel=0.01)


def test_better_formats_are_better_on_normal_weights() -> None:
    w = matrix(128, 512)
    order = ["int2 g64", "int3 g64", "fp4-bnb b64", "int4 g64", "nf4 b64", "int5 g64", "e2m3 g64", "int8 g64"]
    errors = [float((parse(text).quantize(w).dequantize() - w).square().mean()) for text in order]
    assert errors == sorted(errors, reverse=True)


def test_inputs_are_left_alone() -> None:
    w = matrix(16, 32)
    kept = w.clone()
    for text in TEXTS:
        parse(text).quantize(w)
        parse(text).fake_quantize(w)
    assert torch.equal(w, kept)


def test_zero_points_shift_before_rounding() -> None:
    fmt = parse("int4 channel zero=fp32")
    assert isinstance(fmt.grid, IntGrid)
    codes = fmt.encode(torch.tensor([[[0.2, 1.0, -9.0]]]), torch.tensor([[0.5]]), torch.tensor([[7.3]]))
    assert codes.tolist() == [[[8, 9, 0]]]
    values = fmt.decode(codes, torch.tensor([[0.5]]), torch.tensor([[7.3]]))
    assert torch.allclose(values, torch.tensor([[[0.35, 0.85, -3.65]]]))
