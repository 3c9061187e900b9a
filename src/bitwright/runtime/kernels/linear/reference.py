"""Linear by definition: dequantize the whole weight at every call, then a float product. The oracle of the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.weight import PackedWeight


def prepare(weight: PackedWeight, dtype: torch.dtype) -> PackedWeight:
    """Keep the weight packed."""
    del dtype
    return weight


def run(x: Tensor, prepared: PackedWeight, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ weight.T + bias`` in the dtype of x."""
    x = x if quantizer is None else quantizer(x)
    return functional.linear(x, prepared.dequantize(x.dtype), None if bias is None else bias.to(x.dtype))


KERNEL = Kernel(
    name="linear/reference",
    op="linear",
    priority=0,
    why="serves every form, dtype and device; dequantizes the weight at every call",
    prepare=prepare,
    run=run,
)
