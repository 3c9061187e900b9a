"""Bit-serial products and tables of sums equal the integer product, for every instruction set of this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.formats.scales import Scale
from bitwright.native import instruction_sets, unavailable
from bitwright.native.product import Coding, Product, Way, multiply
from bitwright.runtime import ActivationQuantizer, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import catalogue, preference, prepared, reference, variants
from bitwright.runtime.kernels.linear.coding import coding_for
from bitwright.runtime.module import Options
from tests.unit.native_samples import packed, quantized, quantizer_of, random, with_terms
from tests.unit.test_native_product import in_blocks, product

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()


def values(weight: QuantizedTensor) -> Tensor:
    return weight.dequantize().double()


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=6e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_counted_bits_are_exact_for_every_pair_of_widths(name: str, bits: int) -> None:
    """p bits of weight by q bits of activation, whole numbers: equal to the last bit, with and without zero points."""
    generator = torch.Generator().manual_seed(bits)
    for zero in (0, 1 << (bits - 1)):
        weight = quantized(f"int{bits} channel{' asym' if zero == 0 else ''}", (35, 200))
        made = catalogue.bits_product(weight)
        for width in range(1, 9):
            for low in (-(1 << (width - 1)), 0):
                high = low + (1 << width) - 1
                x = torch.randint(low, high + 1, (3, 200), generator=generator).float()
                coding = Coding(200, low, min(high, 127), 1.0, given=True)
                x = x.clamp(max=127)
                close(product(name, made, x, coding=coding), x.double() @ values(weight).T)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", ["int1 channel", "int4 g64 asym", "ternary channel", "binary channel", "int3 channel"])
def test_counted_bits_serve_quantized_inputs(name: str, text: str) -> None:
    weight = quantized(text, (35, 192))
    made = variants.CodedProduct(catalogue.bits_product(weight), packed(weight))
    for words in ("int2 token dynamic", "int8 token asym dynamic", "int4 token narrow dynamic", "int8 token dynamic"):
        for rows in (1, 5):
            x = random(rows, 192, seed=rows) + 0.3
            quantizer = ActivationQuantizer(parse(words))
            coding = coding_for(quantizer, x)
            got = product(name, made.for_coding(coding), x, random(35), coding)
            close(got, quantizer(x).double() @ values(weight).T + random(35))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", ["int1 channel", "int2 g64 asym", "int3 channel", "int4 g32 asym", "ternary channel"])
def test_tables_of_sums_equal_the_integer_product(name: str, text: str) -> None:
    for columns in (192, 320):
        weight = quantized(text, (128, columns))
        makes = [catalogue.sums_product, *([catalogue.pairs_product] if "ternary" in text else [])]
        for make in makes:
            made = make(weight)
            for rows in (1, 3, 9):
                x = random(rows, columns, seed=rows)
                seen = in_blocks(x, made.weight.block).double()  # type: ignore[union-attr]
                close(product(name, made, x), seen @ values(weight).T)


def test_they_serve_only_where_they_were_measured_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantized("int1 channel", (128, 256))
    quantizer = ActivationQuantizer(parse("int1 token dynamic"))
    won = {
        (SETS[0], "native-bits", "decode"): frozenset({"w1a1"}),
        (SETS[0], "native-sums", "decode"): frozenset({"w1"}),
    }
    plainly, variant = ("linear/native-coded", "linear/native-int8"), ("linear/native-bits", "linear/native-sums")
    for measured, names in (({}, plainly), (won, variant)):
        monkeypatch.setattr(preference, "PREFERENCE", measured)
        coded = QuantLinear.from_quantized(weight, options=Options(input=quantizer))
        rounded = QuantLinear.from_quantized(weight, options=Options(exact=False))
        assert (coded.served(rows=1).kernel.name, rounded.served(rows=1).kernel.name) == names
        x = random(1, 256)
        plain = QuantLinear.from_quantized(weight, options=Options(input=quantizer, table=Table((reference.KERNEL,))))
        close(coded(x).detach(), plain(x).detach().double())
    assert coded.served(rows=64).kernel.name == "linear/native-coded"


def test_shapes_that_do_not_fit_are_refused() -> None:
    made = catalogue.sums_product(quantized("int2 channel", (64, 128)))
    with pytest.raises((InputError, ValueError)):
        multiply(random(1, 128), catalogue.Product(made.way, quantized_other(made)))
    bits = catalogue.bits_product(quantized("int2 channel", (40, 128)))
    with pytest.raises((InputError, ValueError)):
        multiply(random(1, 128), bits)
    with pytest.raises((InputError, ValueError)):
        multiply(random(1, 128), bits, coding=Coding(64, -8, 7, 7.5))


def quantized_other(made: catalogue.Product) -> object:
    """The weight of a product with fewer rows than a tall tile."""
    return replace(made.weight, shape=(63, 128))


@pytest.mark.parametrize("name", SETS)
def test_three_ternary_digits_in_five_bits_are_exact(name: str) -> None:
    """Every triple in every place of a unit, activations of every size: equal to the last bit, in less than 2 bits."""
    generator = torch.Generator().manual_seed(2)
    for out, columns in ((100, 24), (64, 200), (35, 500), (129, 192)):
        digits = torch.randint(0, 3, (out, columns), generator=generator, dtype=torch.uint8)
        place = torch.arange(27).clamp(max=out - 1)
        triple = torch.stack([place // 9, place // 3 % 3, place % 3], 1).to(torch.uint8)
        digits[:27, : columns // 3 * 3] = triple.repeat(1, columns // 3)
        made = Product(Way.TRIPLES, prepared.triples_weight(digits, torch.full((out, 1), 0.5)))
        for rows in (1, 2, 9):
            for size in (128, 3):
                x = torch.randint(-size, size, (rows, columns), generator=generator).float()
                x[0] = -size
                coding = Coding(columns, -128, 127, 127.5, given=True)
                wanted = x.double() @ (digits.double() - 1).T * 0.5
                assert torch.equal(product(name, made, x, coding=coding).double(), wanted)
    large = Product(
        Way.TRIPLES, prepared.triples_weight(torch.ones(1024, 4096, dtype=torch.uint8), torch.ones(1024, 1).half())
    )
    assert large.bytes() * 8 / (1024 * 4096) < 1.68


@pytest.mark.parametrize("name", SETS)
def test_triples_serve_rounded_and_coded_inputs(name: str) -> None:
    for shape in ((40, 320), (70, 193)):
        weight = with_terms(quantized("ternary channel", shape))
        made = catalogue.triples_product(weight)
        coded = variants.CodedProduct(made, packed(weight))
        for rows in (1, 5):
            x = random(rows, shape[1], seed=rows) + 0.2
            for words in ("int8 token dynamic", "int8 token asym dynamic", "int4 tensor dynamic"):
                quantizer = ActivationQuantizer(parse(words))
                coding = coding_for(quantizer, x)
                close(
                    product(name, coded.for_coding(coding), x, coding=coding), quantizer(x).double() @ values(weight).T
                )
        plain = quantized("ternary channel", shape)
        seen = in_blocks(x, 192).double()
        close(product(name, catalogue.triples_product(plain), x), seen @ values(plain).T)
        with pytest.raises((InputError, ValueError)):
            multiply(x, replace(made, weight=replace(made.weight, codes=made.weight.codes[:-1])))


def bipolar(bits: int, codes: Tensor) -> QuantizedTensor:
    """Bipolar integers with the scale 1."""
    ones = torch.ones(len(codes), 1)
    return QuantizedTensor((Codes(codes, parse(f"bipolar{bits} channel scale=fp32"), Scale(ones, ones)),))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_bipolar_integers_are_exact_for_every_pair_of_widths(name: str, bits: int) -> None:
    """Every bit is plus or minus a power of two on both sides; sums over pairs of planes equal the integer product."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (35, 72), generator=generator, dtype=torch.uint8)
    codes[0], codes[1] = 0, (1 << bits) - 1
    planes = sum((2 * ((codes.int() >> i) & 1) - 1) << i for i in range(bits))
    weight = bipolar(bits, codes)
    assert torch.equal(weight.dequantize(), torch.as_tensor(planes).float())
    made = variants.CodedProduct(catalogue.bits_product(weight), packed(weight))
    for width in range(1, 9):
        levels = torch.arange(1 - (1 << width), 1 << width, 2)
        x = levels[torch.randint(0, len(levels), (3, 72), generator=generator)].float()
        x[0] = levels[0]
        half = 1 << (width - 1)
        coding = Coding(72, -half, half - 1, half - 0.5, given=True, scale=2.0, bipolar=True)
        assert torch.equal(
            product(name, made.for_coding(coding), x, coding=coding).double(), x.double() @ values(weight).T
        )


