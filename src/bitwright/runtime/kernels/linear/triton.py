"""Linear on coded weights in Triton: decoding and long prompts from one prepared weight; serves graphics processors."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.triton.available import refuses_activations
from bitwright.runtime.kernels.triton.weight import TileWeight, prepare, unserved


def refuses(request: Request) -> str | None:
    """Refuse without Triton, other activations than fp16, bf16, fp32, and scales that do not lie along the inputs."""
    limit = refuses_activations(request)
    if limit is None and request.format and len(request.shape) == 2:
        limit = unserved(request.format, (request.shape[0], request.shape[1]))
    return limit


def run(x: Tensor, prepared: TileWeight, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ weight.T + bias`` in the dtype of x.

    Raises:
        UnsupportedError: a dtype or device that is not served.
        InputError: shapes or devices that do not fit together.
    """
    from bitwright.runtime.kernels.triton.product import linear

    return linear(x if quantizer is None else quantizer(x), prepared, bias)


KERNEL = Kernel(
    name="linear/triton",
    op="linear",
    priority=50,
    why="reads the codes and turns them into numbers in registers",
    prepare=prepare,
    run=run,
    forms=frozenset({"affine", "table", "codebook"}),
    devices=frozenset({"cuda"}),
    refuses=refuses,
)
