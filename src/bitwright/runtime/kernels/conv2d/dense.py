"""Convolution on a dequantized copy of the weight that is kept."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.geometry import ConvGeometry
from bitwright.runtime.kernels.linear.dense import refuses
from bitwright.runtime.weight import PackedWeight


def run(
    x: Tensor, prepared: Tensor, bias: Tensor | None, quantizer: ActivationQuantizer | None, geometry: ConvGeometry
) -> Tensor:
    """Convolve ``x[batch, channels, height, width]`` with the weight ``[out, in / groups * kh * kw]``."""
    return geometry.convolve(geometry.quantized(x, quantizer), prepared, bias)


KERNEL = Kernel(
    name="conv2d/dense",
    op="conv2d",
    priority=100,
    why="the weight was dequantized once and kept (cache_weights)",
    prepare=PackedWeight.dequantize,
    run=run,
    refuses=refuses,
)
