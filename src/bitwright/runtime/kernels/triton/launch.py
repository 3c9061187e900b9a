"""What every launch needs: the device that a kernel can run on, its types, and errors that name the limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitwright.errors import InputError
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.triton.available import DTYPES

TYPES: dict[torch.dtype, Any] = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}
"""Triton's names of the dtypes of activations."""

OLDEST = (8, 0)
"""Compute capability from which matrix units multiply bf16; older processors are served by the reference."""


def interpreted(kernel: Any) -> bool:
    """Whether Triton runs the kernel in its interpreter, on tensors in main memory."""
    return not isinstance(kernel, triton.JITFunction)


def check(kernel: Any, x: Tensor, *others: Tensor | None) -> None:
    """Check dtype and devices before a launch.

    Raises:
        UnsupportedError: activations or a device that the kernels do not serve.
        InputError: tensors on several devices.
    """
    if x.dtype not in DTYPES:
        raise UnsupportedError(
            f"the kernels of Triton take float16, bfloat16 and float32, not {x.dtype}; convert the activations"
        )
    for other in others:
        if other is not None and other.device != x.device:
            raise InputError(f"activations are on {x.device} and a weight on {other.device}; move one of them")
    if interpreted(kernel):
        if x.device.type != "cpu":
            raise UnsupportedError(f"Triton's interpreter was asked for; it takes tensors on cpu, not on {x.device}")
        return
    if x.device.type != "cuda":
        raise UnsupportedError(f"the kernels of Triton run on cuda, not on {x.device}; use the reference")
    found = torch.cuda.get_device_capability(x.device)
    if torch.version.hip is None and found < OLDEST:
        raise UnsupportedError(
            f"the kernels of Triton need compute capability {OLDEST[0]}.{OLDEST[1]}; {x.device} has "
            f"{found[0]}.{found[1]}; use the reference"
        )


@contextmanager
def on_device(x: Tensor) -> Iterator[None]:
    """Make the device of ``x`` the current one, where Triton launches."""
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def processors(x: Tensor) -> int:
    """Return how many multiprocessors the device of ``x`` has (1 in the interpreter)."""
    if x.device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count)


def power_of_two(number: int, least: int = 1) -> int:
    """Return the smallest power of two that is not below ``number`` and ``least``."""
    return max(1 << max(number - 1, 0).bit_length(), least)


def widen(kernel: Any, dtype: torch.dtype) -> bool:
    """Whether products are formed in float32: the interpreter cannot multiply bf16."""
    return dtype == torch.bfloat16 and interpreted(kernel)
