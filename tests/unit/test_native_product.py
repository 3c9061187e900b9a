"""Lookups, bf16, coded activations, base 3 and sums of terms against the definition, for every instruction set here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import IntGrid, parse
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.product import Coding, Product, Way, call, multiply
from bitwright.runtime import ActivationQuantizer
from bitwright.runtime.kernels.linear import prepared, variants
from bitwright.runtime.kernels.linear.coding import coding_for
from tests.unit.native_samples import packed, quantized, quantizer_of, random, with_terms

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()
ROWS = (1, 2, 3, 4, 7, 8, 13)


def product(
    name: str, made: Product, x: Tensor, bias: Tensor | None = None, coding: Coding | None = None, threads: int = 2
) -> Tensor:
    numbers = [made.step(), *(coding.numbers() if coding is not None else [])]
    y, arguments = call(x, made.parts(), bias, made.geometry(), numbers)
    kernels: Any = library(name)
    kernels.product(*arguments, threads)
    return y


def in_blocks(x: Tensor, block: int) -> Tensor:
    """x[rows, in] in 8 bits, a scale for every row and block."""
    blocks = -(-x.shape[1] // block)
    cut = torch.nn.functional.pad(x.float(), (0, blocks * block - x.shape[1])).view(len(x), blocks, block)
    peak = cut.abs().amax(-1, keepdim=True)
    step = torch.where(peak == 0, torch.ones_like(peak), peak / 127)
    return ((cut * (1 / step)).round() * step).view(len(x), -1)[:, : x.shape[1]]


def close(got: Tensor, wanted: Tensor, tolerance: float = 4e-6) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * float(wanted.abs().max()))


# FP4 and powers of two are exact in integers; others are rounded to 14 bits, 6e-5 of the largest level.
TABLES = {"mxfp4": 0.0, "nvfp4": 0.0, "pot3 channel": 0.0, "nf4 b64": 7e-5, "nf3 b32": 7e-5, "lut4 channel": 7e-5,
          "lut3 g32": 7e-5, "lut2 channel": 7e-5}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", TABLES)
def test_lookups_equal_the_definition(name: str, text: str) -> None:
    for shape in ((40, 192), (33, 320)):
        weight = quantized(text, shape)
        made = variants.lookup_product(weight)
        assert made.way == Way.LOOKUP
        levels = weight.dequantize().double()
        peak = levels.abs().max()
        for rows in ROWS:
            x = random(rows, shape[1], seed=rows)
            seen = in_blocks(x, getattr(made.weight, "block")).double()  # noqa: B009
            got, wanted = product(name, made, x), seen @ levels.T
            allowed = TABLES[text] * float(peak * seen.abs().sum(1).max()) + 4e-6 * float(wanted.abs().max())
            assert float((got - wanted).abs().max()) <= allowed


@pytest.mark.parametrize(
    "text",
    [
        "int4 g32 asym", "int3 channel", "int8 g64", "nf4 b64", "mxfp4", "mxfp6_e3m2", "e4m3 tensor", "e5m2 channel",
        "int5 g128", "nf3 b32", "ternary channel",
    ],
)  # fmt: skip
def test_products_of_bf16_equal_the_definition(text: str) -> None:
    if not library(SETS[0]).has_bf16:  # type: ignore[union-attr]
        pytest.skip("no dot product of bf16 here")
    for shape in ((40, 192), (33, 256)):
        weight = quantized(text, shape)
        made = variants.bf16_product(weight)
        term = weight.terms[0]
        grid = term.format.grid  # type: ignore[union-attr]
        exact = isinstance(grid, IntGrid) or text[:2] != "nf"
        for rows in ROWS:
            x = random(rows, shape[1], seed=rows)
            wanted = x.bfloat16().double() @ weight.dequantize().double().T
            close(product(SETS[0], made, x), wanted, 3e-6 if exact else 4e-3)
            assert torch.equal(
                product(SETS[0], made, x.bfloat16()), product(SETS[0], made, x.bfloat16().float()).bfloat16()
            )


@pytest.mark.parametrize("name", SETS)
def test_five_ternary_digits_in_a_byte_are_exact(name: str) -> None:
    """Every byte's five digits, and integer activations of every size: equal to the last bit."""
    for columns in (20, 160, 243, 500):
        digits = (torch.arange(48).view(-1, 1) * 5 + torch.arange(columns) // 20) % 243
        place = torch.arange(columns) % 20 // 4
        digits = (digits // (3 ** (4 - place)) % 3).to(torch.uint8)
        made = Product(Way.TERNARY, prepared.ternary_weight(digits, torch.full((48, 1), 0.5)))
        for rows in (1, 2, 9):
            x = torch.randint(-128, 128, (rows, columns), generator=torch.Generator().manual_seed(rows)).float()
            coding = Coding(columns, -128, 127, 127.5, given=True)
            wanted = x.double() @ (digits.double() - 1).T * 0.5
            assert torch.equal(product(name, made, x, coding=coding).double(), wanted)
    assert made.weight.bytes() < 500 * 48 * 1.7 / 8 + 48 * 4


INPUTS = ["int8 token dynamic", "int8 token asym dynamic", "int4 token dynamic", "int4 token asym dynamic",
          "int8 tensor static", "int8 tensor asym static", "int8 tensor dynamic", "int8 g64 dynamic",
          "int8 g64 asym dynamic", "int8 token narrow dynamic", "int6 token asym dynamic"]  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "text", ["int8 channel", "int4 g32 asym", "int3 channel", "mxfp4", "ternary channel", "binary channel"]
)
def test_coded_inputs_equal_fake_quantized_ones(name: str, text: str) -> None:
    """W8A8, W4A8, W4A4 and others: codes in integers are the quantizer's values, to the rounding of fp32."""
    weight = quantized(text, (35, 192))
    made = variants.prepare_coded(packed(weight), torch.float32)
    assert made.product.way == (Way.LOOKUP if text == "mxfp4" else Way.INT8)
    for words in INPUTS:
        for rows in (1, 3, 9):
            x = random(rows, 192, seed=rows) + 0.3
            quantizer = quantizer_of(words, x)
            coding = coding_for(quantizer, x)
            wanted = quantizer(x).double() @ weight.dequantize().double().T
            close(product(name, made.for_coding(coding), x, coding=coding), wanted, 6e-6)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("way", [Way.EXACT, Way.INT8, Way.LOOKUP, Way.TERNARY])
def test_terms_are_added_in_the_same_call(name: str, way: Way) -> None:
    """Single weights and narrow factors, with bias, in every float type; coded inputs reach every term."""
    text = {Way.EXACT: "nf4 b64", Way.INT8: "int4 g32", Way.LOOKUP: "mxfp4", Way.TERNARY: "ternary channel"}[way]
    weight = with_terms(quantized(text, (35, 160)))
    make = {Way.EXACT: variants.exact_product, Way.INT8: variants.int8_product, Way.LOOKUP: variants.lookup_product,
            Way.TERNARY: variants.ternary_product}[way]  # fmt: skip
    made = make(weight)
    coded = variants.CodedProduct(made, packed(weight))
    bias = random(35)
    for rows in (1, 5, 18):
        x = random(rows, 160, seed=rows)
        for words in ("int8 token dynamic", "int8 token asym dynamic"):
            quantizer = ActivationQuantizer(parse(words))
            coding = None if way == Way.EXACT else coding_for(quantizer, x)
            seen = x if coding is None else quantizer(x)
            wanted = seen.double() @ weight.dequantize().double().T + bias
            ready = made if coding is None else coded.for_coding(coding)
            close(product(name, ready, x, bias, coding), wanted, 6e-6)
        half = x.half()
        wanted = half.double() @ weight.dequantize().double().T
        close(product(name, made, half), wanted, 2e-3 if way == Way.EXACT else 3e-2)


@pytest.mark.parametrize("name", SETS)
def test_threads_and_bad_values(name: str) -> None:
    weight = with_terms(quantized("mxfp4", (100, 96)))
    for made in (variants.lookup_product(weight), variants.exact_product(weight)):
        for rows in (1, 20):
            x = random(rows, 96)
            assert torch.equal(product(name, made, x, threads=1), product(name, made, x, threads=3))
        for bad in (float("nan"), float("inf")):
            x = torch.ones(2, 96)
            x[1, 7] = bad
            y = product(name, made, x)
            assert torch.isfinite(y[0]).all()
            assert not torch.isfinite(y[1, :64]).any()
    assert product(name, made, torch.empty(0, 96)).shape == (0, 100)


def test_the_operator_can_be_exported_and_refuses_what_does_not_fit() -> None:
    weight = with_terms(quantized("mxfp4", (35, 160)))
    made = variants.lookup_product(weight)
    x = random(3, 160)
    torch.library.opcheck(
        torch.ops.bitwright.product.default if multiply(x, made) is not None else None,
        (x, made.parts(), None, made.geometry(), [made.step()]),
    )
    assert made.terms is not None
    assert made.tables is not None
    wrong = [
        replace(made, terms=replace(made.terms, columns=made.terms.columns + 160)),
        replace(made, terms=replace(made.terms, starts=made.terms.starts.flip(0))),
        replace(made, terms=replace(made.terms, left=made.terms.left[:1])),
        replace(made, tables=replace(made.tables, low=made.tables.low[:8])),
        replace(made, tables=replace(made.tables, offset=1 << 20)),
        replace(made, way=Way.INT8, weight=replace(made.weight, codes=made.weight.codes[:-1])),
    ]
    for product_ in wrong:
        with pytest.raises((InputError, ValueError)):
            multiply(x, product_)
    with pytest.raises((InputError, ValueError)):
        multiply(x, made, coding=Coding(17, -128, 127, 127.5))
    with pytest.raises((InputError, ValueError)):
        multiply(x, made, coding=Coding(160, 0, 255, 255, asymmetric=True))
    with pytest.raises(InputError, match="160 channels"):
        multiply(random(3, 161), made)
