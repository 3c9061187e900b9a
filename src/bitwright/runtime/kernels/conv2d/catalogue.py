"""Variants from the catalogue for convolutions: counted bits and tables of products over blocks of windows.

The systems that these kernels come from serve convolutions (DLRT, DeepliteRT, DeepGEMM): 1 to 3 bits on both sides.
"""

from __future__ import annotations

from bitwright.formats import IntGrid, parse
from bitwright.runtime.dispatch import Request
from bitwright.runtime.kernels.conv2d import native
from bitwright.runtime.kernels.linear import catalogue, products, variants
from bitwright.runtime.kernels.linear.catalogue import measured
from bitwright.runtime.kernels.linear.variants import CodedProduct
from bitwright.runtime.weight import PackedWeight


def refuses_bits(request: Request) -> str | None:
    """Why bits of windows are not counted."""
    reason = native.refuses_coded(request)
    if reason is not None:
        return reason
    if variants.unevenly(request) is not None:
        return "counts bits of evenly spaced codes"
    assert request.input is not None
    key = f"w{parse(request.format).grid.bits}a{parse(request.input).grid.bits}"
    return measured(request, "conv2d-bits", key)


def misfits_products(request: Request) -> str | None:
    """Why windows have no table of products, whether or not that would be the fastest way."""
    reason = native.limit(request) or products.misfits(request)
    if reason is not None:
        return reason
    assert request.input is not None
    if not isinstance(parse(request.input).grid, IntGrid):
        return "looks up products of windows with evenly spaced inputs"
    return native.refuses_coded(request)


def refuses_products(request: Request) -> str | None:
    """Why products of windows are not looked up."""
    return misfits_products(request) or measured(request, "conv2d-products", "w2a2")


def _bits(packed: PackedWeight) -> CodedProduct:
    return CodedProduct(catalogue.bits_product(packed.unpack()), packed)


BITS = native.kernel(
    "native-bits", 70, "counts the common bits of weight and windows, measured to be faster",
    _bits, native.run_coded, refuses_bits,
)  # fmt: skip
PRODUCTS = native.kernel(
    "native-products", 72, "looks products of 2-bit weights and windows up, measured to be faster",
    products.ByInput, native.run_coded, refuses_products,
)  # fmt: skip

KERNELS = (BITS, PRODUCTS)
"""Asked before the plain integer products; refuse where they were not measured to win."""
