"""The table gives the preferred kernel that can serve, and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.formats import LowRank, QuantizedTensor, Sparse, parse
from bitwright.runtime import (
    REFERENCE,
    TABLE,
    ActivationQuantizer,
    ConvGeometry,
    Kernel,
    Options,
    QuantEmbedding,
    QuantLinear,
    Request,
    Table,
    UnsupportedError,
    describe,
)
from bitwright.runtime.kernels.linear import reference
from bitwright.runtime.states import States
from bitwright.stages.transforms.hadamard import apply_hadamard


def request(**changes: Any) -> Request:
    given = {"op": "linear", "form": "affine", "device": "cpu", "dtype": torch.float32, "shape": (8, 8)}
    return Request(**{**given, **changes})


def few_rows(asked: Request) -> str | None:
    return None if asked.rows is not None and asked.rows <= 4 else "serves at most 4 tokens"


def run_twice(x: Tensor, prepared: Any, bias: Tensor | None, quantizer: Any) -> Tensor:
    return 2 * reference.run(x, prepared, bias, quantizer)


DECODE = Kernel(
    name="linear/decode", op="linear", priority=5, why="reads packed codes", prepare=reference.KERNEL.prepare,
    run=run_twice,
    forms=frozenset({"affine"}), devices=frozenset({"cpu"}), refuses=few_rows,
)  # fmt: skip


def layer(text: str = "int4 g8", table: Table = TABLE) -> QuantLinear:
    w = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    return QuantLinear.from_quantized(QuantizedTensor((parse(text).quantize(w),)), options=Options(table=table))


def sum_of_terms(text: str, out: int, columns: int) -> QuantizedTensor:
    w = torch.randn(out, columns, generator=torch.Generator().manual_seed(out))
    codes = parse(text).quantize(w)
    error = w - codes.dequantize()
    sparse, factors = Sparse.where(error, error.abs() > 0.4), LowRank(error[:, :2].half(), error[:2].half())
    return QuantizedTensor((codes, sparse, factors))


def both_ways(kernel: Kernel, weight: QuantizedTensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a kernel computes, and what the definition of its operation gives."""
    x = torch.randn(5, 72, generator=torch.Generator().manual_seed(1)).to(dtype)
    if kernel.op == "hadamard":
        return kernel.run(x, 36, 5), x.float() @ apply_hadamard(torch.eye(72), 36, 5)
    if kernel.op == "attention":
        key, value = States(None, 0), States(None, 0)
        keys, values = key.append(x.view(1, 1, 5, 72)), value.append(2 * x.view(1, 1, 5, 72))
        q = x.view(1, 1, 5, 72).expand(1, 2, 5, 72)
        attend = functional.scaled_dot_product_attention
        return kernel.run(q, key, value), attend(q, keys, values, is_causal=True, enable_gqa=True)
    packed = QuantLinear.from_quantized(weight).packed()
    assert packed is not None
    prepared, dense, bias = kernel.prepare(packed, dtype), weight.dequantize(dtype), x[0, :12]
    if kernel.op == "embedding":
        ids = torch.tensor([[3, 0], [11, 3]])
        return kernel.run(ids, prepared, dtype), dense[ids]
    quantizer = ActivationQuantizer(parse("int8 token dynamic"))
    if kernel.op == "linear":
        return kernel.run(x, prepared, bias, quantizer), functional.linear(quantizer(x), dense, bias)
    assert kernel.op == "conv2d"
    image, geometry = x[:, :32].reshape(1, 8, 4, 5), ConvGeometry((3, 3), padding=(1, 1))
    expected = functional.conv2d(image, dense.view(12, 8, 3, 3), bias, padding=1)
    return kernel.run(image, prepared, bias, None, geometry), expected


@pytest.mark.parametrize("text", ["int4 g32 asym", "int3 channel", "nf4 b64", "mxfp4", "int8 tensor"])
@pytest.mark.parametrize("kernel", TABLE.kernels, ids=lambda kernel: kernel.name)
def test_every_kernel_computes_what_its_operation_says(kernel: Kernel, text: str) -> None:
    whole = sum_of_terms(text, 12, 72)
    served = 0
    for weight in (QuantizedTensor(whole.terms[:1]), whole):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            asked = request(
                op=kernel.op, form=weight.normal_form, dtype=dtype, shape=weight.shape, format=text, keep_dense=True
            )
            if kernel.supports(asked):
                got, expected = both_ways(kernel, weight, dtype)
                torch.testing.assert_close(got, expected.to(dtype), rtol=tolerance, atol=tolerance * 10)
                served += 1
    if kernel.name.endswith(("reference", "dense")):
        assert served == 4


def test_priority_forms_devices_and_limits_decide() -> None:
    table = REFERENCE.with_kernels(DECODE)
    assert table.choose(request(rows=1)).kernel is DECODE
    choice = table.choose(request(rows=8))
    assert choice.kernel.name == "linear/reference"
    assert ("linear/decode", "serves at most 4 tokens") in choice.passed_over
    assert not DECODE.supports(request(rows=1, form="table"))
    assert not DECODE.supports(request(rows=1, device="cuda"))
    assert not DECODE.supports(request(rows=1, op="conv2d"))
    assert table.choose(request(rows=1, keep_dense=True)).kernel.name == "linear/dense"
    assert REFERENCE.choose(request(rows=1)).kernel.name == "linear/reference"
    assert {kernel.name for kernel in REFERENCE.kernels} < {kernel.name for kernel in TABLE.kernels}


def test_what_nothing_serves_is_refused_with_every_limit() -> None:
    table = Table((DECODE,))
    with pytest.raises(UnsupportedError, match=r"codebook.*linear/decode: serves the forms affine, not codebook"):
        table.choose(request(form="codebook"))
    with pytest.raises(UnsupportedError, match="none is registered"):
        table.choose(request(op="attention"))
    with pytest.raises(InputError, match="linear/decode"):
        Table((DECODE, DECODE))
    with pytest.raises(UnsupportedError, match="float32 and float64, not int64"):
        layer()(torch.ones(2, 8, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="at most 4 tokens"):
        layer(table=table)(torch.ones(8, 8))


def test_modules_ask_their_own_table_for_every_number_of_tokens() -> None:
    plain, mine = layer(table=REFERENCE), layer(table=REFERENCE.with_kernels(DECODE))
    few, many = torch.ones(3, 8), torch.ones(2, 8, 8)
    torch.testing.assert_close(mine(few), 2 * plain(few))
    assert torch.equal(mine(many), plain(many))
    torch.testing.assert_close(mine(few), 2 * plain(few))


def test_describe_names_the_kernel_of_every_module() -> None:
    table = REFERENCE.with_kernels(DECODE)
    embedding = QuantEmbedding.from_quantized(layer().quantized() or pytest.fail("no weight"))
    model = nn.Sequential(embedding, layer("nf4 b64", table), nn.ReLU(), layer("int4 g8", table))
    served = {item.path: item for item in describe(model, rows=1)}
    assert {path: item.kernel for path, item in served.items()} == {
        "0": "embedding/reference", "1": "linear/reference", "3": "linear/decode",
    }  # fmt: skip
    assert served["3"].why == "reads packed codes"
    assert ("linear/decode", "serves the forms affine, not table") in served["1"].passed_over
    assert {item.kernel for item in describe(model)} == {"embedding/reference", "linear/reference"}
