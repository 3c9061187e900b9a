"""Every operator of the compiled kernels passes torch's own checks, and layers made of them compile to one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.native import convolution, hadamard, linear, product, trellis, unavailable
from bitwright.native.linear import tiled
from bitwright.runtime import QuantConv2d, QuantLinear
from bitwright.runtime.geometry import ConvGeometry
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


def trellis_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 4, (20, 256), generator=generator).to(torch.uint8)
    scale = tiled(torch.rand(20, 1, generator=generator))
    weight = trellis.TrellisWeight(
        trellis.pack(codes, 256, 2, 16), scale, (20, 256), 256, 2, 16, trellis.ONE_MAD, 1, 510.0
    )
    return [
        (random(3, 256), weight.codes, scale, random(20), weight.geometry(), weight.offset, True),
        (random(2, 2, 256).half(), weight.codes, scale, None, weight.geometry(), weight.offset, False),
    ]


CASES: dict[str, Callable[[], list[Case]]] = {
    "linear": linear_cases,
    "product": product_cases,
    "convolve": convolve_cases,
    "hadamard": hadamard_cases,
    "trellis": trellis_cases,
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


class Small(nn.Module):
    """A convolution, a linear layer with terms beside its codes, and a transform."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = QuantConv2d.from_quantized(
            quantized("int4 channel", (16, 3 * 9)), random(16), ConvGeometry((3, 3), padding=(1, 1))
        )
        self.plain = QuantLinear.from_quantized(quantized("int4 g32 asym", (64, 16 * 16)), random(64))
        self.sum = QuantLinear.from_quantized(with_terms(quantized("mxfp4", (10, 64))), None)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.plain(self.conv(x).flatten(1)))
        y: Tensor = self.sum(hadamard.hadamard(hidden, 64, None, None, False))
        return y


@pytest.fixture
def small() -> Small:
    torch.compiler.reset()
    return Small().eval()


@torch.no_grad()
def test_a_small_model_compiles_to_one_graph(small: Small) -> None:
    x = random(5, 3, 4, 4)
    wanted = small(x)  # layers are made ready by their first call
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_a_small_model_is_exported(small: Small) -> None:
    x = random(5, 3, 4, 4)
    small(x)
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    shown = str(program.graph)
    for name in CASES:
        assert f"bitwright.{name}" in shown or name == "trellis"
    for rows in (2, 9):
        other = random(rows, 3, 4, 4, seed=rows)
        wanted = small(other)
        torch.testing.assert_close(program.module()(other), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
