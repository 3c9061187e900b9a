"""The table gives the preferred kernel that can serve, and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.runtime import TABLE, Kernel, QuantEmbedding, QuantLinear, Request, Table, UnsupportedError, describe
from bitwright.runtime.kernels.linear import reference


def request(**changes: Any) -> Request:
    given = {"op": "linear", "form": "affine", "device": "cpu", "dtype": torch.float32, "shape": (8, 8)}
    return Request(**{**given, **changes})


def few_rows(asked: Request) -> str | None:
    return None if asked.rows is not None and asked.rows <= 4 else "serves at most 4 tokens"


def run_twice(x: Tensor, prepared: Any, bias: Tensor | None, quantizer: Any) -> Tensor:
    return 2 * reference.run(x, prepared, bias, quantizer)


DECODE = Kernel(
    name="linear/decode", op="linear", priority=5, why="reads packed codes", prepare=reference.prepare, run=run_twice,
    forms=frozenset({"affine"}), devices=frozenset({"cpu"}), refuses=few_rows,
)  # fmt: skip


def layer(text: str = "int4 g8", table: Table = TABLE) -> QuantLinear:
    w = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    return QuantLinear.from_quantized(QuantizedTensor((parse(text).quantize(w),)), table=table)


def test_priority_forms_devices_and_limits_decide() -> None:
    table = TABLE.with_kernels(DECODE)
    assert table.choose(request(rows=1)).kernel is DECODE
    choice = table.choose(request(rows=8))
    assert choice.kernel.name == "linear/reference"
    assert ("linear/decode", "serves at most 4 tokens") in choice.passed_over
    assert not DECODE.supports(request(rows=1, form="table"))
    assert not DECODE.supports(request(rows=1, device="cuda"))
    assert not DECODE.supports(request(rows=1, op="conv2d"))
    assert table.choose(request(rows=1, keep_dense=True)).kernel.name == "linear/dense"
    assert TABLE.choose(request(rows=1)).kernel.name == "linear/reference"


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
    plain, mine = layer(), layer(table=TABLE.with_kernels(DECODE))
    few, many = torch.ones(3, 8), torch.ones(2, 8, 8)
    assert torch.equal(mine(few), 2 * plain(few))
    assert torch.equal(mine(many), plain(many))
    assert torch.equal(mine(few), 2 * plain(few))


def test_describe_names_the_kernel_of_every_module() -> None:
    table = TABLE.with_kernels(DECODE)
    embedding = QuantEmbedding.from_quantized(layer().quantized() or pytest.fail("no weight"))
    model = nn.Sequential(embedding, layer("nf4 b64", table), nn.ReLU(), layer("int4 g8", table))
    served = {item.path: item for item in describe(model, rows=1)}
    assert {path: item.kernel for path, item in served.items()} == {
        "0": "embedding/reference", "1": "linear/reference", "3": "linear/decode",
    }  # fmt: skip
    assert served["3"].why == "reads packed codes"
    assert ("linear/decode", "serves the forms affine, not table") in served["1"].passed_over
    assert {item.kernel for item in describe(model)} == {"embedding/reference", "linear/reference"}
