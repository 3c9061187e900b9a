"""Layers of trellis-coded weights: which kernel serves them, and that it multiplies what is stored."""

from __future__ import annotations

import pytest
import torch

from bitwright.formats import QuantizedTensor, parse
from bitwright.native import unavailable
from bitwright.runtime import QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import reference
from bitwright.runtime.module import Options
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.solve import quantize_weight

compiled = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def quantized(text: str, shape: tuple[int, int]) -> QuantizedTensor:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return quantize_weight(w, Quantizer(parse(text)))


@compiled
@pytest.mark.parametrize(
    "text", ["trellis2-l10", "trellis2-3inst-l9", "trellis3-l9 g256", "trellis1-l8-t64 tensor", "trellis4-l8 g512"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_reference(text: str, dtype: torch.dtype) -> None:
    weight = quantized(text, (37, 512))
    assert weight.normal_form == "trellis"
    layer = QuantLinear.from_quantized(weight, torch.randn(37))
    assert layer.served(rows=1).kernel.name == "linear/native-trellis"
    plain = QuantLinear.from_quantized(weight, layer.bias, options=Options(table=Table((reference.KERNEL,))))
    for rows in (1, 9):
        x = torch.randn(rows, 512).to(dtype)
        wanted = plain(x).detach()
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(layer(x), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@compiled
def test_rounding_of_activations_is_asked_for() -> None:
    weight = quantized("trellis2-l10", (64, 512))
    layer, fast = QuantLinear.from_quantized(weight), QuantLinear.from_quantized(weight, options=Options(exact=False))
    assert fast.served(rows=1).kernel.name == "linear/native-trellis-int8"
    for rows in (1, 20):
        x = torch.randn(rows, 512)
        assert 1e-4 < float((fast(x) - layer(x)).norm() / layer(x).norm()) < 1.2e-2


@compiled
@pytest.mark.parametrize(
    ("text", "dtype", "sentence"),
    [
        ("trellis2-l10-t16", torch.float32, "multiple of 32"),
        ("trellis2-l10-t512", torch.float32, "up to 256"),
        ("trellis2-l10", torch.float64, "serves float32"),
    ],
)
def test_what_is_not_served_says_why(text: str, dtype: torch.dtype, sentence: str) -> None:
    layer = QuantLinear.from_quantized(quantized(text, (8, 512)))
    choice = layer.table.choose(layer.request(dtype, 1, torch.device("cpu")))
    assert choice.kernel.name == "linear/reference"
    assert sentence in dict(choice.passed_over)["linear/native-trellis"]


@compiled
def test_other_codes_are_not_multiplied_in_integers() -> None:
    layer = QuantLinear.from_quantized(quantized("trellis2-3inst-l10", (8, 256)), options=Options(exact=False))
    choice = layer.served(rows=1)
    assert choice.kernel.name == "linear/native-trellis"
    assert "sums of bytes" in dict(choice.passed_over)["linear/native-trellis-int8"]
