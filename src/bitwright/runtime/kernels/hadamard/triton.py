"""Hadamard transform in Triton: one pass for powers of two, two for sizes with another factor."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.dispatch import Kernel
from bitwright.runtime.kernels.hadamard.reference import prepare
from bitwright.runtime.kernels.triton.available import refuses_activations


def run(x: Tensor, size: int, seed: int, inverse: bool = False) -> Tensor:
    """Rotate the last axis of ``x`` in blocks of ``size`` after random signs (``seed`` -1: none).

    Raises:
        InputError: if ``size`` does not divide the axis or has no Hadamard matrix.
        UnsupportedError: a dtype or device that is not served.
    """
    from bitwright.runtime.kernels.triton.hadamard import triton_hadamard

    y: Tensor = triton_hadamard(x, size, seed, inverse)
    return y


KERNEL = Kernel(
    name="hadamard/triton",
    op="hadamard",
    priority=50,
    why="butterflies in registers: reads and writes every value once or twice",
    prepare=prepare,
    run=run,
    devices=frozenset({"cuda"}),
    refuses=refuses_activations,
)
