"""Variants from the catalogue: bit-serial products and tables of sums; they serve where they were measured to win.

Bit-serial (DLRT, DeepliteRT, ABQ-LLM): common bits of the planes of weight and activation are counted, exact for every
number of bits. Tables of sums (T-MAC; bitnet.cpp's TL1 and TL2 for ternary digits): the sums of four (two, three)
activations are looked up by the weight's bits; kept in 16 bits, so the result is that of the integer product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.native import require_library
from bitwright.native.linear import NativeWeight
from bitwright.native.product import Product, Way
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native, prepared, variants
from bitwright.runtime.kernels.linear.coding import coding_of
from bitwright.runtime.kernels.linear.preference import preferred
from bitwright.runtime.kernels.linear.variants import CodedProduct
from bitwright.runtime.weight import PackedWeight

_TRIPLE_BLOCK = 192


def _replaced(product: Product, codes: torch.Tensor) -> Product:
    """The same integer product over codes in another order."""
    assert isinstance(product.weight, NativeWeight)
    return replace(product, weight=replace(product.weight, codes=codes))


def bits_product(weight: QuantizedTensor) -> Product:
    """Planes of one bit; affine codes or evenly spaced tables."""
    term = weight.terms[0]
    assert isinstance(term, Codes)
    bits = term.format.grid.bits
    block, per_scale = variants.blocks(term)
    plain = variants.int8_product(weight)
    groups = -(-term.shape[1] // (block * per_scale))
    sums = prepared.code_sums(term.codes, groups, block * per_scale)
    made = _replaced(plain, prepared.bit_planes(term.codes, bits, block))
    return replace(made, way=Way.BITS, levels=sums)


def sums_product(weight: QuantizedTensor) -> Product:
    """Nibbles of four bits; affine codes or evenly spaced tables."""
    term = weight.terms[0]
    assert isinstance(term, Codes)
    block, _ = variants.blocks(term)
    made = _replaced(variants.int8_product(weight), prepared.sum_nibbles(term.codes, term.format.grid.bits, block))
    return replace(made, way=Way.SUMS)


def pairs_product(weight: QuantizedTensor) -> Product:
    """Nibbles of two ternary digits."""
    term = weight.terms[0]
    assert isinstance(term, Codes)
    block, _ = variants.blocks(term)
    made = _replaced(variants.int8_product(weight), prepared.pair_nibbles(term.codes, block))
    return replace(made, way=Way.PAIRS)


def triples_product(weight: QuantizedTensor) -> Product:
    """Three ternary digits in five bits."""
    plain = variants.ternary_product(weight)
    term = weight.terms[0]
    assert isinstance(term, Codes)
    scale = plain.weight.scale.transpose(1, 2).flatten()[: term.shape[0]].unsqueeze(1)
    return replace(plain, way=Way.TRIPLES, weight=prepared.triples_weight(term.codes, scale))


def measured(request: Request, name: str, key: str) -> str | None:
    """Why a kernel does not serve although it could: it was not measured to win."""
    isa = require_library().name
    if preferred(isa, name, key, request.rows):
        return None
    return f"was not measured to be faster than the integer products on {isa} ({key})"


def refuses_bits(request: Request) -> str | None:
    """Why bits are not counted."""
    reason = variants.refuses_coded(request)
    if reason is not None:
        return reason
    assert request.input is not None
    fmt, given = parse(request.format), parse(request.input)
    if variants.unevenly(request) is not None:
        return "counts bits of evenly spaced codes"
    coding = coding_of(given, request.shape[1])
    if isinstance(coding, str) or coding.run < request.shape[1]:
        return "counts bits of activations with one scale for a row"
    return measured(request, "native-bits", f"w{fmt.grid.bits}a{given.grid.bits}")


def refuses_sums(request: Request) -> str | None:
    """Why sums are not looked up."""
    reason = variants.refuses_int8(request)
    if reason is not None:
        return reason
    fmt = parse(request.format)
    found = native.geometry(fmt, (request.shape[0], request.shape[1]))
    if request.shape[0] % 64 or fmt.grid.bits > 4 or isinstance(found, str) or found[0] < 32:
        return "looks up sums for multiples of 64 rows, codes of up to 4 bits and blocks of 32 inputs"
    return measured(request, "native-sums", f"w{fmt.grid.bits}")


def refuses_triples(request: Request) -> str | None:
    """Why triples are not looked up."""
    return variants.refuses_ternary(request) or measured(request, "native-triples", "ternary")


def refuses_coded_triples(request: Request) -> str | None:
    """Why triples are not looked up for the codes of an input."""
    reason = variants.refuses_coded_ternary(request, block=_TRIPLE_BLOCK)
    return reason or measured(request, "native-triples", "ternary coded")


def _prepare_coded_triples(packed: PackedWeight, dtype: torch.dtype) -> CodedProduct:
    del dtype
    return CodedProduct(triples_product(packed.unpack()), packed)


def _prepare_bits(packed: PackedWeight, dtype: torch.dtype) -> CodedProduct:
    del dtype
    return CodedProduct(bits_product(packed.unpack()), packed)


def _prepare(make: Callable[[QuantizedTensor], Product]) -> Callable[[PackedWeight, torch.dtype], Product]:
    def prepare(packed: PackedWeight, dtype: torch.dtype) -> Product:
        del dtype
        return make(packed.unpack())

    return prepare


BITS = Kernel(
    name="linear/native-bits", op="linear", priority=70, devices=frozenset({"cpu"}),
    forms=variants.forms("affine", "table"), why="counts the common bits of weight and input, measured to be faster",
    prepare=_prepare_bits, run=variants.run_coded, refuses=refuses_bits,
)  # fmt: skip
SUMS = Kernel(
    name="linear/native-sums", op="linear", priority=70, devices=frozenset({"cpu"}),
    forms=variants.forms("affine", "table"), why="looks sums of activations up, measured to be faster",
    prepare=_prepare(sums_product), run=variants.run, refuses=refuses_sums,
)  # fmt: skip
TRIPLES = Kernel(
    name="linear/native-triples", op="linear", priority=71, devices=frozenset({"cpu"}), forms=variants.forms("table"),
    why="looks sums of three activations up for ternary weights in 5/3 bits, measured to be faster",
    prepare=_prepare(triples_product), run=variants.run, refuses=refuses_triples,
)  # fmt: skip
CODED_TRIPLES = Kernel(
    name="linear/native-coded-triples", op="linear", priority=71, devices=frozenset({"cpu"}),
    forms=variants.forms("table"), why="looks sums of three codes of the input up, measured to be faster",
    prepare=_prepare_coded_triples, run=variants.run_coded, refuses=refuses_coded_triples,
)  # fmt: skip

KERNELS = (BITS, SUMS, TRIPLES, CODED_TRIPLES)
"""Asked before the plain integer products; refuse where they were not measured to win."""
