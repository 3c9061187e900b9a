"""Bias correction restores means."""

from __future__ import annotations

import torch

from bitwright.stages.corrections import Correction, EmpiricalBias


def test_corrected_layer_has_the_float_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 8, generator=generator) + 0.5
    w, bias = torch.randn(5, 8, generator=generator), torch.randn(5, generator=generator)
    quantized = (w * 2).round() / 2
    expected, measured = (x @ w.t() + bias).mean(0), (x @ quantized.t() + bias).mean(0)
    corrected = EmpiricalBias().correct(bias, expected, measured)
    assert corrected is not None
    assert float((measured - expected).abs().max()) > 0.05
    torch.testing.assert_close((x @ quantized.t() + corrected).mean(0), expected, atol=1e-4, rtol=1e-4)


def test_a_layer_without_bias_gets_one() -> None:
    assert isinstance(EmpiricalBias(), Correction)
    corrected = EmpiricalBias().correct(None, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    assert corrected is not None
    assert corrected.tolist() == [0.5, -1.0]
