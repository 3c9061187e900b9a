"""Weights that the example run did not reach: experts without tokens, a vision tower behind a text-only example.

What such a module computes is found by asking it alone, or known from a module of the same class that was seen in this
very model.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bitwright.models.expert_stack import ExpertLinear
from bitwright.models.model import Model
from bitwright.models.sites import block_of
from bitwright.models.structure import WeightSite

PROBE_TOLERANCE = 1e-4
# Sides of the input on which a kernel is tried, in kernel sizes.
PROBE_KERNELS = 2
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AttributeError)


def unseen_sites(
    model: Model, known: list[WeightSite], blocks: tuple[str, ...], skip: Collection[str] = ()
) -> list[WeightSite]:
    """Weights of modules that the run did not reach and that hold one matrix, table or kernel.

    ``skip`` names parameters that the run did reach, but used otherwise.
    """
    names = {site.name for site in known} | {site.tied_to for site in known}
    seen = {(type(model.module.get_submodule(site.path)), site.parameter): site for site in known if site.whole}
    result = []
    for path, module in model.module.named_modules():
        direct = dict(module.named_parameters(recurse=False))
        arrays = [name for name, p in direct.items() if p.dim() >= 2]
        if len(arrays) != 1 or next(module.children(), None) is not None:
            continue
        parameter = arrays[0]
        name = f"{path}.{parameter}" if path else parameter
        expert = isinstance(module, ExpertLinear)  # a run may gather its tensor with those of its siblings
        if name in names or (name in skip and not expert):
            continue
        found = _like(seen.get((type(module), parameter)), module, direct[parameter])
        if isinstance(module, ExpertLinear):
            out, columns = direct[parameter].shape[:: -1 if module.transposed else 1]
            found = _unplaced("linear", (out, columns), module.transposed)
        if found is None:
            with model.unit(path) as unit:
                found = probe(unit, parameter)
        if found is not None:
            result.append(_placed(found, path, parameter, direct, blocks))
    return result


def _placed(
    found: WeightSite, path: str, parameter: str, direct: dict[str, nn.Parameter], blocks: tuple[str, ...]
) -> WeightSite:
    block = block_of(path, blocks)
    role = "embedding" if found.kind == "embedding" else "outside" if block is None else "block"
    bias = next((f"{path}.{other}" if path else other for other, p in direct.items() if p.dim() == 1), None)
    bias = bias if found.kind != "embedding" else None
    return replace(found, path=path, parameter=parameter, role=role, block=block, bias=bias)


def _unplaced(
    kind: str, shape: tuple[int, int], transposed: bool = False, groups: int = 1, axes: int = 0
) -> WeightSite:
    return WeightSite("", "", kind, "outside", None, shape, -1, None, transposed, groups=groups, seen=False, axes=axes)


def _like(sibling: WeightSite | None, module: nn.Module, weight: torch.Tensor) -> WeightSite | None:
    """What a module is when one of its own class was seen in this model."""
    if sibling is None:
        return None
    if sibling.kind == "conv":
        return _unplaced("conv", _matrix(weight), groups=int(getattr(module, "groups", 1)), axes=weight.dim() - 2)
    shape = (weight.shape[1], weight.shape[0]) if sibling.transposed else (weight.shape[0], weight.shape[1])
    return _unplaced(sibling.kind, shape, sibling.transposed)


def probe(module: nn.Module, parameter: str) -> WeightSite | None:
    """What the module alone does with its weight: a linear layer, a table that is looked up, a convolution, or None."""
    weight = module.get_parameter(parameter).detach()
    if weight.dim() == 2:
        return _linear(module, weight) or _table(module, weight)
    return _kernel(module, weight)


def _linear(module: nn.Module, weight: torch.Tensor) -> WeightSite | None:
    """Whether it computes x·Wᵀ + b (either orientation of W) on random inputs."""
    generator = torch.Generator().manual_seed(0)
    for matrix in (weight, weight.T):
        x = torch.randn(3, matrix.shape[1], generator=generator).to(weight)
        y, origin = _called(module, x), _called(module, torch.zeros_like(x))
        if y is None or origin is None or y.shape != (3, matrix.shape[0]):
            continue
        if _near(y - origin, x @ matrix.T):
            shape = (matrix.shape[0], matrix.shape[1])
            return _unplaced("linear", shape, shape != tuple(weight.shape))
    return None


def _table(module: nn.Module, weight: torch.Tensor) -> WeightSite | None:
    """Whether it looks rows up."""
    ids = torch.tensor([weight.shape[0] - 1, 0], device=weight.device)
    y = _called(module, ids)
    if y is None or y.shape != (2, weight.shape[1]) or not bool((y == weight[ids]).all()):
        return None
    return _unplaced("embedding", (weight.shape[0], weight.shape[1]))


def _kernel(module: nn.Module, weight: torch.Tensor) -> WeightSite | None:
    """Whether it is linear in an image (or a row, or a volume) and gives a channel per row of its weight."""
    groups, kernel = getattr(module, "groups", None), getattr(module, "kernel_size", None)
    turned = getattr(module, "transposed", False)  # its weight lies the other way round, a row per input channel
    if not isinstance(groups, int) or kernel is None or turned or not 3 <= weight.dim() <= 5:
        return None
    sides = [max(4, PROBE_KERNELS * size) for size in weight.shape[2:]]
    x = torch.randn(1, weight.shape[1] * groups, *sides, generator=torch.Generator().manual_seed(0)).to(weight)
    y, twice, origin = _called(module, x), _called(module, 2 * x), _called(module, torch.zeros_like(x))
    if y is None or twice is None or origin is None or y.dim() != weight.dim() or y.shape[1] != weight.shape[0]:
        return None
    if not _near(twice - origin, 2 * (y - origin)):
        return None
    return _unplaced("conv", _matrix(weight), groups=groups, axes=weight.dim() - 2)


def _called(module: nn.Module, x: torch.Tensor) -> Any:
    try:
        with torch.no_grad():
            y = module(x)
    except _FAILURES:
        return None
    return y if isinstance(y, torch.Tensor) else None


def _near(value: torch.Tensor, expected: torch.Tensor) -> bool:
    size = float(expected.abs().max()) or 1.0
    return float((value - expected).abs().max()) <= PROBE_TOLERANCE * size


def _matrix(weight: torch.Tensor) -> tuple[int, int]:
    return weight.shape[0], math.prod(weight.shape[1:])
