"""Convolution by definition: dequantize the flattened weight at every call, then a float convolution."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.geometry import ConvGeometry
from bitwright.runtime.kernels.conv2d import dense
from bitwright.runtime.weight import PackedWeight


def run(
    x: Tensor,
    prepared: PackedWeight,
    bias: Tensor | None,
    quantizer: ActivationQuantizer | None,
    geometry: ConvGeometry,
) -> Tensor:
    """Convolve ``x[batch, channels, height, width]`` with the weight ``[out, in / groups * kh * kw]``."""
    return dense.run(x, prepared.dequantize(x.dtype), bias, quantizer, geometry)


KERNEL = Kernel(
    name="conv2d/reference",
    op="conv2d",
    priority=0,
    why="serves every form, dtype and device; dequantizes the weight at every call",
    prepare=PackedWeight.packed,
    run=run,
)
