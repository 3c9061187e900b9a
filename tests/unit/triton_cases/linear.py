"""The linear kernels against the dequantized weight in float64: every code, odd shapes, tails, empty and large rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, Sparse, parse
from bitwright.formats.scales import Scale
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.linear import reference
from bitwright.runtime.kernels.linear.triton import KERNEL
from bitwright.runtime.kernels.triton.product import launch_shape, linear
from bitwright.runtime.kernels.triton.weight import TileWeight, tile_weight
from bitwright.runtime.weight import PackedWeight

# Rounding of weights and results to the type, and of float32 sums. The interpreter cuts bf16 off instead of rounding.
UNITS = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-6}
DTYPES = tuple(UNITS)

INTEGERS = [
    f"int{bits} {group} {sign}"
    for bits in range(1, 9)
    for group, sign in (("g32", "sym"), ("g64", "asym"), ("g128", "sym"), ("g256", "asym"), ("channel", "asym"))
]
OTHERS = [
    "int4 g96", "int4 g8", "int4 tensor", "int4 block16x32", "int4 narrow g64", "int4 g128 asym zero=fp16", "nf4 b64",
    "nf4 b64 scale=double", "nf4 g64", "nf3 channel", "fp4-bnb b64", "ternary channel", "pot4 channel", "e4m3 tensor",
    "e5m2 channel", "e3m4 channel", "e4m3 block128x128", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3",
    "mxfp8_e5m2", "mxint8", "nvfp4", "int4 g32 scale=bf16", "int4 g32 scale=fp32",
]  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agree(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> None:
    """Compare with the product in float64, within what rounding of one product's terms explains."""
    x, w = x.cpu().double(), w.cpu().double()
    offset = 0 if bias is None else bias.cpu().double()
    exact, size = x @ w.T + offset, x.abs() @ w.abs().T + abs(offset)
    error = (y.cpu().double() - exact).abs()
    assert y.dtype in UNITS
    assert bool((error <= UNITS[y.dtype] * size + 1e-30).all()), float((error / size.clamp(min=1e-30)).max())


def coded(text: str, out: int = 37, columns: int = 200, seed: int = 0) -> Codes:
    return parse(text).quantize(random(out, columns, seed=seed))


def prepared(term: Codes, device: torch.device) -> TileWeight:
    tensors, meta = QuantizedTensor((term,)).to_tensors()
    packed = PackedWeight({k: t.to(device) for k, t in tensors.items()}, meta, term.shape, term.kind, str(term.format))
    found: TileWeight = KERNEL.prepare(packed, torch.float32)
    return found


@pytest.mark.parametrize("text", INTEGERS + OTHERS)
def test_every_format_decodes_and_multiplies(text: str, device: torch.device) -> None:
    columns = 320 if "block" in text or "b64" in text else 200
    term = coded(text, columns=columns)
    weight = prepared(term, device)
    for tokens, dtype in ((2, torch.float32), (9, torch.float16)):
        x = random(tokens, columns, seed=1).to(device, dtype)
        agree(linear(x, weight), x, term.dequantize())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 70])
