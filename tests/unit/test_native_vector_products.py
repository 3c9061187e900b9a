"""Compiled products of vector codes against the dequantized weight, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitwright import native
from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.native.linear import NativeWeight
from bitwright.native.loading import instruction_sets
from bitwright.native.product import AdditiveWeight, LatticeTables, Product, Way, call, multiply
from bitwright.runtime import REFERENCE, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import native as native_linear
from bitwright.runtime.kernels.linear import reference
from bitwright.runtime.kernels.linear.vectors import additive_product, lattice_product, lattice_zero
from bitwright.runtime.module import Options
from tests.unit.native_samples import quantizer_of, random, with_terms

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="no compiled kernels here")
SETS = instruction_sets()
POINTS = ["e8p channel", "e8p3 channel", "e8p4 channel", "e8p g32", "e8p3 g64", "e8p4 g128", "e8p tensor"]
SUMS = ["vq2x8d8 channel", "vq1x8d8 g16", "vq4x8d8 g64", "vq1x16d8 channel", "vq2x8d8 tensor"]
SHAPES = [(16, 128), (40, 320), (1, 8), (33, 200), (5, 24), (64, 1024)]


def vectors(text: str, shape: tuple[int, int]) -> QuantizedTensor:
    """Any codes: all words of the format occur."""
    fmt = parse(text)
    generator = torch.Generator().manual_seed(shape[1])
    codes = torch.randint(0, 1 << fmt.grid.bits, shape, generator=generator).to(torch.uint8)
    params = fmt.granularity.layout(shape).params_shape
    scale = fmt.store_scale(torch.rand(params, generator=generator) + 0.5)
    book = fmt.codebook_shape(shape)
    codebook = None if book is None else torch.randn(book, generator=generator).half()
    return QuantizedTensor((Codes(codes, fmt, scale, None, codebook),))


def fits(text: str, shape: tuple[int, int]) -> bool:
    group = parse(text).granularity
    return shape[1] % 8 == 0 and (getattr(group, "size", 8) <= shape[1] or shape[1] % 32 == 0)


def product(weight: QuantizedTensor, exact: bool = True) -> Product:
    if weight.codes is not None and weight.codes.codebook is not None:
        return additive_product(weight)
    return lattice_product(weight, Way.LATTICE_EXACT if exact else Way.LATTICE)


def run_on(name: str, x: torch.Tensor, made: Product, bias: torch.Tensor | None) -> torch.Tensor:
    y, arguments = call(x, made.parts(), bias, made.geometry(), [made.step()])
    native.library(name).product(*arguments, torch.get_num_threads())
    return y


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", POINTS + SUMS)
def test_exact_products_are_those_of_the_dequantized_weight(name: str, text: str) -> None:
    for shape in SHAPES:
        if not fits(text, shape):
            continue
        weight, bias = vectors(text, shape), random(shape[0], seed=2)
        made, w = product(weight), weight.dequantize().double()
        for rows in (1, 2, 5, 8, 19):
            x = random(rows, shape[1], seed=rows)
            wanted = x.double() @ w.t() + bias
            error = (run_on(name, x, made, bias).double() - wanted).abs().max()
            assert float(error) < 2e-5 * float((x.double().abs() @ w.abs().t()).max())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", POINTS)
def test_integer_products_are_exact_in_whole_numbers(name: str, text: str) -> None:
    """Activations that 8 bits hold exactly: the codes of a row are its values, so only the last sum is rounded."""
    for shape in SHAPES:
        if not fits(text, shape):
            continue
        weight = vectors(text, shape)
        made = product(weight, exact=False)
        assert isinstance(made.weight, NativeWeight)
        w, block = weight.dequantize().double(), made.weight.block
        for rows in (1, 3, 9):
            x = torch.randint(-127, 128, (rows, shape[1]), generator=torch.Generator().manual_seed(rows)).float()
            x[:, ::block] = 127
            wanted = x.double() @ w.t()
            error = (run_on(name, x, made, None).double() - wanted).abs().max()
            assert float(error) < 1e-5 * float((x.double().abs() @ w.abs().t()).max())


@pytest.mark.parametrize("text", ["e8p channel", "e8p3 g64", "e8p4 channel", "vq2x8d8 channel", "vq1x16d8 channel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_of_16_bits(text: str, dtype: torch.dtype) -> None:
    weight = vectors(text, (24, 192))
    w = weight.dequantize().double()
    for exact in (True, False):
        x = random(3, 192).to(dtype)
        y = multiply(x, product(weight, exact))
        assert y.dtype == dtype
        wanted = x.double() @ w.t()
        assert float((y.double() - wanted).norm() / wanted.norm()) < (
            1e-2 if dtype is torch.bfloat16 or not exact else 1e-3
        )


def test_instruction_sets_and_threads_agree() -> None:
    for text in ("e8p g64", "e8p4 channel", "vq2x8d8 channel"):
        weight, x = vectors(text, (70, 256)), random(6, 256)
        exact = product(weight).way is Way.ADDITIVE
        made = product(weight, exact)
        results = [run_on(name, x, made, None) for name in SETS]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=1e-5 * float(results[0].abs().max()))
        threads = torch.get_num_threads()
        for count in (1, 5):
            torch.set_num_threads(count)
            assert torch.equal(run_on(SETS[0], x, made, None), results[0])
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("text", "exact", "kernel"),
    [
        ("e8p channel", True, "linear/native-lattice"),
        ("e8p3 g64", False, "linear/native-lattice-int8"),
        ("e8p4 channel", False, "linear/native-lattice-int8"),
        ("e8p g16", True, "linear/reference"),
        ("vq2x8d8 channel", True, "linear/native-additive"),
        ("vq1x16d8 channel", False, "linear/native-additive"),
        ("vq2x4d4 channel", True, "linear/reference"),
        ("vq1x8d8 g8", True, "linear/reference"),
    ],
)
def test_which_kernel_serves_a_layer(text: str, exact: bool, kernel: str) -> None:
    weight, x = vectors(text, (40, 192)), random(5, 192)
    for terms in (weight, with_terms(weight)):
        layer = QuantLinear.from_quantized(terms, random(40), options=Options(exact=exact))
        plain = QuantLinear.from_quantized(terms, layer.bias, options=Options(table=Table((reference.KERNEL,))))
        assert layer.served(rows=4).kernel.name == kernel
        wanted = plain(x)
        close = 1e-5 if exact else 1e-2
        assert float((layer(x) - wanted).norm() / wanted.norm()) < close


def test_coded_inputs_are_multiplied_as_they_are() -> None:
    weight, x = vectors("e8p channel", (40, 192)), random(5, 192)
    quantizer = quantizer_of("int8 token dynamic", x)
    layer = QuantLinear.from_quantized(weight, options=Options(input=quantizer, exact=False))
    plain = QuantLinear.from_quantized(weight, options=Options(input=quantizer, table=REFERENCE))
    assert layer.served(rows=4).kernel.name == "linear/native-lattice"
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-5 * float(plain(x).detach().abs().max()))


def test_parts_that_do_not_fit_are_refused() -> None:
    made, three = product(vectors("e8p channel", (16, 64))), product(vectors("e8p3 channel", (16, 64)))
    assert isinstance(made.weight, NativeWeight)
    assert made.points is not None
    assert made.weight.constant_zero == lattice_zero(2)
    x = random(2, 64)
    short = LatticeTables(made.points.patterns[:1].contiguous(), made.points.values)
    few = LatticeTables(made.points.patterns, made.points.values[:1].contiguous())
    for weight, points in ((made.weight, short), (made.weight, few), (made.weight, None), (three.weight, made.points)):
        with pytest.raises(InputError):
            multiply(x, Product(Way.LATTICE, weight, points=points))
    with pytest.raises(InputError):
        multiply(x[:, :32], made)


def test_codebooks_that_do_not_fit_are_refused() -> None:
    x, sums = random(2, 64), product(vectors("vq2x8d8 channel", (16, 64)))
    good = sums.weight
    assert isinstance(good, AdditiveWeight)
    for weight in (
        replace(good, codes=good.codes[:, :8].contiguous()),
        replace(good, entries=good.entries[:, :16].contiguous()),
        replace(good, entries=good.entries.float()),
        replace(good, index_bytes=3),
        replace(good, group=8),
        replace(good, scale=good.scale[:3].contiguous()),
    ):
        with pytest.raises(InputError):
            multiply(x, Product(Way.ADDITIVE, weight))


def test_operators_have_fakes() -> None:
    for text in ("e8p channel", "vq2x8d8 channel"):
        made, x = product(vectors(text, (16, 64))), random(2, 64)
        multiply(x, made)
        arguments = (x, made.parts(), None, made.geometry(), [made.step()])
        torch.library.opcheck(torch.ops.bitwright.product.default, arguments)


def test_compiled_decoding_leaves_vectors_to_the_modules() -> None:
    weight = vectors("e8p channel", (16, 64))
    assert weight.codes is not None
    assert not native_linear.serves(weight.codes)
    assert product(weight).vectors
