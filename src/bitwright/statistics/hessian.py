"""Second moments of a linear layer's input: what the second-order rounding methods minimise with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from bitwright.native import moments
from bitwright.statistics.base import Prefix, View


@dataclass(frozen=True)
class SecondMoment:
    """``matrix[in, in]`` = mean over tokens of an outer product, fp32, and the number of tokens."""

    matrix: Tensor
    count: int


class _Products:
    """A running sum of outer products ``[in, in]`` over tokens: in fp64 for at most ``WIDE`` channels, else in fp32."""

    WIDE = 2048

    def __init__(self, dim: int) -> None:
        self.total = torch.zeros(dim, dim, dtype=torch.float64 if dim <= self.WIDE else torch.float32)
        self.count = 0

    def merge(self, other: Self) -> None:
        """Combine; equal to one pass up to rounding of the sum."""
        self.total += other.total
        self.count += other.count

    def mean(self) -> Tensor:
        """Return the mean over tokens in fp32; zeros where none was seen."""
        return (self.total / max(self.count, 1)).float()


class HessianCollector(_Products):
    """Accumulates ``X^T X`` in fp32 per batch and fp64 across batches where the size allows it.

    The running sum is kept in fp64 for at most 2048 channels (it is small then) and in fp32 beyond; one batch is one
    matrix product in fp32, so the error is that of a single fp32 product, not of a long running sum. Only the blocks on
    and above the diagonal are computed: a symmetric product costs little more than half of a general one. Compiled
    kernels take the product where they serve (:mod:`bitwright.native.moments`), torch in strips elsewhere.
    """

    STRIPS = 8

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]``."""
        kernels = moments.serving(x)
        if kernels is None:
            self._add_strips(x.float())
        else:
            moments.add_moments(x, self.total, kernels)
        self.count += x.shape[0]

    def _add_strips(self, x: Tensor) -> None:
        dim, strips = self.total.shape[0], self._strips()
        memory = x.new_empty(max(stop - start for start, stop in strips) * dim)  # one piece for all strips
        for start, stop in strips:
            # The product by itself and then its sum: so the sums of two collectors merge to the same bits.
            product = memory[: (stop - start) * (dim - start)].view(stop - start, dim - start)
            torch.mm(x[:, start:stop].t(), x[:, start:], out=product)
            self.total[start:stop, start:] += product

    def _strips(self) -> list[tuple[int, int]]:
        """Rows that are computed together, from their diagonal on; narrow products gain nothing from being cut."""
        dim = self.total.shape[0]
        step = max(256, -(-dim // self.STRIPS))
        return [(start, min(start + step, dim)) for start in range(0, dim, step)]

    def result(self) -> SecondMoment:
        """Return the mean second moment (the Hessian of the layer's squared output error is twice this)."""
        mean = self.mean()
        for start, stop in self._strips():
            mean[stop:, start:stop] = mean[start:stop, stop:].t()
            corner = mean[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).t())
        return SecondMoment(mean, self.count)


@dataclass(frozen=True)
class Hessian:
    """``E[x x^T]`` of a site's input ``x``, ``[in, in]``."""

    prefix: Prefix = "layer"
    reads_twin: bool = False
    view: View = "columns"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> HessianCollector:
        """Start collecting."""
        return HessianCollector(dim)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held, the largest product of one batch included."""
        return 12 * dim * dim if dim <= HessianCollector.WIDE else 9 * dim * dim // 2


class CrossHessianCollector(_Products):
    """Accumulates ``(X_float - X)^T X`` for the same tokens of both streams, in the precision of the Hessian's sum."""

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take ``x[tokens, in]`` of the quantized stream and ``twin[tokens, in]`` of the float model.

        Raises:
            ValueError: if the twin is missing or of another shape.
        """
        if twin is None or twin.shape != x.shape:
            raise ValueError("the cross moment needs the float twin of the same tokens")
        x = x.float()
        self.total += (twin.float() - x).t() @ x
        self.count += x.shape[0]

    def result(self) -> SecondMoment:
        """Return ``E[(x_float - x) x^T]``."""
        return SecondMoment(self.mean(), self.count)


@dataclass(frozen=True)
class CrossHessian:
    """``E[(x_float - x) x^T]``, the cross moment of the input's own quantization error (GPTAQ)."""

    prefix: Prefix = "layer"
    reads_twin: bool = True
    view: View = "columns"
    spreads: ClassVar[bool] = True

    def open(self, dim: int) -> CrossHessianCollector:
        """Start collecting."""
        return CrossHessianCollector(dim)

    def memory_bytes(self, dim: int) -> int:
        """Bytes held, one batch's product included."""
        return Hessian().memory_bytes(dim)
