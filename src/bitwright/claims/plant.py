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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitwright.data.seeds import stream
from bitwright.errors import CheckError, InputError
from bitwright.models.edits import scale_gain, scale_inputs, scale_outputs
from bitwright.models.pairs import spread_heads
from bitwright.models.structure import NormSite, Pair, Structure, WeightSite

logger = logging.getLogger(__name__)

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Planted:
    """What was changed: ``(module path, channels or rows)`` and the largest change of the output where it was run."""

    channels: tuple[tuple[str, tuple[int, ...]], ...]
    units: tuple[tuple[str, tuple[int, ...]], ...]
    factor: float
    difference: float | None


def plant_outliers(
    module: nn.Module,
    structure: Structure | Sequence[Pair],
    channels: int = 4,
    factor: float = 32.0,
    seed: int = 0,
    units: int = 0,
    run: Run | None = None,
    tolerance: float = 1e-3,
) -> Planted:
    """Plant outliers into ``module`` in place.

    Args:
        structure: what discovery found, or pairs written by hand (then norms and linears keep their weight under the
            usual name); norm pairs get channel outliers, linear pairs token outliers.
        channels: channels per norm; drawn by seed and width, so that norms of one width share them as in real models.
        units: hidden units per linear pair, those whose largest value on the data of ``run`` stands out most from
            their mean (needs ``run``).
        run: runs the module on example data and returns its output; then the output is compared before and after.
        tolerance: most change of the output, as a share of its root mean square, that is accepted.

    Raises:
        InputError: if no pair can take an outlier, or ``units`` is given without ``run``.
        CheckError: if the output moved.
    """
    if factor <= 0 or not math.isfinite(factor):
        raise InputError(f"an outlier factor of {factor} is not a positive number; use a power of two such as 32")
    if units and run is None:
        raise InputError("token outliers need example data to find selective units; give run")
    found = structure if isinstance(structure, Structure) else _by_hand(module, structure)
    before = _output(run)
    norms, linears = [], []
    for pair in found.pairs:
        if _shared_elsewhere(module, pair):
            logger.info("no outlier behind %s: a weight of the pair is tied to another module", pair.source)
        elif pair.kind == "norm_linear" and channels:
            norms.append(_plant_channels(module, found, pair, channels, factor, seed))
        elif pair.kind == "linear_linear" and units and run is not None:
            linears.append(_plant_units(module, found, pair, units, factor, run))
    if not norms and not linears:
        raise InputError("no norm or linear of this model can take an outlier; give pairs that are proved")
    after = _output(run)
    difference = None if before is None or after is None else float((after - before).norm() / before.norm())
    if difference is not None and not difference <= tolerance:
        raise CheckError(f"planting outliers moved the output by {difference:.2g} of its size; a pair is not proved")
    return Planted(tuple(norms), tuple(linears), factor, difference)


def _plant_channels(
    module: nn.Module, structure: Structure, pair: Pair, channels: int, factor: float, seed: int
) -> tuple[str, tuple[int, ...]]:
    norm = next(n for n in structure.norms if n.path == pair.source)
    order = torch.randperm(norm.dim, generator=stream(seed, "plant", str(norm.dim)))
    chosen = order[: min(channels, norm.dim)].sort().values
    scale = torch.ones(norm.dim)
    scale[chosen] = factor
    if norm.weight is None:
        raise InputError(f"the norm {norm.path} has no gain to scale; leave its pair out")
    gain = _parameter(module, f"{norm.path}.{norm.weight}")
    with torch.no_grad():
        gain.copy_(scale_gain(gain, norm, scale.to(gain.device)))
        if norm.bias is not None:
            _parameter(module, f"{norm.path}.{norm.bias}").mul_(scale.to(gain.device))
        _divide_inputs(module, structure, pair, scale)
    return pair.source, tuple(chosen.tolist())


