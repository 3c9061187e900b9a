"""The contract of a transform, and what a stage sees of the part of the network it works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from bitwright.events import Events
from bitwright.stages.quantizer import Quantizer
from bitwright.statistics import Statistic

Scope = Literal["block", "model"]

Part = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""Runs a part of a unit with some weights replaced; outputs by batch (or by call)."""


@dataclass(frozen=True)
class PairView:
    """A proven place where a scale can move: what ``source`` writes is what the ``sinks`` read.

    ``kind`` is ``norm_linear``, ``linear_linear``, ``conv_conv`` or ``batchnorm_conv``. Output channel c of the source
    feeds input channels of each sink; with ``repeat > 1`` (grouped queries) the source's heads of ``head_dim`` rows
    serve ``repeat`` consecutive heads of the sink. ``rows`` are the source's rows that take part, in channel order
    (all if ``None``); ``through`` are norms on the way that scale with the source; ``offset`` is what a norm's library
    adds to its stored weight; ``turns`` says that the channels of a head may be mixed by an orthogonal matrix, too.
    """

    kind: str
    source: str
    sinks: tuple[str, ...]
    repeat: int = 1
    head_dim: int = 0
    rows: tuple[int, ...] | None = None
    through: tuple[str, ...] = ()
    offset: float = 0.0
    turns: bool = False


@dataclass(frozen=True)
class StreamTouch:
    """A parameter that touches the residual stream along ``axis`` (of the matrix ``[out, in]``, or 0 for vectors).

    ``norm`` is the norm whose gain is folded into a reader before the rotation.
    """

    path: str
    parameter: str
    axis: int
    norm: str | None = None


@dataclass(frozen=True)
class ResidualView:
    """The residual stream: every parameter of the whole model that writes or reads its ``dim`` channels.

    ``kind`` is ``rms`` (any orthogonal matrix commutes with the norms) or ``layer`` (one that keeps the ones does).
    ``offsets`` holds what a norm's library adds to its stored weight.
    """

    dim: int
    kind: str
    writes: tuple[StreamTouch, ...]
    reads: tuple[StreamTouch, ...]
    offsets: Mapping[str, float] = field(default_factory=dict)


class Block(Protocol):
    """One unit of the network with its weights in memory, as a stage sees it.

    Paths are module paths of the whole model. Weights are fp32 ``[out, in]`` (convolutions flattened).
    """

    name: str
    pairs: tuple[PairView, ...]
    residual: ResidualView | None
    linears: tuple[str, ...]

    def weight(self, path: str) -> Tensor:
        """Float weight of a module: ``[out, in]``, or ``[dim]`` for a norm, ``[rows, dim]`` for an embedding."""

    def bias(self, path: str) -> Tensor | None:
        """Bias of a module, or ``None``."""

    def set_weight(self, path: str, w: Tensor) -> None:
        """Replace a weight; it is rounded to the dtype that will be stored."""

    def set_bias(self, path: str, b: Tensor | None) -> None:
        """Replace or create a bias."""

    def set_parameter(self, path: str, name: str, value: Tensor) -> None:
        """Replace a parameter that is no weight or bias of a layer (a table of positions), in its own shape."""

    def holds(self, path: str) -> bool:
        """Whether the module lies in this unit and is in memory."""

    def attribute(self, path: str, name: str) -> Any:
        """Read a module's attribute (``running_mean``, ``eps``, ``groups`` ...)."""

    def remove(self, path: str) -> None:
        """Replace a module by the identity (a folded BatchNorm); listed in the manifest."""

    def quantizer(self, path: str) -> Quantizer | None:
        """The quantizer that the recipe will use for a weight."""

    def input_quantizer(self, path: str) -> Quantizer | None:
        """The quantizer of a linear's input, or ``None``."""

    def add_online(self, path: str, operation: OnlineOperation) -> None:
        """Own an operation at a linear's input, run before its quantizer; the weight already has its inverse in it."""

    def outputs(self, overrides: Mapping[str, Tensor], batches: int | None = None) -> list[Tensor]:
        """Run the unit on (a prefix of) the calibration batches, float stream, with some weights replaced."""

    def part(self, paths: Sequence[str], batches: int | None = None) -> Part:
        """As :meth:`outputs`, of the smallest module that holds all ``paths`` and is called; cheap to repeat.

        Its inputs are taken once, so other weights of the unit must stay as they are between the runs.
        """


@dataclass(frozen=True)
class OnlineOperation:
    """An operation that runs on a site's input at inference time.

    ``kind`` names an entry of the runtime's table (``hadamard``), ``options`` its frozen parameters.
    """

    kind: str
    options: tuple[tuple[str, int | float | str], ...] = ()

    def option(self, name: str) -> int | float | str:
        """Value of an option."""
        return dict(self.options)[name]


@dataclass(frozen=True)
class TransformReport:
    """What a transform did in one unit, for the report: places and a few numbers per place."""

    name: str
    places: tuple[tuple[str, Mapping[str, float]], ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The JSON form of the report."""
        return {"transform": self.name, "places": [{"where": where, **values} for where, values in self.places]}


@runtime_checkable
class Transform(Protocol):
    """A function-preserving rewrite.

    ``scope`` says when it runs: ``model`` transforms are data-free and are applied to every unit as it is loaded;
    ``block`` transforms run once the float statistics of their unit are there.
    """

    @property
    def scope(self) -> Scope:
        """When it runs."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Float-stream statistics of every linear's input that it reads."""

    @property
    def unties(self) -> bool:
        """Whether tied weights must become two tensors first (it changes one of them only)."""

    @property
    def leaves_online(self) -> bool:
        """Whether it leaves operations that run with the model, which other engines do not have."""

    def apply(
        self,
        block: Block,
        statistics: Mapping[str, Mapping[Statistic, Any]],
        seed: int,
        events: Events,
    ) -> TransformReport:
        """Rewrite the unit's weights in place; ``statistics[path][request]`` are results of linears' inputs."""


@dataclass(frozen=True)
class Folded:
    """What most transforms share: they are folded into weights entirely and touch no tied weight."""

    @property
    def unties(self) -> bool:
        """Most touch no tied weight."""
        return False

    @property
    def leaves_online(self) -> bool:
        """Most are folded into weights entirely."""
        return False


@dataclass(frozen=True)
class DataFree(Folded):
    """What data-free transforms share: they are applied to every unit as it is loaded."""

    @property
    def scope(self) -> Scope:
        """Applied to every unit as it is loaded."""
        return "model"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class WithinUnit(Folded):
    """What transforms of pairs share: they read their own unit's statistics and both ends lie inside it."""

    @property
    def scope(self) -> Scope:
        """Runs once the unit's float statistics are there."""
        return "block"


def transforms_by_scope(transforms: Sequence[Transform], scope: Scope) -> tuple[Transform, ...]:
    """The transforms of one scope, in the recipe's order."""
    return tuple(t for t in transforms if t.scope == scope)
