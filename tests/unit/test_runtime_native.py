"""The compiled kernels of the table against the reference, for every format that they say they serve."""

from __future__ import annotations

import pytest
import torch

from bitwright.formats import CodebookGrid, QuantizedTensor, parse
from bitwright.native import unavailable
from bitwright.runtime import QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import native, reference
from bitwright.runtime.module import Options
from bitwright.stages.codebooks.weighted_kmeans import WeightedKMeans
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.solve import quantize_weight

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SERVED = [
    "int4 g128", "int4 g32 asym", "int3 g64", "int8 channel", "int2 g32 asym zero=fp16", "int1 channel", "int5 channel",
    "int6 g32 asym", "int7 tensor", "nf4 b64", "nf4 b64 scale=double", "nf3 b32", "mxfp4", "mxint8", "mxfp6_e2m3",
    "mxfp8_e4m3", "mxfp8_e5m2", "nvfp4", "e4m3 tensor", "e3m4 channel", "ternary channel", "pot4 channel",
    "lut4 channel", "lut3 tensor", "int4 block16x32",
]  # fmt: skip


def quantized(text: str, shape: tuple[int, int]) -> QuantizedTensor:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    codebook = WeightedKMeans(weight="none") if isinstance(parse(text).grid, CodebookGrid) else None
    return quantize_weight(w, Quantizer(parse(text), codebook=codebook))


@pytest.mark.parametrize("text", SERVED)
@pytest.mark.parametrize("shape", [(40, 192), (33, 100)])
def test_it_equals_the_reference(text: str, shape: tuple[int, int]) -> None:
    weight = quantized(text, shape)
    exact = QuantLinear.from_quantized(weight, torch.randn(shape[0]), options=Options(table=Table((native.KERNEL,))))
    if exact.table.kernels[0].limit(exact.request(torch.float32, 1, torch.device("cpu"))) is not None:
        assert shape == (33, 100)
        return
    plain = QuantLinear.from_quantized(weight, exact.bias, options=Options(table=Table((reference.KERNEL,))))
    for rows in (1, 9):
        x = torch.randn(rows, shape[1])
        torch.testing.assert_close(exact(x), plain(x), rtol=1e-5, atol=1e-5 * float(plain(x).detach().abs().max()))
    assert parse(text).grid.bits <= 8


def test_rounding_of_activations_is_asked_for() -> None:
    """Without leave a weight is multiplied as it is; with it integers are, and the error stays below one percent."""
    weight = quantized("int4 g32", (64, 256))
    layer = QuantLinear.from_quantized(weight)
    x = torch.randn(5, 256)
    assert layer.served(rows=1).kernel.name == "linear/native"
    fast = QuantLinear.from_quantized(weight, options=Options(exact=False))
    assert fast.served(rows=1).kernel.name == "linear/native-int8"
    error = (fast(x) - layer(x)).norm() / layer(x).norm()
    assert 1e-4 < float(error) < 1e-2
