"""Compiled products against the definition, for every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.buffers import float_code, span
from bitwright.native.linear import NativeWeight, linear, pack_codes, tiled

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()


def random_weight(
    out: int, columns: int, bits: int, block: int, per_scale: int, zero: str, seed: int = 0
) -> tuple[NativeWeight, Tensor, Tensor]:
    """A weight, its codes and its dequantized values."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (out, columns), dtype=torch.uint8, generator=random)
    blocks = (columns + block - 1) // block
    groups = (blocks + per_scale - 1) // per_scale
    scale = (torch.rand(out, groups, generator=random) + 0.5).half()
    zeros: Tensor | None = None
    if zero == "codes":
        zeros = torch.randint(0, 1 << bits, (out, groups), dtype=torch.uint8, generator=random)
    elif zero == "floats":
        zeros = torch.rand(out, groups, generator=random) * (1 << bits)
    weight = NativeWeight(
        codes=pack_codes(codes, bits, block),
        scale=tiled(scale),
        zero=None if zeros is None else tiled(zeros),
        table=None,
        shape=(out, columns),
        bits=bits,
        block=block,
        blocks_per_scale=per_scale,
        constant_zero=1,
    )

    def spread(parameters: Tensor) -> Tensor:
        return parameters.float().repeat_interleave(block * per_scale, 1)[:, :columns]

    shift = torch.ones(1, 1) if zeros is None else spread(zeros)
    return weight, codes, (codes.float() - shift) * spread(scale)


def rounded(x: Tensor, block: int) -> Tensor:
    """x[rows, in] in 8 bits, a scale for every row and block."""
    blocks = -(-x.shape[1] // block)
    cut = torch.nn.functional.pad(x.float(), (0, blocks * block - x.shape[1])).view(len(x), blocks, block)
    peak = cut.abs().amax(-1, keepdim=True)
    step = torch.where(peak == 0, torch.ones_like(peak), peak / 127)
    return ((cut * (1 / step)).round() * step).view(len(x), -1)[:, : x.shape[1]]


def product(name: str, weight: NativeWeight, x: Tensor, bias: Tensor | None, exact: bool, threads: int = 2) -> Tensor:
    y = x.new_empty((len(x), weight.shape[0]))
    kernels: Any = library(name)
    kernels.linear(weight.handle(), span(x), float_code(x.dtype), len(x), span(y), span(bias), exact, threads)
    return y


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("exact", [True, False])
def test_products_equal_the_definition(name: str, bits: int, exact: bool) -> None:
    """Decoding and prompt forms, padded rows and inputs, every kind of zero point."""
    for out, columns, block, per_scale in ((40, 300, 128, 1), (33, 256, 32, 1), (64, 512, 64, 2), (17, 100, 128, 100)):
        for rows, zero in (
            (1, "constant"),
            (3, "codes"),
            (7, "floats"),
            (8, "codes"),
            (13, "constant"),
            (13, "floats"),
        ):
            weight, codes, values = random_weight(out, columns, bits, block, per_scale, zero, seed=rows)
            assert torch.equal(weight.unpack(), codes)
            x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
            bias = torch.arange(out, dtype=torch.float32)
            seen = x if exact else rounded(x, block)
            wanted = seen.double() @ values.double().T + bias
            torch.testing.assert_close(
                product(name, weight, x, bias, exact).double(), wanted, rtol=0, atol=float(3e-6 * wanted.abs().max())
            )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 8),
    st.sampled_from([32, 64, 128, 256]),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_odd_shapes_and_types(out: int, columns: int, bits: int, block: int, rows: int, dtype: torch.dtype) -> None:
    weight, codes, values = random_weight(out, columns, bits, block, 1, "codes")
    assert torch.equal(weight.unpack(), codes)
    x = torch.randn(rows, columns).to(dtype)
    y = linear(x, weight)
    wanted = x.double() @ values.double().T
    assert y.dtype == dtype
    error = (y.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9)
    assert error <= {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("name", SETS)
def test_zeros_nan_and_infinity_reach_the_output(name: str) -> None:
    weight, _, _ = random_weight(20, 256, 4, 128, 1, "codes")
    for exact in (True, False):
        assert torch.equal(product(name, weight, torch.zeros(2, 256), None, exact), torch.zeros(2, 20))
        for bad in (float("nan"), float("inf")):
            x = torch.ones(2, 256)
            x[1, 7] = bad
            y = product(name, weight, x, None, exact)
            assert torch.isfinite(y[0]).all()
            assert not torch.isfinite(y[1]).any()


def test_threads_do_not_change_a_bit() -> None:
    weight, _, _ = random_weight(500, 700, 3, 64, 1, "codes")
    for rows in (1, 20):
        x = torch.randn(rows, 700)
        for exact in (True, False):
            one = product(SETS[0], weight, x, None, exact, threads=1)
            for threads in (2, 3, 8):
                assert torch.equal(one, product(SETS[0], weight, x, None, exact, threads=threads))


def test_the_operator_can_be_compiled_and_exported() -> None:
    weight, _, _ = random_weight(32, 64, 4, 32, 1, "codes")

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear(x, weight) * 2

    x = torch.randn(3, 64)
    program = torch.export.export(Layer(), (x,))
    torch.testing.assert_close(program.module()(x), linear(x, weight) * 2)
    assert "bitwright.linear" in str(program.graph)
    arguments = (x, weight.codes, weight.scale, weight.zero, None, None, weight.geometry(), True)
    torch.library.opcheck(torch.ops.bitwright.linear.default, arguments)


def test_wrong_buffers_are_refused() -> None:
    weight, _, _ = random_weight(32, 64, 4, 32, 1, "codes")
    with pytest.raises(InputError, match="64 channels"):
        linear(torch.randn(3, 65), weight)
    with pytest.raises(InputError, match="float64"):
        linear(torch.randn(3, 64).double(), weight)
    for change in ({"codes": weight.codes[:-1]}, {"scale": weight.scale[:1]}, {"bits": 9}, {"block": 48}):
        wrong = NativeWeight(**{**weight.__dict__, **change})
        with pytest.raises(InputError):
            linear(torch.randn(3, 64), wrong)
    with pytest.raises(InputError, match="no kernels for"):
        library("sse9")