@pytest.mark.parametrize("name", SETS)
def test_bipolar_inputs_are_coded_as_the_format_says(name: str) -> None:
    """Zeros and halfway points lie between two levels and take the lower one, as in the definition."""
    for words in ("bipolar2 token dynamic", "bipolar3 tensor dynamic", "binary token dynamic", "bipolar8 token dynamic",
                  "bipolar2 token dynamic clip=0.8", "bipolar4 tensor static"):  # fmt: skip
        for text in ("bipolar2 channel", "int4 g32 asym"):
            weight = quantized(text, (35, 192))
            x = random(5, 192)
            x[1] = torch.arange(192) % 7 - 3
            x[2, ::3], x[3] = 0, 0
            quantizer = quantizer_of(words, x)
            coding = coding_for(quantizer, x)
            wanted = quantizer(x).double() @ values(weight).T
            for make in (catalogue.bits_product, variants.int8_product):
                made = variants.CodedProduct(make(weight), packed(weight))
                close(product(name, made.for_coding(coding), x, coding=coding), wanted)


def test_bipolar_weights_lose_no_more_than_symmetric_integers() -> None:
    """Two and three bits: the level that symmetric integers leave unused is worth more than a zero."""
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3):
        for size in ("channel", "g64"):
            errors = [
                float((parse(text).quantize(w).dequantize() - w).square().mean())
                for text in (f"bipolar{bits} {size}", f"int{bits} {size} narrow")
            ]
            assert errors[0] <= errors[1]
    assert [len(parse(f"bipolar{bits}").grid.levels()) for bits in (1, 2, 3)] == [2, 4, 8]
    assert str(parse("bipolar3 g64")) == "bipolar3 g64"
