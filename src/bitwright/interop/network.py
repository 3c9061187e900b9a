"""What an exporter is told of a native model before a tensor is read, and what it has to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bitwright.formats import QuantizedTensor
from bitwright.runtime import Manifest


@dataclass(frozen=True)
class Network:
    """A native model without its tensors.

    Attributes:
        manifest: the checked manifest.
        config: the folder's config.json.
        linears: paths of all ``nn.Linear`` modules of the float network, in its order.
        biases: those of them that have a bias in the float network.
        tied: those of them whose weight is also another parameter of it (a head that is the embedding).
    """

    manifest: Manifest
    config: Mapping[str, Any]
    linears: tuple[str, ...]
    biases: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()


class Plan(Protocol):
    """How a network is written in a foreign format; made before anything is written."""

    @property
    def summary(self) -> str:
        """The name of the format, as the reader calls it."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The whole config.json of the new folder."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user: what a reader has to know."""
        ...

    def pack(
        self, path: str, weight: QuantizedTensor, input_scale: Tensor | None, input_zero: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the foreign tensors of a module by full name; ``input_*`` are those of a static input."""
        ...

    def closing_notes(self, scalars: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return notes that only the values show; ``scalars`` are the packed tensors of one element by full name."""
        ...


class Planner(Protocol):
    """Decides whether a network can be written in a format, and how."""

    def __call__(self, network: Network) -> Plan:
        """Return the plan.

        Raises:
            InputError: what the format cannot express, and the nearest thing that it can.
        """
        ...
