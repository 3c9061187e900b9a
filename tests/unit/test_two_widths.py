"""Activations with 4 bits in most channels and 8 in the last: text, order of channels, files and products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.formats.scales import Scale
from bitwright.native import instruction_sets, unavailable
from bitwright.native.product import Coding, multiply
from bitwright.runtime import ActivationQuantizer, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import four_bit, reference
from bitwright.runtime.kernels.linear.coding import mixed_coding
from bitwright.runtime.kernels.table import REFERENCE
from bitwright.runtime.module import Options
from bitwright.runtime.online import channel_order, online_entries, online_operations, run_online
from bitwright.stages.clustering import clustered, wide_blocks
from tests.unit.native_samples import quantized, random, with_terms
from tests.unit.test_native_product import product

SETS = instruction_sets() if unavailable() is None else ()
PLAIN = Table((reference.KERNEL,))


def activations(rows: int = 64, columns: int = 1024, spread: int = 20) -> Tensor:
    """Normal values with single channels that are 40 times as large, anywhere in the row."""
    x = random(rows, columns, seed=1)
    x[:, torch.randperm(columns, generator=torch.Generator().manual_seed(2))[:spread]] *= 40
    return x


def test_text_and_rounding() -> None:
    fmt = parse("int4 g64 dynamic | int8 in:last128")
    assert str(fmt) == "int4 g64 dynamic | int8 in:last128"
    assert parse(str(fmt)) == fmt
    x = random(3, 256)
    first, last = (parse(f"int{bits} g64 dynamic").fake_quantize for bits in (4, 8))
    assert torch.equal(fmt.fake_quantize(x), torch.cat((first(x[:, :128]), last(x[:, 128:])), 1))
    whole = parse("int4 token dynamic | int8 in:last256")
    assert torch.equal(whole.fake_quantize(x), parse("int8 token dynamic").fake_quantize(x))
    for words in ("int8 token dynamic | int8 in:last128", "int4 channel | int8 in:last128", "int4 token dynamic |",
                  "int4 token dynamic | int8 in:last0", "int4 token dynamic | int4 in:last128",
                  "nf4 token dynamic | int8 in:last128", "int4 token asym dynamic | int8 in:last8"):  # fmt: skip
        with pytest.raises(InputError):
            parse(words)
    with pytest.raises(InputError, match="wide inputs"):
        fmt.fake_quantize(random(2, 64))
    with pytest.raises(InputError, match="one format"):
        fmt.quantize(random(2, 256))


def test_an_order_makes_wide_blocks_few_and_costs_nothing() -> None:
    x = activations()
    operation, wide = clustered(x.abs().amax(0), 128, 8)
    assert wide == 128
    assert wide_blocks(x.abs().amax(0), 128, 8) >= 7
    ordered = run_online(x, (operation,), REFERENCE)
    assert wide_blocks(ordered.abs().amax(0), 128, 8) == 1
    assert torch.equal(run_online(ordered, (operation,), REFERENCE, inverse=True), x)
    assert online_operations(online_entries((operation,))) == (operation,)
    even, none = clustered(torch.ones(256), 128, 8)
    assert none == 0
    assert torch.equal(run_online(x[:, :256], (even,), REFERENCE), x[:, :256])
    with pytest.raises(InputError):
        clustered(torch.ones(200), 128, 8)


@pytest.mark.parametrize("last", ["3,2", "1,1", "8", "-1", "1,", "a", "1 ,2", "99999999999", 5, None])
def test_a_damaged_order_is_refused(last: object) -> None:
    with pytest.raises(InputError):
        online_operations([{"kind": "order", "options": {"size": 8, "last": last}}])
    for options in (
        {"size": 0, "last": ""},
        {"size": 8},
        {"size": True, "last": ""},
        {"size": 8, "last": "", "seed": 1},
    ):
        with pytest.raises(InputError):
            online_operations([{"kind": "order", "options": options}])
    assert channel_order(4, "0,2").tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("name", SETS)
def test_blocks_of_two_widths_are_exact(name: str) -> None:
    """Codes as they come, extremes in long runs, every share of wide blocks: equal to the last bit."""
    generator = torch.Generator().manual_seed(9)
    for (out, columns), block in (((35, 512), 128), ((16, 96), 32), ((40, 320), 64)):
        codes = torch.randint(0, 16, (out, columns), generator=generator, dtype=torch.uint8)
        codes[0] = 15
        groups = torch.ones(out, columns // block)
        text = f"int4 g{block} scale=fp32"
        weight = QuantizedTensor((Codes(codes, parse(text), Scale(groups, groups)),))
        made = four_bit.mixed_product(weight)
        for wide in range(0, columns + 1, block):
            for rows in (1, 2, 9):
                x = torch.randint(-7, 8, (rows, columns), generator=generator).float()
                x[:, wide:] = torch.randint(-127, 128, (rows, columns - wide), generator=generator).float()
                x[0, :wide], x[0, wide:] = -7.5, -127.5
                # Each part's largest size makes its step 1.
                x[:, 0], x[:, -1] = (-7.5 if wide else -127.5), (-127.5 if wide < columns else -7.5)
                coding = Coding(columns, -8, 7, 7.5, wide=wide)
                seen = x.double().round()
                wanted = seen @ weight.dequantize().double().T
                assert torch.equal(product(name, made, x, coding=coding).double(), wanted)


@pytest.mark.skipif(not SETS, reason=str(unavailable()))
def test_layers_are_served() -> None:
    for words in ("int4 token dynamic | int8 in:last128", "int4 g128 dynamic | int8 in:last256"):
        for weight in (quantized("int4 g64 asym", (40, 512)), with_terms(quantized("int4 g128", (40, 512)))):
            quantizer, x = ActivationQuantizer(parse(words)), random(5, 512)
            operation, _ = clustered(x.abs().amax(0), 128, 1.5)
            options = {"input": quantizer, "online": (operation,)}
            layer = QuantLinear.from_quantized(weight, random(40), options=Options(**options))  # type: ignore[arg-type]
            plain = QuantLinear.from_quantized(weight, layer.bias, options=Options(**options, table=PLAIN))  # type: ignore[arg-type]
            assert layer.served(rows=4).kernel.name == "linear/native-mixed"
            wanted = plain(x).detach()
            torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=8e-6 * float(wanted.abs().max()))
    coding = mixed_coding(parse(words), 512)
    assert isinstance(coding, Coding)
    made = four_bit.mixed_product(quantized("int4 g128", (40, 512)))
    for wrong in (Coding(512, -8, 7, 7.5), Coding(512, -128, 127, 127.5, wide=128), Coding(512, -8, 7, 7.5, wide=100)):
        with pytest.raises((InputError, ValueError)):
            multiply(x, made, coding=wrong)
    odd = QuantLinear.from_quantized(
        quantized("int4 g128", (40, 512)),
        options=Options(input=ActivationQuantizer(parse("int4 token dynamic | int8 in:last100"))),
    )
    assert odd.served(rows=4).kernel.name == "linear/native"


def test_most_blocks_in_four_bits_cost_little() -> None:
    """With outliers in place W4A4 is far off; in order, seven of eight blocks with 4 bits come near to W4A8."""
    x = activations(256)
    weight = quantized("int4 g128", (64, 1024))
    wanted = x @ weight.dequantize().T
    operation, wide = clustered(x.abs().amax(0), 128, 8)
    order = channel_order(1024, str(operation.option("last")))

    def error(words: str, places: Tensor) -> float:
        seen = parse(words).fake_quantize(x[:, places])
        return float((seen @ weight.dequantize()[:, places].T - wanted).norm() / wanted.norm())

    plain = torch.arange(1024)
    four, eight = error("int4 token dynamic", plain), error("int8 token dynamic", plain)
    mixed, unordered = (error(f"int4 token dynamic | int8 in:last{wide}", places) for places in (order, plain))
    assert wide / 1024 <= 0.2
    assert mixed < min(1.2 * eight, 0.25 * four)
    assert mixed < 0.5 * unordered
