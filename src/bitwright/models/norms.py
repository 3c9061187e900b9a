"""Find normalisations by experiment: feed a module alone with random inputs and see what it computes.

An rms or layer norm does not change when its input is scaled and its output is, channel by channel, an affine function
of the normalised input; a batch norm (in evaluation) is a fixed affine function of each channel. Which parameter is
the gain, and whether the gain is stored minus one, follows from random parameter values.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from bitwright.models.model import Model
from bitwright.models.record import ModuleCall, Run
from bitwright.models.sites import block_of
from bitwright.models.structure import NormSite

TOLERANCE = 1e-3
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError, NotImplementedError)


def find_norms(model: Model, run: Run, blocks: tuple[str, ...]) -> tuple[NormSite, ...]:
    """Every normalisation that the run called, in call order."""
    found: dict[str, NormSite] = {}
    for call in run.calls:
        if call.path in found or not _could_be_norm(model.module, call):
            continue
        with model.unit(call.path) as module:
            site = probe_norm(module, call)
        if site is not None:
            found[call.path] = NormSite(
                call.path, site.kind, site.dim, block_of(call.path, blocks), site.weight, site.bias, site.offset
            )
    return tuple(found.values())


def probe_norm(module: nn.Module, call: ModuleCall) -> NormSite | None:
    """What kind of normalisation ``module`` computes on inputs of the shape of ``call``, or None."""
    assert call.hidden is not None
    shape = call.hidden.shape
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(module).float()  # a short float would blur what is told apart here
    parameters = dict(probe.named_parameters())
    x = 0.5 + 1.5 * torch.randn(shape, generator=generator)
    like = next(probe.parameters(), None)
    x = x if like is None else x.to(like)
    try:
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            y, scaled = probe(x), probe(4.0 * x)
    except _FAILURES:
        return None
    if not isinstance(y, torch.Tensor) or y.shape != x.shape or not bool(torch.isfinite(y).all()):
        return None
    if _near(y, scaled):
        return _row_norm(x.float(), y.float(), parameters)
    buffers = [b for b in probe.buffers() if b.dim() == 1 and b.is_floating_point()]
    if len(shape) >= 2 and len(buffers) >= 2 and all(b.numel() == shape[1] for b in buffers):
        return _batch_norm(x, y, parameters)
    return None


def channel_affine(module: nn.Module, rank: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) per channel of a batch norm in evaluation mode, computed in float64 from two probes."""
    probe = copy.deepcopy(module).double()
    like = next(iter([*probe.parameters(), *probe.buffers()]), torch.empty(0, dtype=torch.float64))
    zeros = torch.zeros((1, channels, *[1] * (rank - 2)), dtype=torch.float64, device=like.device)
    with torch.no_grad():
        shift = probe(zeros).reshape(-1)
        scale = probe(torch.ones_like(zeros)).reshape(-1) - shift
    return scale, shift


def _could_be_norm(module: nn.Module, call: ModuleCall) -> bool:
    if call.hidden is None or call.result is None or len(call.inputs) != 1 or not call.path:
        return False
    unit = module.get_submodule(call.path)
    if next(unit.children(), None) is not None or call.hidden.shape != call.result.shape or len(call.hidden.shape) < 2:
        return False
    return call.hidden.key != call.result.key and all(p.dim() == 1 for p in unit.parameters())


def _row_norm(x: torch.Tensor, y: torch.Tensor, parameters: dict[str, nn.Parameter]) -> NormSite | None:
    dim = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    for kind, raw in (("rms", x), ("layer", centred)):
        normal = raw / raw.pow(2).mean(-1, keepdim=True).sqrt()
        gain, shift, error = _fit(normal.reshape(-1, dim), y.reshape(-1, dim))
        if error > TOLERANCE:
            continue
        names = _name_gain(gain, shift, parameters)
        if names is not None:
            return NormSite("", kind, dim, None, *names)
    return None


def _batch_norm(x: torch.Tensor, y: torch.Tensor, parameters: dict[str, nn.Parameter]) -> NormSite | None:
    channels = x.shape[1]
    gain, _, error = _fit(
        x.transpose(1, -1).reshape(-1, channels).float(), y.transpose(1, -1).reshape(-1, channels).float()
    )
    if error > TOLERANCE:
        return None
    weight = bias = None
    # Doubling the gain's parameter doubles the slope; the other parameter, if any, is the shift.
    values = {name: p.detach().float() for name, p in parameters.items()}
    if len(values) == 2:
        ratios = {name: gain / value for name, value in values.items()}
        weight = min(ratios, key=lambda name: float(ratios[name].std() / ratios[name].abs().mean()))
        if "weight" in values:
            weight = "weight"
        bias = next(name for name in values if name != weight)
    elif values:
        return None
    return NormSite("", "batch", channels, None, weight, bias)


def _fit(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Least squares y = gain * x + shift per column; also the largest relative deviation."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    gain = ((x - mean_x) * (y - mean_y)).sum(0) / (x - mean_x).pow(2).sum(0).clamp_min(1e-12)
    shift = mean_y - gain * mean_x
    error = float((y - gain * x - shift).abs().max()) / (float(y.abs().max()) or 1.0)
    return gain, shift, error


def _name_gain(
    gain: torch.Tensor, shift: torch.Tensor, parameters: dict[str, nn.Parameter]
) -> tuple[str | None, str | None, float] | None:
    """(weight name, bias name, offset) that explain the fit, or None."""
    values = {name: p.detach().float() for name, p in parameters.items()}
    bias = next((name for name, value in values.items() if _near(shift, value)), None)
    rest = [name for name in values if name != bias]
    if bias is None and float(shift.abs().max()) > TOLERANCE:
        return None
    if not rest:
        return (None, bias, 0.0) if _near(gain, torch.ones_like(gain)) else None
    if len(rest) > 1:
        return None
    for offset in (0.0, 1.0):
        if values[rest[0]].shape == gain.shape and _near(gain, values[rest[0]] + offset):
            return rest[0], bias, offset
    return None


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    size = float(b.abs().max()) or 1.0
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * size