def _plant_units(
    module: nn.Module, structure: Structure, pair: Pair, units: int, factor: float, run: Run
) -> tuple[str, tuple[int, ...]]:
    site = _site(structure, pair.source)
    rows = torch.tensor(pair.rows) if pair.rows is not None else torch.arange(site.shape[0])
    loudness = _selectivity(module, pair, len(rows), run)
    chosen = loudness.argsort(descending=True, stable=True)[: min(units, len(rows))].sort().values
    scale = torch.ones(len(rows))
    scale[chosen] = factor
    outputs = torch.ones(site.shape[0])
    outputs[rows] = scale
    weight = _parameter(module, site.name)
    with torch.no_grad():
        weight.copy_(scale_outputs(weight, site, outputs.to(weight.device)))
        if site.bias is not None:
            _parameter(module, site.bias).mul_(outputs.to(weight.device))
        _divide_inputs(module, structure, pair, scale)
    return pair.source, tuple(rows[chosen].tolist())


def _divide_inputs(module: nn.Module, structure: Structure, pair: Pair, scale: Tensor) -> None:
    inverse = spread_heads(1 / scale, pair.repeat, pair.head_dim)
    for sink in pair.sinks:
        site = _site(structure, sink)
        weight = _parameter(module, site.name)
        weight.copy_(scale_inputs(weight, site, inverse.to(weight.device)))


def _selectivity(module: nn.Module, pair: Pair, rows: int, run: Run) -> Tensor:
    """Return ``[rows]``: largest absolute value over the mean one where the first sink reads each source row."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach().float().reshape(-1, arguments[0].shape[-1]).abs().cpu())

    handle = module.get_submodule(pair.sinks[0]).register_forward_pre_hook(keep)
    try:
        _output(run)
    finally:
        handle.remove()
    if not seen:
        raise InputError(f"{pair.sinks[0]} did not run on the example data; give data that reaches it")
    values = torch.cat(seen)
    per_column = values.amax(0) / values.mean(0).clamp(min=torch.finfo(torch.float32).tiny)
    row_of_column = spread_heads(torch.arange(rows), pair.repeat, pair.head_dim)
    return torch.zeros(rows).scatter_reduce(0, row_of_column, per_column, "amax")


def _by_hand(module: nn.Module, pairs: Sequence[Pair]) -> Structure:
    """Describe norms and linears of hand-written pairs as plain ones: weight [out, in], gain as stored."""
    norms, sites = [], []
    for pair in pairs:
        linears = list(pair.sinks)
        if pair.kind == "norm_linear":
            bias = "bias" if isinstance(getattr(module.get_submodule(pair.source), "bias", None), Tensor) else None
            width = len(_parameter(module, f"{pair.source}.weight"))
            norms.append(NormSite(pair.source, "layer" if bias else "rms", width, None, bias=bias))
        else:
            linears.append(pair.source)
        for path in linears:
            rows, columns = _parameter(module, f"{path}.weight").shape
            held = isinstance(getattr(module.get_submodule(path), "bias", None), Tensor)
            name = f"{path}.bias" if held else None
            sites.append(WeightSite(path, "weight", "linear", "block", None, (rows, columns), -1, bias=name))
    return Structure((), tuple(sites), tuple(norms), tuple(pairs))


def _site(structure: Structure, path: str) -> WeightSite:
    return next(site for site in structure.sites if site.path == path)


def _parameter(module: nn.Module, name: str) -> Tensor:
    try:
        return module.get_parameter(name)
    except AttributeError as error:
        raise InputError(f"the model has no parameter {name!r} to scale; give pairs of norms and linears") from error


def _shared_elsewhere(module: nn.Module, pair: Pair) -> bool:
    """True if a weight of the pair is also the parameter of a module outside it (a tied head)."""
    inside = {f"{path}.weight" for path in (pair.source, *pair.sinks)}
    everything = list(module.named_parameters(remove_duplicate=False))
    ours = {id(parameter) for name, parameter in everything if name in inside}
    return any(id(parameter) in ours and name not in inside for name, parameter in everything)


def _output(run: Run | None) -> Tensor | None:
    if run is None:
        return None
    with torch.no_grad():
        return run().detach().double()
