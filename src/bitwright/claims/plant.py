"""Function-preserving outliers: small models have few, large ones many; this plants them where a test needs some.

A channel outlier: a norm's channel is multiplied by a factor and the columns of the linears that read the norm are
divided by it. A token outlier: a hidden unit that is loud on few tokens is multiplied by a factor where it is made (a
row of the first linear) and divided where it is read (a column of the second); on those few tokens the second linear
then sees massive values. Both leave the function alone in exact arithmetic; for a factor that is a power of two also
in floating point, but for overflow and underflow.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bitwright.data.seeds import stream
from bitwright.errors import CheckError, InputError

logger = logging.getLogger(__name__)


class PairLike(Protocol):
    """A proved equivalence: channels of ``source`` may be scaled if columns of all ``sinks`` are divided."""

    @property
    def kind(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def sinks(self) -> tuple[str, ...]: ...
    @property
    def repeat(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class StructureLike(Protocol):
    """Anything with the pairs that discovery found."""

    @property
    def pairs(self) -> Sequence[PairLike]: ...


@dataclass(frozen=True)
class NormReaders:
    """A pair written by hand: a norm and every linear that reads it."""

    source: str
    sinks: tuple[str, ...]
    kind: str = "norm_linear"
    repeat: int = 1
    head_dim: int = 0


@dataclass(frozen=True)
class LinearReaders:
    """A pair written by hand: a linear whose output enters its readers only by products with other tensors.

    ``repeat`` and ``head_dim`` as in grouped-query attention: every head of ``head_dim`` source rows serves
    ``repeat`` heads of the reader's columns.
    """

    source: str
    sinks: tuple[str, ...]
    kind: str = "linear_linear"
    repeat: int = 1
    head_dim: int = 0


@dataclass(frozen=True)
class Planted:
    """What was changed: ``(module path, channels or rows)`` and the largest change of the output where it was run."""

    channels: tuple[tuple[str, tuple[int, ...]], ...]
    units: tuple[tuple[str, tuple[int, ...]], ...]
    factor: float
    difference: float | None


def plant_outliers(
    module: nn.Module,
    structure: StructureLike | Iterable[PairLike],
    channels: int = 4,
    factor: float = 32.0,
    seed: int = 0,
    units: int = 0,
    run: Callable[[], Tensor] | None = None,
    tolerance: float = 1e-3,
) -> Planted:
    """Plant outliers into ``module`` in place.

    Args:
        structure: discovered structure, or pairs; norm pairs get channel outliers, linear pairs token outliers.
        channels: channels per norm; drawn by seed and width, so that norms of one width share them as in real models.
        units: hidden units per linear pair, those whose largest value on the data of ``run`` stands out most from
            their mean (needs ``run``).
        run: runs the module on example data and returns its output; then the output is compared before and after.
        tolerance: most relative change of the output (root of the mean square) that is accepted.

    Raises:
        InputError: if no pair can take an outlier, or ``units`` is given without ``run``.
        CheckError: if the output moved.
    """
    if factor <= 0 or not math.isfinite(factor):
        raise InputError(f"an outlier factor of {factor} is not a positive number; use a power of two such as 32")
    if units and run is None:
        raise InputError("token outliers need example data to find selective units; give run")
    pairs = tuple(structure) if isinstance(structure, Iterable) else tuple(structure.pairs)
    before = _output(module, run)
    norms, linears = [], []
    for pair in pairs:
        if _tied_elsewhere(module, pair):
            logger.info("no outlier behind %s: a reader's weight is tied to another module", pair.source)
        elif pair.kind == "norm_linear" and channels:
            norms.append(_plant_channels(module, pair, channels, factor, seed))
        elif pair.kind == "linear_linear" and units and run is not None:
            linears.append(_plant_units(module, pair, units, factor, run))
    if not norms and not linears:
        raise InputError("no norm or linear of this model can take an outlier; give pairs that are proved")
    after = _output(module, run)
    difference = None if before is None or after is None else float((after - before).norm() / before.norm())
    if difference is not None and not difference <= tolerance:
        raise CheckError(f"planting outliers moved the output by {difference:.2g} of its size; a pair is not proved")
    return Planted(tuple(norms), tuple(linears), factor, difference)


def _plant_channels(
    module: nn.Module, pair: PairLike, channels: int, factor: float, seed: int
) -> tuple[str, tuple[int, ...]]:
    norm = module.get_submodule(pair.source)
    width = _weight(norm).shape[0]
    order = torch.randperm(width, generator=stream(seed, "plant", str(width)))
    chosen = order[: min(channels, width)].sort().values
    with torch.no_grad():
        _scale_rows(norm, chosen, factor)
        for sink in pair.sinks:
            _weight(module.get_submodule(sink))[:, chosen] /= factor
    return pair.source, tuple(chosen.tolist())


def _plant_units(
    module: nn.Module, pair: PairLike, units: int, factor: float, run: Callable[[], Tensor]
) -> tuple[str, tuple[int, ...]]:
    source = module.get_submodule(pair.source)
    rows = _weight(source).shape[0]
    loudness = _selectivity(module, pair.sinks[0], run)
    per_row = loudness[_columns(torch.arange(rows), pair)].amax(1)
    chosen = per_row.argsort(descending=True, stable=True)[: min(units, rows)].sort().values
    with torch.no_grad():
        _scale_rows(source, chosen, factor)
        for sink in pair.sinks:
            _weight(module.get_submodule(sink))[:, _columns(chosen, pair).reshape(-1)] /= factor
    return pair.source, tuple(chosen.tolist())


def _columns(rows: Tensor, pair: PairLike) -> Tensor:
    """Return the reader's columns ``[rows, repeat]`` that each source row feeds."""
    repeat = max(1, pair.repeat)
    if repeat == 1:
        return rows[:, None]
    head, inside = rows // pair.head_dim, rows % pair.head_dim
    return (head[:, None] * repeat + torch.arange(repeat)) * pair.head_dim + inside[:, None]


def _selectivity(module: nn.Module, reader: str, run: Callable[[], Tensor]) -> Tensor:
    """Return, per input column of ``reader``, the largest absolute value over the mean one."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach().float().reshape(-1, arguments[0].shape[-1]).abs())

    handle = module.get_submodule(reader).register_forward_pre_hook(keep)
    try:
        _output(module, run)
    finally:
        handle.remove()
    if not seen:
        raise InputError(f"{reader} did not run on the example data; give data that reaches it")
    values = torch.cat(seen)
    return values.amax(0) / values.mean(0).clamp(min=torch.finfo(torch.float32).tiny)


def _scale_rows(layer: nn.Module, rows: Tensor, factor: float) -> None:
    _weight(layer)[rows] *= factor
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias[rows] *= factor


def _weight(layer: nn.Module) -> Tensor:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise InputError(f"{type(layer).__name__} has no weight to scale; give pairs of norms and linears")
    return weight


def _tied_elsewhere(module: nn.Module, pair: PairLike) -> bool:
    names = {f"{path}.weight" for path in (pair.source, *pair.sinks)}
    inside = {id(_weight(module.get_submodule(path))) for path in (pair.source, *pair.sinks)}
    return any(
        id(parameter) in inside and name not in names
        for name, parameter in module.named_parameters(remove_duplicate=False)
    )


def _output(module: nn.Module, run: Callable[[], Tensor] | None) -> Tensor | None:
    if run is None:
        return None
    with torch.no_grad():
        return run().detach().double()
