"""4-bit weights in whole numbers from end to end, against sums of integers, for every instruction set here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.formats.scales import Scale
from bitwright.native import instruction_sets, unavailable
from bitwright.native.product import Coding, multiply
from bitwright.runtime import ActivationQuantizer, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import four_bit, preference, reference, variants
from bitwright.runtime.kernels.linear.coding import coding_for
from bitwright.runtime.module import Options
from tests.unit.native_samples import packed, quantized, random, with_terms
from tests.unit.test_native_product import product

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()
SHAPES = ((35, 200), (16, 33), (64, 512), (17, 16), (100, 4096))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", ["int4 channel", "int4 channel narrow"])
def test_weights_in_upper_halves_are_exact(name: str, text: str) -> None:
    """Every level times every 8-bit code, the extremes in long runs: equal to the last bit."""
    generator = torch.Generator().manual_seed(1)
    for out, columns in SHAPES:
        lowest = int(parse(text).grid.min_level)
        codes = torch.randint(0, 8 - lowest, (out, columns), generator=generator, dtype=torch.uint8)
        codes[0], codes[1] = 0, 7 - lowest
        ones = torch.ones(out, 1)
        weight = QuantizedTensor((Codes(codes, parse(text + " scale=fp32"), Scale(ones, ones)),))
        made = four_bit.nibbles_product(weight)
        levels = codes.double() + lowest
        for rows in (1, 2, 9):
            x = torch.randint(-128, 128, (rows, columns), generator=generator).float()
            x[0] = -128
            coding = Coding(columns, -128, 127, 127.5, given=True)
            assert torch.equal(product(name, made, x, coding=coding).double(), x.double() @ levels.T)


@pytest.mark.parametrize("name", SETS)
def test_they_serve_quantized_inputs(name: str) -> None:
    for text in ("int4 channel", "int4 tensor"):
        weight = with_terms(quantized(text, (35, 192)))
        made = variants.CodedProduct(four_bit.nibbles_product(weight), packed(weight))
        for words in ("int8 token dynamic", "int8 token asym dynamic", "int8 tensor dynamic", "int4 token dynamic"):
            for rows in (1, 6):
                x = random(rows, 192, seed=rows) + 0.3
                quantizer = ActivationQuantizer(parse(words))
                coding = coding_for(quantizer, x)
                got = product(name, made.for_coding(coding), x, random(35), coding).double()
                wanted = quantizer(x).double() @ weight.dequantize().double().T + random(35)
                torch.testing.assert_close(got, wanted, rtol=0, atol=6e-6 * float(wanted.abs().max()))


def test_the_dispatch_takes_them_where_they_won(monkeypatch: pytest.MonkeyPatch) -> None:
    won = {(SETS[0], "native-nibbles", phase): frozenset({"w4a8"}) for phase in ("decode", "prompt")}
    quantizer = ActivationQuantizer(parse("int8 token dynamic"))
    x = random(5, 160)
    for text, fits in (("int4 channel", True), ("int4 g32", False), ("int4 channel asym", False)):
        weight = quantized(text, (40, 160))
        plain = QuantLinear.from_quantized(weight, options=Options(input=quantizer, table=Table((reference.KERNEL,))))
        for measured in ({}, won):
            monkeypatch.setattr(preference, "PREFERENCE", measured)
            layer = QuantLinear.from_quantized(weight, options=Options(input=quantizer))
            assert (layer.served(rows=4).kernel.name == "linear/native-nibbles") == (bool(measured) and fits)
            wanted = plain(x).detach()
            torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_what_does_not_fit_is_refused() -> None:
    made = four_bit.nibbles_product(quantized("int4 channel", (40, 128)))
    whole = Coding(128, -128, 127, 127.5)
    assert made.levels is not None
    for wrong, coding in (
        (made, None),
        (made, replace(whole, run=64)),
        (replace(made, levels=made.levels[:1]), whole),
        (replace(made, weight=quantized_weight("int4 g32 asym")), whole),
        (replace(made, weight=quantized_weight("int3 channel")), whole),
    ):
        with pytest.raises((InputError, ValueError)):
            multiply(random(2, 128), wrong, coding=coding)


def quantized_weight(text: str) -> object:
    return variants.int8_product(quantized(text, (40, 128))).weight


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", ["int4 g128 asym scale=int8", "int4 g32 asym scale=int8", "int4 g64 scale=int8",
                                  "int4 g256 asym scale=int8"])  # fmt: skip
def test_two_levels_of_scales_are_exact(name: str, text: str) -> None:
    """Sums of (code - zero) * scale * x in integers, times one float for a row: equal to the last bit."""
    generator = torch.Generator().manual_seed(7)
    for shape in ((35, 512), (17, 200), (100, 1024)):
        weight = quantized(text, shape)
        made = four_bit.two_level_product(weight)
        term = weight.terms[0]
        assert isinstance(term, Codes)
        assert term.scale.outer is not None
        whole = term.dequantize().double() / term.scale.outer.double().view(-1, 1)
        assert torch.equal(whole, whole.round())
        for rows in (1, 2, 9):
            x = torch.randint(-128, 128, (rows, shape[1]), generator=generator).float()
            coding = Coding(shape[1], -128, 127, 127.5, given=True)
            wanted = (x.double() @ whole.T).float() * term.scale.outer.float()
            assert torch.equal(product(name, made, x, coding=coding), wanted)


def test_two_levels_serve_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    won = {(SETS[0], "native-two-level", phase): frozenset({"w4a8"}) for phase in ("decode", "prompt")}
    for words in ("int8 token dynamic", "int8 token asym dynamic"):
        quantizer, x = ActivationQuantizer(parse(words)), random(5, 192) + 0.2
        weight = with_terms(quantized("int4 g64 asym scale=int8", (40, 192)))
        plain = QuantLinear.from_quantized(weight, options=Options(input=quantizer, table=Table((reference.KERNEL,))))
        wanted = plain(x).detach()
        for measured in ({}, won):
            monkeypatch.setattr(preference, "PREFERENCE", measured)
            layer = QuantLinear.from_quantized(weight, options=Options(input=quantizer))
            assert (layer.served(rows=4).kernel.name == "linear/native-two-level") == bool(measured)
            torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
