"""What the machine can do at most, and how much of it every kernel of a model reaches."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.machine import read_bandwidth
from bitwright.native import unavailable
from bitwright.native.probe import dot_speed, read_speed
from bitwright.runtime.linear import QuantLinear

PROMPT = 128
"""Rows of the products that are held against the processor's peak."""


def roofline(model: nn.Module, repeats: int = 3) -> dict[str, Any]:
    """Measure read bandwidth and byte products on one and on torch's threads, and every linear kernel beside them.

    All layers that a kernel serves run one after the other, so that weights come from memory: once with one row
    (``bytes_per_second``, ``bandwidth_share``: bytes of the stored weights) and once with :data:`PROMPT` rows
    (``operations_per_second``, ``dot_share``: a multiply-add counts two). The best of ``repeats`` counts. Without
    compiled kernels there is no peak of products.
    """
    threads = torch.get_num_threads()
    compiled = unavailable() is None
    read = {count: read_speed(count) if compiled else read_bandwidth() for count in sorted({1, threads})}
    dot = {count: dot_speed(count) for count in sorted({1, threads})} if compiled else {}
    groups: dict[str, list[QuantLinear]] = {}
    for module in model.modules():
        if isinstance(module, QuantLinear) and module.weight_meta is not None:
            groups.setdefault(module.served(torch.float32, 1).kernel.name, []).append(module)
    return {
        "threads": threads,
        "read_bytes_per_second": {str(count): value for count, value in read.items()},
        "dot_operations_per_second": {str(count): value for count, value in dot.items()},
        "kernels": [_row(name, layers, read[threads], dot.get(threads), repeats) for name, layers in groups.items()],
    }


def _row(name: str, layers: list[QuantLinear], read: float, dot: float | None, repeats: int) -> dict[str, Any]:
    stored = sum(packed.bytes() for layer in layers if (packed := layer.packed()) is not None)
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    speed = stored / _seconds(layers, 1, repeats)
    operations = 2 * PROMPT * weights / _seconds(layers, PROMPT, repeats)
    row: dict[str, Any] = {
        "kernel": name, "layers": len(layers), "bytes_per_second": speed, "bandwidth_share": speed / read,
        "operations_per_second": operations,
    }  # fmt: skip
    return row if dot is None else row | {"dot_share": operations / dot}


def _seconds(layers: Iterable[QuantLinear], rows: int, repeats: int) -> float:
    """Seconds of one product with every layer, the best of the repeats; the first round prepares the weights."""
    work: list[tuple[QuantLinear, Tensor]] = [(layer, torch.randn(rows, layer.shape[1])) for layer in layers]
    best = float("inf")
    with torch.no_grad():
        for turn in range(repeats + 1):
            started = time.perf_counter()
            for layer, x in work:
                layer(x)
            best = min(best, time.perf_counter() - started) if turn else best
    return best
