"""Compiled convolutions against torch's, for every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.formats.scales import Scale
from bitwright.native import instruction_sets, require_library, unavailable
from bitwright.native.convolution import Windows, run
from bitwright.native.product import Coding
from bitwright.runtime import ConvGeometry
from bitwright.runtime.conv import QuantConv2d
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.conv2d import native, reference
from bitwright.runtime.kernels.linear import catalogue, preference, products, variants
from bitwright.runtime.module import Options
from tests.unit.native_samples import quantized, quantizer_of, random

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

GEOMETRIES = [
    ConvGeometry((3, 3), padding=(1, 1)),
    ConvGeometry((1, 1)),
    ConvGeometry((3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2)),
    ConvGeometry((3, 3), padding="same", dilation=(2, 1)),
    ConvGeometry((3, 3), padding=(1, 1), groups=2),
    ConvGeometry((3, 3), padding=(1, 1), groups=8),
    ConvGeometry((3, 3), padding=(1, 2), padding_mode="reflect"),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("text", ["int8 channel", "int4 channel asym", "nf4 tensor", "ternary channel", "mxfp4"])
def test_a_convolution_equals_the_reference(geometry: ConvGeometry, text: str) -> None:
    """Floats as they are, and the codes of an input with one scale for the image."""
    columns = 16 // geometry.groups * geometry.kernel_size[0] * geometry.kernel_size[1]
    weight, x = quantized(text, (24, columns)), random(2, 16, 7, 9) + 0.2
    for words in (None, "int8 tensor static", "int8 tensor asym static", "int4 tensor dynamic"):
        quantizer = None if words is None else quantizer_of(words, x)
        bias = random(24)
        layer = QuantConv2d.from_quantized(weight, bias, geometry, options=Options(input=quantizer))
        plain = QuantConv2d.from_quantized(
            weight, bias, geometry, options=Options(input=quantizer, table=Table((reference.KERNEL,)))
        )
        name = layer.served(rows=64).kernel.name
        if text in ("int8 channel", "int4 channel asym", "ternary channel"):
            assert name == ("conv2d/native" if words is None else "conv2d/native-coded")
        wanted = plain(x).detach()
        torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        assert layer(x[0]).shape == plain(x[0]).shape


@pytest.mark.parametrize("name", instruction_sets())
def test_every_instruction_set_and_float_type(name: str) -> None:
    weight, x = quantized("int4 channel", (40, 16 * 9)), random(2, 16, 12, 11)
    geometry = ConvGeometry((3, 3), padding=(1, 1))
    windows = Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 40))
    for make, tolerance in ((variants.exact_product, 1e-5), (variants.int8_product, 2e-2)):
        product = make(weight)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            image = x.to(dtype)
            wanted = geometry.convolve(image.float(), weight.dequantize(), None)
            y = torch.empty(2, 40, 12, 11, dtype=dtype)
            run(require_library(name), image, product.parts(), None, product.geometry(), [1.0], windows.numbers(), y)
            share = tolerance + {torch.float32: 0, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
            assert float((y.float() - wanted).abs().max()) <= share * float(wanted.abs().max())


def test_what_does_not_fit_is_refused() -> None:
    geometry = ConvGeometry((3, 3))
    layer = QuantConv2d.from_quantized(quantized("int4 channel", (24, 144)), None, geometry)
    assert layer.table.kernels[0].name
    with pytest.raises(InputError, match="16 channels"):
        layer(random(1, 15, 8, 8))
    with pytest.raises(InputError, match="does not fit into 2 values"):
        layer(random(1, 16, 2, 8))
    product = variants.exact_product(quantized("int4 channel", (24, 144)))
    right = [3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 24]
    for place, number in ((10, 8), (11, 8), (0, 5), (8, 1 << 40)):
        numbers = [*right[:place], number, *right[place + 1 :]]
        with pytest.raises(InputError):
            run(
                require_library(), random(1, 16, 8, 8), product.parts(), None, product.geometry(), [1.0], numbers,
                torch.empty(1, 24, 6, 6),
            )  # fmt: skip
    assert native.EXACT.op == "conv2d"


# Layers of a ResNet-20 for images of 32 x 32: channels in and out, stride, size of the image.
RESNET20 = [(3, 16, 1, 32), (16, 16, 1, 32), (16, 32, 2, 32), (32, 32, 1, 16), (32, 64, 2, 16), (64, 64, 1, 8)]


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize(("channels", "out", "stride", "size"), RESNET20)
def test_two_by_two_bits_are_exact_on_layers_of_resnet20(
    name: str, channels: int, out: int, stride: int, size: int
) -> None:
    """Counted bits and products out of tables equal torch's convolution of the integers, to the last bit."""
    generator = torch.Generator().manual_seed(channels)
    codes = torch.randint(0, 4, (out, channels * 9), generator=generator, dtype=torch.uint8)
    ones = torch.ones(out, 1)
    weight = QuantizedTensor((Codes(codes, parse("int2 channel scale=fp32"), Scale(ones, ones)),))
    x = torch.randint(-2, 2, (2, channels, size, size), generator=generator).float()
    wanted = torch.nn.functional.conv2d(
        x.double(), (codes.double() - 2).view(out, channels, 3, 3), stride=stride, padding=1
    )
    coding = Coding(channels * 9, -2, 1, 1.5, given=True)
    windows = Windows((3, 3), (stride, stride), (1, 1), (1, 1), (1, 1), (0, 0, out))
    numbers = [1.0, *coding.numbers()]
    for made in (catalogue.bits_product(weight), products.products_product(weight, torch.arange(4) - 2)):
        y = torch.empty(wanted.shape)
        run(require_library(name), x, made.parts(), None, made.geometry(), numbers, windows.numbers(), y)
        assert torch.equal(y.double(), wanted)


@pytest.mark.parametrize(("groups", "kernel", "text"), [
    (1, "conv2d/native-bits", "int2 channel"), (2, "conv2d/native-products", "int2 channel"),
    (1, "conv2d/native-products", "table[-1,-0.25,0.5,1] channel"), (2, "conv2d/native-bits", "ternary channel"),
])  # fmt: skip
def test_variants_serve_convolutions_where_they_won(
    monkeypatch: pytest.MonkeyPatch, groups: int, kernel: str, text: str
) -> None:
    won = {(instruction_sets()[0], kernel.replace("/native", ""), "prompt"): frozenset({"w2a2"})}
    geometry = ConvGeometry((3, 3), padding=(1, 1), groups=groups)
    weight, x = quantized(text, (32, 16 // groups * 9)), random(2, 16, 8, 8)
    for words in ("int2 tensor dynamic", "int2 tensor asym static"):
        quantizer = quantizer_of(words, x)
        plain = QuantConv2d.from_quantized(
            weight, random(32), geometry, options=Options(input=quantizer, table=Table((reference.KERNEL,)))
        )
        wanted = plain(x).detach()
        for measured in ({}, won):
            monkeypatch.setattr(preference, "PREFERENCE", measured)
            layer = QuantConv2d.from_quantized(weight, plain.bias, geometry, options=Options(input=quantizer))
            assert (layer.served(rows=64).kernel.name == kernel) == bool(measured)
            torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
