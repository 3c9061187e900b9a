"""Every operator of the compiled kernels passes torch's own checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bitwright.native import convolution, hadamard, linear, product, unavailable
from bitwright.runtime.kernels.linear import variants
from tests.unit.native_samples import quantized, random, with_terms

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

Case = tuple[Any, ...]


def linear_cases() -> list[Case]:
    codes = torch.randint(0, 16, (20, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    packed = linear.pack_codes(codes, 4, 32)
    scale, zero = linear.tiled(torch.ones(20, 3).half()), linear.tiled(torch.ones(20, 3, dtype=torch.uint8))
    geometry = [20, 96, 4, 32, 1, 0, 0]
    cases: list[Case] = [
        (random(3, 96).to(dtype), packed, scale, zero, None, random(20), geometry, exact)
        for dtype in (torch.float32, torch.bfloat16)
        for exact in (True, False)
    ]
    linear.linear(random(1, 96), linear.NativeWeight(packed, scale, zero, None, (20, 96), 4, 32, 1))
    return [*cases, (random(2, 3, 96), packed, scale, zero, None, None, geometry, True)]


def product_cases() -> list[Case]:
    lookup = variants.lookup_product(with_terms(quantized("mxfp4", (35, 160))))
    ternary = variants.ternary_product(quantized("ternary channel", (35, 160)))
    product.multiply(random(1, 160), lookup)
    coding = product.Coding(160, -128, 127, 127.5).numbers()
    return [
        (random(3, 160), lookup.parts(), None, lookup.geometry(), [lookup.step()]),
        (random(2, 2, 160).half(), ternary.parts(), random(35), ternary.geometry(), [ternary.step(), *coding]),
    ]


def convolve_cases() -> list[Case]:
    made = variants.int8_product(quantized("int4 channel", (24, 16 * 9)))
    windows = convolution.Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 24))
    x, y = random(2, 16, 7, 6), torch.empty(2, 24, 7, 6)
    convolution.convolve(x, made, windows, y)
    return [(x, made.parts(), random(24), made.geometry(), [made.step()], windows.numbers(), y)]


def hadamard_cases() -> list[Case]:
    hadamard.hadamard(random(1, 64), 64, None, None, False)
    return [
        (random(3, 64), 32, None, random(64), False),
        (random(2, 4 * 64).half(), 4 * 64, torch.eye(4), None, True),
    ]


CASES: dict[str, Callable[[], list[Case]]] = {
    "linear": linear_cases,
    "product": product_cases,
    "convolve": convolve_cases,
    "hadamard": hadamard_cases,
}


@pytest.mark.parametrize("name", CASES)
def test_torch_finds_nothing_wrong_with_an_operator(name: str) -> None:
    for arguments in CASES[name]():
        torch.library.opcheck(getattr(torch.ops.bitwright, name).default, arguments)


def test_no_operator_is_left_out() -> None:
    for cases in CASES.values():
        cases()
    found = {schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas()
             if schema.name.startswith("bitwright::")}  # fmt: skip
    assert {name for name in found if not name.startswith("triton_")} == set(CASES)
