"""The contract of the Learn slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from bitwright.events import Events
from bitwright.formats import QuantizedTensor
from bitwright.stages.quantizer import Quantizer


@dataclass(frozen=True)
class LearnTask:
    """One reconstruction problem: make ``forward`` with learned weights meet the float targets.

    Attributes:
        name: unit or layer path (seeds are derived from it).
        weights: float weights ``[out, in]`` by path, those to be coded.
        initial: the weights as rounded so far, by path.
        quantizers: quantizer of each weight; input_quantizers: activation quantizer of each path (may be absent).
        inputs: number of calibration batches; ``forward(overrides, index)`` runs batch ``index`` (quantized stream)
            differentiably with the weights replaced by ``overrides`` (any subset) and returns the unit's output tensor.
        target: ``target(index)`` is the float output of the same batch. ``importance(index)`` is the mean squared
            gradient of the task loss at the output (BRECQ's Fisher weight) or ``None``.
    """

    name: str
    weights: Mapping[str, Tensor]
    initial: Mapping[str, QuantizedTensor]
    quantizers: Mapping[str, Quantizer]
    input_quantizers: Mapping[str, Quantizer]
    inputs: int
    forward: Callable[[Mapping[str, Tensor], int], Tensor]
    target: Callable[[int], Tensor]
    importance: Callable[[int], Tensor | None]
    seed: int
    events: Events
    progress: Callable[[int, int], None]


@runtime_checkable
class Learn(Protocol):
    """Learns what the rounding left open, at some scope."""

    @property
    def scope(self) -> Literal["layer", "block"]:
        """What is reconstructed at a time."""

    @property
    def batch(self) -> int:
        """Sequences or images per learning batch (0: the job's calibration batches)."""

    @property
    def tokens(self) -> int:
        """Learn on the first positions of each sequence only, where the unit is causal (0: all)."""

    @property
    def needs_importance(self) -> bool:
        """Whether gradients of the task loss at the unit's outputs are wanted."""

    def run(self, task: LearnTask) -> Mapping[str, QuantizedTensor]:
        """Solve one problem and return the final weights."""


def batches_in_random_order(count: int, steps: int, seed: int) -> Sequence[int]:
    """Indices of ``steps`` batches, every batch once per pass, in a seeded order."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps:
        order.extend(torch.randperm(count, generator=generator).tolist())
    return order[:steps]
