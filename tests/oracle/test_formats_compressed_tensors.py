"""The second E8M0 rule, integer ranges and dequantization against the compressed-tensors package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright.formats import parse

mxfp_utils = pytest.importorskip("compressed_tensors.quantization.utils.mxfp_utils")
helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
quantization = pytest.importorskip("compressed_tensors.quantization")


def magnitudes() -> torch.Tensor:
    """Powers of two between 2^-40 and 2^40, their neighbours, every threshold of rounding up, and random values."""
    powers = 2.0 ** np.arange(-40, 41, dtype=np.float64)
    exact = np.concatenate([powers * factor for factor in (1.0, 1.25, 1.5, 1.75, 1.875, 1.9375)]).astype(np.float32)
    around = [np.nextafter(exact, np.float32(np.inf)), exact, np.nextafter(exact, np.float32(0))]
    random = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 10
    return torch.cat([torch.from_numpy(np.concatenate(around)), random])


@pytest.mark.parametrize(("word", "bits"), [("e2m1", 4), ("e2m3", 6), ("e4m3", 8)])
def test_the_ct_rule_gives_their_exponents(word: str, bits: int) -> None:
    absmax = magnitudes()
    fmt = parse(f"{word} g32 scale=e8m0-ct")
    scale, _ = fmt.scale_from_range(-absmax.view(-1, 1), absmax.view(-1, 1))
    theirs = mxfp_utils.generate_mx_scales(absmax, bits).to(torch.uint8)
    assert torch.equal(fmt.store_scale(scale).stored.view(-1), theirs)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integer_ranges_are_theirs(bits: int, symmetric: bool) -> None:
    w = torch.randn(32, 128, generator=torch.Generator().manual_seed(bits))
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    args = quantization.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel")
    their_scale, their_zero = helpers.calculate_qparams(low, high, args)
    fmt = parse(f"int{bits} channel scale=fp32 {'sym' if symmetric else 'asym'}")
    scale, zero = fmt.scale_from_range(low, high)
    torch.testing.assert_close(scale, their_scale, rtol=2e-7, atol=0)
    if zero is not None:
        # Their codes are signed, so their zero point lies 2^(b-1) lower.
        assert torch.equal(zero - 2 ** (bits - 1), their_zero.to(torch.float32))
