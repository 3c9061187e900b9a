"""Second moments of tokens by compiled code: equal bits on every instruction set and for any threads."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import FLOAT_CODES, float_code, span
from bitwright.native.loading import Library, library


def serving(x: Tensor) -> Library | None:
    """The kernels that add the moments of ``x``, or ``None`` where torch does."""
    if x.device.type != "cpu" or x.dtype not in FLOAT_CODES or torch.compiler.is_compiling():
        return None
    found = library()
    return None if found is None or found.name == "scalar" else found


def add_moments(x: Tensor, total: Tensor, kernels: Library) -> None:
    """Add ``x^T x`` of ``x[tokens, dim]`` (fp32, fp16, bf16) to ``total[dim, dim]`` (fp32, fp64), above its diagonal.

    An entry is summed over runs of 128 tokens, each by fused multiply-adds from zero, in fp32; the sum of the runs is
    added to the total at once. Its error is below ``(128 + tokens / 128) * 2^-24`` times the sum of absolute products.
    Below the diagonal the total is undefined.

    Raises:
        InputError: for other dtypes or shapes.
    """
    tokens, dim = x.shape
    source = x.detach().contiguous()
    if total.dtype not in (torch.float32, torch.float64):
        raise InputError(f"second moments are summed in float32 or float64, not {total.dtype}")
    try:
        kernels.add_moments(
            tokens, dim, float_code(x.dtype), span(source), span(total), total.dtype == torch.float64,
            torch.get_num_threads(),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"tokens {tuple(x.shape)} do not fit a sum {tuple(total.shape)}: {error}") from error
