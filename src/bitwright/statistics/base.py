"""The contract of a statistic: a frozen request that opens a mergeable collector.

A stage names the statistics it needs as values (``Hessian(prefix="layer")``). Two stages that name equal values share
one collector and one sweep over the data; linears that read the same tensor share it too.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self

from torch import Tensor

Prefix = Literal["float", "block", "layer"]
"""Which stream a statistic reads.

``float``: the float model. ``block``: inputs of the block come from the quantized blocks before it, inside the block
the weights are still float. ``layer``: as ``block``, and the layers of the same block that run earlier are already
quantized too (the original order of GPTQ's code).
"""


View = Literal["columns", "channels"]
"""``columns``: one row per output position, the patch that the flattened weight multiplies. ``channels``: one row per
input position, its channels. For a linear layer both are ``x[tokens, in]``."""


class Collector(Protocol):
    """Accumulates one statistic over batches; ``merge`` makes it independent of how the data were split."""

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take one batch: ``x[tokens, in]``; ``twin`` holds the same tokens of the float model where asked for."""

    def merge(self, other: Self) -> None:
        """Add what another collector of the same request saw."""

    def result(self) -> Any:
        """Return the statistic; callable more than once."""


class Statistic(Protocol):
    """A frozen request for a statistic of a site's input.

    A class attribute ``spreads = True`` promises that a collector of every call, merged in the order of the calls, has
    the bits of one collector that took all of them: each call adds (or compares) something that depends on it alone.
    """

    @property
    def prefix(self) -> Prefix:
        """Stream that is read."""

    @property
    def reads_twin(self) -> bool:
        """Whether ``update`` wants the float model's tokens beside the quantized ones."""

    @property
    def view(self) -> View:
        """How a convolution's input is laid out for ``update``."""

    def open(self, dim: int) -> Collector:
        """Start a collector for inputs of ``dim`` channels."""

    def memory_bytes(self, dim: int) -> int:
        """Upper bound of the collector's memory, for the plan."""
