"""Bit-serial products and tables of sums equal the integer product, for every instruction set of this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.native import instruction_sets, unavailable
from bitwright.native.product import Coding, multiply
from bitwright.runtime import ActivationQuantizer, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import catalogue, preference, reference, variants
from bitwright.runtime.kernels.linear.coding import coding_for
from bitwright.runtime.module import Options
from tests.unit.native_samples import packed, quantized, random
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
