"""Hadamard transform by products with its small factors."""

from __future__ import annotations

from torch import Tensor

from bitwright.runtime.dispatch import Kernel
from bitwright.stages.transforms.hadamard import apply_hadamard


def prepare() -> None:
    """Nothing to prepare."""


def run(x: Tensor, size: int, seed: int, inverse: bool = False) -> Tensor:
    """Rotate the last axis of ``x`` in blocks of ``size`` after random signs (``seed`` -1: none)."""
    return apply_hadamard(x, size, seed, inverse)


KERNEL = Kernel(
    name="hadamard/reference",
    op="hadamard",
    priority=0,
    why="serves every constructible size, dtype and device",
    prepare=prepare,
    run=run,
)
