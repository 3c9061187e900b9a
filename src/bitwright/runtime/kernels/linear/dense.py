"""Linear on a dequantized copy of the weight that is kept: fast to evaluate, but as large as the float model."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request, serve_floats
from bitwright.runtime.weight import PackedWeight


def refuses(request: Request) -> str | None:
    """Serve only where the caller allowed the copy."""
    if not request.keep_dense:
        return "keeps a float copy of the weight, which was not asked for (cache_weights)"
    return serve_floats(request)


def run(x: Tensor, prepared: Tensor, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ weight.T + bias`` in the dtype of x."""
    x = x if quantizer is None else quantizer(x)
    return functional.linear(x, prepared, None if bias is None else bias.to(x.dtype))


KERNEL = Kernel(
    name="linear/dense",
    op="linear",
    priority=100,
    why="the weight was dequantized once and kept (cache_weights)",
    prepare=PackedWeight.dequantize,
    run=run,
    refuses=refuses,
)
