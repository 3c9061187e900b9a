"""Linear by definition: dequantize the whole weight at every call, then a float product. The oracle of the others."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.kernels.linear import dense
from bitwright.runtime.weight import PackedWeight


def run(x: Tensor, prepared: PackedWeight, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ weight.T + bias`` in the dtype of x."""
    return dense.run(x, prepared.dequantize(x.dtype), bias, quantizer)


KERNEL = Kernel(
    name="linear/reference",
    op="linear",
    priority=0,
    why="serves every form, dtype and device; dequantizes the weight at every call",
    prepare=PackedWeight.packed,
    run=run,
)