@pytest.mark.parametrize(("out", "columns"), [(1, 1), (130, 129), (16, 40)])
def test_any_number_of_tokens_and_any_shape(
    tokens: int, out: int, columns: int, dtype: torch.dtype, device: torch.device
) -> None:
    term = coded("int3 g32 asym", out, columns)
    x, bias = random(tokens, columns, seed=1).to(device, dtype), random(out, seed=2).to(device)
    agree(linear(x, prepared(term, device), bias), x, term.dequantize(), bias)


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("granularity", ["channel", "g32"])
def test_learned_codebooks(granularity: str, tokens: int, device: torch.device) -> None:
    fmt = parse(f"lut3 {granularity}")
    out, columns = 19, 80
    rows, groups = fmt.granularity.layout((out, columns)).params_shape
    codes = torch.randint(0, 8, (out, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    term = Codes(
        codes, fmt, Scale(torch.empty(0), torch.ones(rows, groups)), codebook=random(rows, groups, 8).to(torch.float16)
    )
    x = random(tokens, columns, seed=1).to(device, torch.float16)
    agree(linear(x, prepared(term, device)), x, term.dequantize())


@pytest.mark.parametrize("tokens", [1, 12])
def test_empty_rows_and_large_values(tokens: int, device: torch.device) -> None:
    w = random(20, 96)
    w[3] = 0
    w[:, 32:64] = 0
    w[5] *= 1e30
    w[6] *= 1e-30
    for text in ("int4 g32 scale=fp32", "int8 channel asym scale=bf16", "mxfp4", "mxfp8_e4m3"):
        term = parse(text).quantize(w)
        x = random(tokens, 96, seed=1).to(device)
        x[:, 7] *= 1e6
        agree(linear(x, prepared(term, device)), x, term.dequantize())
        y = linear(torch.zeros_like(x), prepared(term, device))
        assert not bool(y.any())


def test_values_that_are_not_finite_stay_in_their_token(device: torch.device) -> None:
    x = random(2, 96, seed=1).to(device)
    x[0, 95] = float("nan")
    y = linear(x, prepared(coded("int4 g32", columns=96), device))
    assert bool(torch.isnan(y[0]).all())
    assert bool(torch.isfinite(y[1]).all())


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_equal_calls_give_equal_bits_and_splits_are_added_in_order(tokens: int, device: torch.device) -> None:
    term = coded("int4 g64 asym", 20, 1000)
    x, weight = random(tokens, 1000, seed=1).to(device), prepared(term, device)
    for splits in (0, 3, 1000):
        first = linear(x, weight, splits=splits)
        agree(first, x, term.dequantize())
        assert torch.equal(first, linear(x, weight, splits=splits))


def test_a_token_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    x, weight = random(8, 200, seed=1).to(device), prepared(coded("int4 g64"), device)
    assert torch.equal(linear(x, weight, splits=1)[5], linear(x.flip(0), weight, splits=1)[2])


def test_the_work_covers_every_tile_once() -> None:
    for tokens, out, tiles in ((1, 4096, 32), (8, 100, 7), (1, 16, 1000), (64, 4096, 32), (1000, 128, 1)):
        for splits in (0, 1, 5, 7, 1000):
            cut = launch_shape(tokens, out, tiles, processors=132, splits=splits)
            assert (cut.splits - 1) * cut.tiles_per_split < tiles <= cut.splits * cut.tiles_per_split


@pytest.mark.parametrize("given", ["mxfp8_e4m3 dynamic", "int8 token dynamic", "int8 token asym dynamic"])
def test_the_same_as_the_reference_with_a_quantized_input(given: str, device: torch.device) -> None:
    term = coded("mxfp4", columns=96)
    tensors, meta = QuantizedTensor((term,)).to_tensors()
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    packed = PackedWeight(tensors, meta, term.shape, term.kind, str(term.format))
    x, bias = random(2, 3, 96, seed=1).to(device), random(37, seed=2).to(device)
    quantizer = ActivationQuantizer(parse(given))
    y = KERNEL.run(x, KERNEL.prepare(packed, x.dtype), bias, quantizer)
    torch.testing.assert_close(y, reference.run(x, packed, bias, quantizer), rtol=1e-4, atol=1e-4)


def test_no_tokens(device: torch.device) -> None:
    assert linear(torch.empty(0, 200, device=device), prepared(coded("int4 g64"), device)).shape == (0, 37)


def test_what_does_not_fit_is_refused_by_name(device: torch.device) -> None:
    weight = prepared(coded("int4 g64"), device)
    x = random(1, 200).to(device)
    with pytest.raises(UnsupportedError, match="float64"):
        linear(x.double(), weight)
    with pytest.raises(InputError, match="200 channels, not 100"):
        linear(x[:, :100], weight)
    arguments = [x, weight.tiles, weight.scale, None, None, None, 37, 64, 0, 8, 0, 0, 1.0, 0]
    for index, value, words in (
        (1, weight.tiles[:, :1], "tiles of shape"), (2, weight.scale[:3], "scale has"), (7, 63, "groups of 63"),
        (6, 300, "do not fit"), (8, 2, "levels are missing"), (3, weight.scale[:3], "zero has"), (5, x, "bias has"),
    ):  # fmt: skip
        wrong = [*arguments[:index], value, *arguments[index + 1 :]]
        with pytest.raises(InputError, match=words):
            torch.ops.bitwright.triton_linear(*wrong)


def test_formats_and_sums_that_are_not_served() -> None:
    with pytest.raises(UnsupportedError, match="multiples of 8"):
        tile_weight(coded("int4 g20"))
    with pytest.raises(UnsupportedError, match="multiples of 8"):
        tile_weight(coded("int4 g32 axis=0"))
    term = coded("int4 g32")
    sparse = Sparse.where(term.dequantize(), term.dequantize() > 2)
    tensors, meta = QuantizedTensor((term, sparse)).to_tensors()
    with pytest.raises(UnsupportedError, match=r"affine\+sparse"):
        KERNEL.prepare(PackedWeight(tensors, meta, term.shape, "affine+sparse", "int4 g32"), torch.float32)
