"""What a single module computes, told from its call: linear layers and norms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.models.norms import probe_norm
from bitwright.models.record import ModuleCall, Ref
from bitwright.runtime.linear import QuantLinear
from bitwright.runtime.native_decoder.plan import MatrixPart, NormPart
from bitwright.runtime.native_decoder.trace import Call, distance

TOLERANCE = 1e-4
_TINY = 1e-6


def as_matrix(call: Call) -> MatrixPart | None:
    """The linear layer that a call was, or ``None``; its output is proved for float weights."""
    x, y, module = call.x, call.y, call.module
    if x is None or y is None or not call.leaf or x.shape[:-1] != y.shape[:-1]:
        return None
    if isinstance(module, QuantLinear):
        bias = None if module.bias is None else module.bias.detach().float()
        return MatrixPart(call.path, module, module.shape, None, bias)
    parameters = dict(module.named_parameters(recurse=False))
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or weight.dim() != 2 or set(parameters) - {"weight", "bias"}:
        return None
    for matrix in (weight, weight.T):
        if matrix.shape != (y.shape[-1], x.shape[-1]):
            continue
        made = functional.linear(x.to(matrix.dtype), matrix, bias).detach()
        if distance(made, y) <= TOLERANCE:
            short = None if bias is None else bias.detach().float()
            return MatrixPart(call.path, module, (matrix.shape[0], matrix.shape[1]), matrix.detach(), short)
    return None


def as_norm(call: Call, tolerance: float = TOLERANCE) -> NormPart | None:
    """The norm that a call was, with its epsilon, or ``None``."""
    x, y, module = call.x, call.y, call.module
    if x is None or y is None or not call.leaf or x.shape != y.shape or x.dim() < 2 or x.shape[-1] < 2:
        return None
    if any(p.dim() != 1 for p in module.parameters()) or isinstance(module, QuantLinear):
        return None
    shape = (1, 7, x.shape[-1])
    site = probe_norm(module, ModuleCall(0, call.path, 0, ((0, Ref(0, 0, shape, (0, 0, 0), 0, True)),), -1))
    if site is None or site.kind not in ("rms", "layer"):
        return None
    parameters = {name: p.detach().float() for name, p in module.named_parameters()}
    gain = torch.ones(site.dim) if site.weight is None else parameters[site.weight] + site.offset
    shift = None if site.bias is None else parameters[site.bias]
    part = NormPart(call.path, gain, shift, _epsilon(call, gain, shift), site.kind == "layer")
    return part if distance(run_norm(part, x), y) <= tolerance else None


def _epsilon(call: Call, gain: Tensor, shift: Tensor | None) -> float:
    """Epsilon, from an input so small that little else is under the root."""
    assert call.x is not None
    like = next(call.module.parameters(), call.x)
    signs = torch.ones(gain.numel())
    signs[1::2] = -1
    signs[gain.numel() // 2 * 2 :] = 0
    x = _TINY * signs
    with torch.no_grad():
        y = call.module(x.to(like).expand(1, 2, -1))[0, 0].float()
    if shift is not None:
        y = y - shift
    weighed = gain * signs
    slope = float(y @ weighed) / max(float(weighed @ weighed), 1e-30)
    mean = float(x.pow(2).mean())
    return max((_TINY / slope) ** 2 - mean, 0.0) if slope > 0 else 0.0


def run_norm(part: NormPart, x: Tensor) -> Tensor:
    """The norm by its definition, over the last axis."""
    x = x.float()
    if part.centred:
        x = x - x.mean(-1, keepdim=True)
    y = part.gain * x / (x.pow(2).mean(-1, keepdim=True) + part.eps).sqrt()
    return y if part.shift is None else y + part.shift
