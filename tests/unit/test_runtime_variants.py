"""Which compiled product serves which layer, and that it computes what the reference does."""

from __future__ import annotations

import pytest
import torch

from bitwright.formats import parse
from bitwright.native import require_library, unavailable
from bitwright.runtime import QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import reference
from bitwright.runtime.kernels.linear.preference import preferred
from bitwright.runtime.module import Options
from tests.unit.native_samples import quantized, quantizer_of, random, with_terms

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

PLAIN = Table((reference.KERNEL,))


def served(kernel: str, rows: int) -> str:
    """The name of the kernel that serves ternary weights: triples, where those were measured to be faster."""
    key = "ternary coded" if "coded" in kernel else "ternary"
    faster = kernel.endswith("ternary") and preferred(require_library().name, "native-triples", key, rows)
    return kernel.replace("ternary", "triples") if faster else kernel


@pytest.mark.parametrize(
    ("text", "words", "kernel"),
    [
        ("int8 channel", "int8 token dynamic", "linear/native-coded"),
        ("int4 g64", "int8 tensor asym static", "linear/native-coded"),
        ("int4 channel", "int4 token asym dynamic", "linear/native-coded"),
        ("mxfp4", "int8 g32 dynamic", "linear/native-coded"),
        ("ternary channel", "int8 token dynamic", "linear/native-coded-ternary"),
        ("int4 g64", "int8 g16 dynamic", "linear/native"),
        ("int4 g64", "e4m3 token dynamic", "linear/native"),
        ("nf4 b64", "int8 token dynamic", "linear/native"),
        ("e4m3 channel", "int8 token dynamic", "linear/native"),
    ],
)
def test_a_quantized_input_goes_into_integers_where_that_is_exact(text: str, words: str, kernel: str) -> None:
    weight, x = quantized(text, (40, 192)), random(5, 192)
    quantizer = quantizer_of(words, x)
    for terms in (weight, with_terms(weight)):
        layer = QuantLinear.from_quantized(terms, random(40), options=Options(input=quantizer))
        plain = QuantLinear.from_quantized(terms, layer.bias, options=Options(input=quantizer, table=PLAIN))
        name = kernel if terms is weight or kernel != "linear/native" else "linear/native-terms"
        assert layer.served(rows=4).kernel.name == served(name, 4)
        wanted = plain(x)
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=6e-6 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("nf4 b64", "linear/native-lookup"),
        ("nvfp4", "linear/native-lookup"),
        ("lut4 channel", "linear/native-lookup"),
        ("ternary channel", "linear/native-ternary"),
        ("ternary b32", "linear/native-int8-terms"),
        ("e4m3 channel", "linear/native-bf16"),
        ("mxfp6_e3m2", "linear/native-bf16"),
    ],
)
def test_rounding_of_activations_opens_the_fast_ways(text: str, kernel: str) -> None:
    if "bf16" in kernel and not require_library().has_bf16:
        pytest.skip("no dot product of bf16 here")
    weight = quantized(text, (40, 320))
    x = random(5, 320)
    for terms in (weight, with_terms(weight)):
        layer = QuantLinear.from_quantized(terms, options=Options(exact=False))
        assert layer.served(rows=1).kernel.name == served(kernel, 1)
        exact = QuantLinear.from_quantized(terms)(x)
        for rows in (slice(0, 1), slice(None)):
            assert float((layer(x[rows]) - exact[rows]).norm() / exact[rows].norm()) < 1e-2


def test_bf16_inputs_keep_exact_products() -> None:
    """Products of bf16 with levels that bf16 holds lose nothing, so they serve where rounding is not allowed."""
    if not require_library().has_bf16:
        pytest.skip("no dot product of bf16 here")
    x = random(3, 192).bfloat16()
    for text, served in (("int4 g64 asym", True), ("mxfp4", True), ("e4m3 tensor", True), ("nf4 b64", False)):
        weight = quantized(text, (40, 192))
        layer = QuantLinear.from_quantized(weight)
        assert (layer.served(torch.bfloat16, 1).kernel.name == "linear/native-bf16") == served
        wanted = x.double() @ weight.dequantize().double().T
        torch.testing.assert_close(layer(x).double(), wanted, rtol=5e-3, atol=2e-3 * float(wanted.abs().max()))
    assert parse("nf4 b64").grid.bits == 4
