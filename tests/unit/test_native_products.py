"""Tables of products of 2 bits by 2 bits, evenly spaced or not on either side, against plain sums of integers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.native import instruction_sets, unavailable
from bitwright.native.product import Coding, Product, Way, multiply
from bitwright.runtime import ActivationQuantizer, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import preference, prepared, products, reference
from bitwright.runtime.kernels.linear.coding import coding_for
from bitwright.runtime.module import Options
from tests.unit.native_samples import packed, quantized, random, with_terms
from tests.unit.test_native_product import product

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()

# Products from one to 16 bits: bytes that are added up for a while, that are widened at once, and pairs of bytes.
SIDES = [
    ((-2, -1, 0, 1), (-2, -1, 0, 1)),
    ((-1, 0, 1, 0), (0, 1, 2, 3)),
    ((-3, -1, 1, 3), (-3, -1, 1, 3)),
    ((-5, -1, 2, 7), (0, 1, 3, 9)),
    ((-11, 0, 3, 8), (-10, -4, 0, 12)),
    ((-181, -7, 4, 150), (-90, -3, 11, 181)),
    ((0, 0, 0, 0), (-2, -1, 0, 1)),
]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("weights", "inputs"), SIDES)
def test_any_levels_on_both_sides_are_exact(name: str, weights: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    """Random codes, and runs of the largest product; every shape has a tail of rows and, some, a padded block."""
    generator = torch.Generator().manual_seed(4)
    w, a = torch.tensor(weights, dtype=torch.int32), torch.tensor(inputs, dtype=torch.int32)
    table = products.table_of(w, a)
    for (out, columns), block in (((35, 200), 128), ((16, 33), 32), ((50, 512), 64), ((17, 16), 16)):
        codes = torch.randint(0, 4, (out, columns), generator=generator, dtype=torch.uint8)
        codes[0] = int(w.abs().argmax())
        blocks = -(-columns // block)
        made = Product(Way.PRODUCTS, prepared.native_codes(codes, 2, block, blocks, torch.ones(out, 1)), levels=table)
        for rows in (1, 3, 9):
            x = torch.randint(0, 4, (rows, columns), generator=generator)
            x[0] = int(a.abs().argmax())
            wanted = a[x].double() @ w[codes.long()].double().T
            for low in (0, -2):
                coding = Coding(columns, low, low + 3, 1.5, given=True)
                assert torch.equal(product(name, made, (x + low).float(), coding=coding).double(), wanted)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", ["int2 g64 asym", "int2 channel", "ternary g32", "table[-1,-0.25,0.5,1] channel"])
def test_quantized_inputs_equal_the_definition(name: str, text: str) -> None:
    weight = with_terms(quantized(text, (35, 192)))
    made = products.prepare(packed(weight), torch.float32)
    for words in ("int2 token dynamic", "int2 token asym dynamic", "int2 token narrow dynamic", "int2 g64 dynamic"):
        for rows in (1, 5):
            x = random(rows, 192, seed=rows) + 0.3
            quantizer = ActivationQuantizer(parse(words))
            coding = coding_for(quantizer, x)
            got = product(name, made.product(quantizer.format).for_coding(coding), x, random(35), coding)
            wanted = quantizer(x).double() @ weight.dequantize().double().T + random(35)
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=6e-6 * float(wanted.abs().max()))


def test_the_dispatch_takes_it_where_it_won(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, even = "tables of both sides", "w2a2"
    won = {(SETS[0], "native-products", phase): frozenset({tables, even}) for phase in ("decode", "prompt")}
    for text, words in (
        ("table[-1,-0.25,0.5,1] channel", "table[-0.5,0,0.25,1] token dynamic"),
        ("int2 channel", "table[-1,0,0.5,1] token dynamic"),
        ("int2 g32 asym", "int2 token dynamic"),
    ):
        weight, x = quantized(text, (40, 160)), random(5, 160)
        quantizer = ActivationQuantizer(parse(words))
        plain = QuantLinear.from_quantized(
            weight, random(40), options=Options(input=quantizer, table=Table((reference.KERNEL,)))
        )
        for measured in ({}, won):
            monkeypatch.setattr(preference, "PREFERENCE", measured)
            layer = QuantLinear.from_quantized(weight, plain.bias, options=Options(input=quantizer))
            assert (layer.served(rows=4).kernel.name == "linear/native-products") == bool(measured)
            wanted = plain(x).detach()
            torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_what_has_no_table_is_refused() -> None:
    weight = quantized("int2 channel", (40, 160))
    made = products.products_product(weight, torch.arange(4))
    with pytest.raises((InputError, ValueError)):
        multiply(random(1, 160), made)
    with pytest.raises((InputError, ValueError)):
        multiply(random(1, 160), made, coding=Coding(160, -8, 7, 7.5))
    with pytest.raises((InputError, ValueError)):
        multiply(random(1, 160), Product(made.way, made.weight, levels=torch.zeros(8, dtype=torch.int32)),
                 coding=Coding(160, -2, 1, 1.5))  # fmt: skip
    for words in ("lloyd2 token dynamic", "int3 token dynamic", "table[0,1,200,30000] token dynamic", "int2 channel"):
        layer = QuantLinear.from_quantized(weight)
        request = layer.request(torch.float32, 1, torch.device("cpu"))
        assert products.misfits(replace(request, input=words)) is not None
