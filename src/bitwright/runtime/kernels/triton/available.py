"""Whether Triton's kernels can serve: asked without importing Triton."""

from __future__ import annotations

import importlib.util

import torch

from bitwright.runtime.dispatch import Request

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of activations that the kernels take; sums are float32 in all of them."""


def missing() -> str | None:
    """Return why there is no Triton, or ``None`` where it is installed."""
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed (pip install triton)"
    return None


def refuses_activations(request: Request) -> str | None:
    """Refuse what none of these kernels takes: no Triton, or activations that are not fp16, bf16 or fp32."""
    if request.dtype not in DTYPES:
        return f"serves float16, bfloat16 and float32, not {str(request.dtype).removeprefix('torch.')}"
    return missing()
