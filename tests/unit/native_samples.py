"""Weights for the tests of compiled products."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats import CodebookGrid, LowRank, QuantizedTensor, Sparse, parse
from bitwright.runtime import ActivationQuantizer
from bitwright.runtime.weight import PackedWeight
from bitwright.stages.codebooks.weighted_kmeans import WeightedKMeans
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.solve import quantize_weight


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(text: str, shape: tuple[int, int]) -> QuantizedTensor:
    codebook = WeightedKMeans(weight="none") if isinstance(parse(text).grid, CodebookGrid) else None
    return quantize_weight(random(*shape, seed=3), Quantizer(parse(text), codebook=codebook))


def with_terms(weight: QuantizedTensor) -> QuantizedTensor:
    """The weight with single values (one row without any, one full) and a product of narrow factors."""
    out, columns = weight.shape
    mask = random(out, columns, seed=5) > 1.5
    mask[1], mask[2] = False, True
    sparse = Sparse.where(random(out, columns, seed=6), mask)
    factors = LowRank(random(out, 5, seed=7).half(), random(5, columns, seed=8).half())
    return QuantizedTensor((*weight.terms, sparse, factors))


def packed(weight: QuantizedTensor) -> PackedWeight:
    tensors, meta = weight.to_tensors()
    return PackedWeight(tensors, meta, weight.shape, weight.normal_form, str(meta["terms"][0]["format"]))


def quantizer_of(text: str, x: Tensor) -> ActivationQuantizer:
    """The quantizer of an input; a static one saturates a fifth of the range of x."""
    fmt = parse(text)
    if fmt.time == "dynamic":
        return ActivationQuantizer(fmt)
    return ActivationQuantizer.of(fmt, x.amin().reshape(1) * 0.8, x.amax().reshape(1) * 0.8)
