"""Convolutions along one axis are coded and run as those along two with a kernel of height one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.formats import QuantizedTensor, parse
from bitwright.runtime import ActivationQuantizer, ConvGeometry, Options
from bitwright.runtime.conv import QuantConv1d


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}, {"groups": 3, "padding": 2},
        {"groups": 6, "padding": 1, "padding_mode": "reflect"}, {"padding": "valid"},
    ],
)  # fmt: skip
def test_it_equals_the_float_one_on_the_dequantized_weight(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    source = nn.Conv1d(6, 12, 3, **options)
    weight = QuantizedTensor((parse("int4 channel").quantize(source.weight.detach().flatten(1)),))
    layer = QuantConv1d.from_quantized(weight, source.bias.detach(), ConvGeometry.of(source))
    source.weight.data = weight.dequantize().view_as(source.weight)
    x = torch.randn(2, 6, 9)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight, source.weight.data)
    assert (layer.kernel_size, layer.stride, layer.dilation) == (source.kernel_size, source.stride, source.dilation)
    assert layer.padding == source.padding


def test_inputs_are_coded_position_by_position() -> None:
    torch.manual_seed(0)
    quantizer = ActivationQuantizer(parse("int4 token dynamic"))
    w = torch.randn(4, 8, 1)
    layer = QuantConv1d.from_float(w, None, ConvGeometry((1, 1)), options=Options(quantizer))
    x = torch.randn(2, 8, 5)
    torch.testing.assert_close(layer(x), (quantizer(x.movedim(1, -1)) @ w[:, :, 0].T).movedim(-1, 1))


class _Speech(nn.Module):
    """Two convolutions in front of a depthwise one, as in audio encoders and state-space models."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 32, 3, padding=1)
        self.second = nn.Conv1d(32, 32, 3, stride=2, padding=1)
        self.mixing = nn.Conv1d(32, 32, 4, groups=32)
        self.last = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixing(self.second(self.first(x).relu()).relu())
        return self.last(x.transpose(1, 2))


@pytest.mark.parametrize("recipe", ["rtn", "gptq"])
def test_a_job_codes_them(recipe: str) -> None:
    torch.manual_seed(0)
    module, x = _Speech(), torch.randn(4, 8, 16)
    expected = module(x)
    result = bw.quantize(module, recipe, [x], weights="int8 g32")
    assert isinstance(module.first, QuantConv1d)
    assert {"first", "second"} <= set(result.coded)
    assert isinstance(module.mixing, nn.Conv1d)
    with torch.no_grad():
        assert float((module(x) - expected).abs().max()) < 0.1 * float(expected.abs().max())


class _Turned(nn.Conv1d):
    """A head for [batch, length, channels], as some speech models have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def test_a_layer_that_turns_its_input_first_keeps_its_module() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), _Turned(8, 5, 1), nn.Linear(5, 3))
    x = torch.randn(4, 16, 8)
    expected = module(x)
    bw.quantize(module, "rtn", [x], weights="int8 channel")
    assert type(module[1]) is _Turned
    with torch.no_grad():
        assert float((module(x) - expected).abs().max()) < 0.1 * float(expected.abs().max())
