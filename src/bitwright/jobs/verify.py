"""Verification after the work: reload from disk, compare with the original and with the memory result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.jobs.runner import Batch
from bitwright.jobs.stored import all_finite, source_keys
from bitwright.models import Checkpoint
from bitwright.models.calling import call_module
from bitwright.models.stream import logits_of
from bitwright.runtime.load import load

if TYPE_CHECKING:
    from bitwright.jobs.run import JobResult


@dataclass(frozen=True)
class Verification:
    """What was compared.

    ``reload_difference`` is the largest absolute difference of outputs between the model in memory and the one that
    was read back, over the largest absolute output; ``bad_tensors`` hold NaN or Inf or scales of zero;
    ``lost_tensors`` are source tensors that the output does not account for.
    """

    ok: bool
    reload_difference: float | None
    bad_tensors: tuple[str, ...]
    lost_tensors: tuple[str, ...]
    text: str

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def verify(folder: Path, result: JobResult, skeleton: nn.Module | None = None, tolerance: float = 1e-4) -> Verification:
    """Check a finished folder against the job that wrote it.

    Every tensor is scanned; the model is read back (``skeleton`` is its float network where no config rebuilds it) and
    run on the probe that the job carried through its units in memory.
    """
    checkpoint = Checkpoint.open(folder)
    bad = tuple(name for name in checkpoint.tensors if not _sound(name, checkpoint.load(name)))
    lost = lost_tensors(result, checkpoint)
    difference = None
    if "probe" in result.extra:
        batch, expected = result.extra["probe"]
        difference = output_difference(load(folder, skeleton), batch, expected)
    ok = not bad and not lost and (difference is None or difference <= tolerance)
    return Verification(ok, difference, bad, lost, _text(ok, difference, bad, lost, tolerance))


def output_difference(loaded: nn.Module, batch: Batch, expected: Tensor) -> float:
    """Largest difference of outputs over the largest output; infinite where an output is not finite."""
    with torch.no_grad():
        y = logits_of(call_module(loaded, batch)).float()
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    return float((y - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def lost_tensors(result: JobResult, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Source tensors of which the output has neither a copy nor a coded form."""
    source = result.opened.model.checkpoint
    if source is None:
        return ()
    names = result.opened.model.names
    written = {f"{p}.weight" for p in result.coded} | set(checkpoint.tensors)
    shared: dict[str, list[str]] = {}
    for fused in result.opened.model.experts:
        for expert in fused.names():
            for key in source_keys(result.opened.model, expert):
                shared.setdefault(key, []).append(expert)
    removed = tuple(f"{p}." for p in result.manifest["removed"])
    missing = []
    for key in source.tensors:
        name = (names.parameter(key) if names is not None else key) or key
        made = all(expert in written for expert in shared.get(key, [name]))
        if key not in checkpoint.tensors and not made and not name.startswith(removed or ("\0",)):
            missing.append(key)
    return tuple(missing)


def _sound(name: str, value: Tensor) -> bool:
    if not all_finite(value):
        return False
    return not (name.endswith("_scale") and value.is_floating_point()) or bool((value != 0).all())


def _text(ok: bool, difference: float | None, bad: tuple[str, ...], lost: tuple[str, ...], tolerance: float) -> str:
    if ok:
        compared = "" if difference is None else f"; outputs after reloading differ by {difference:.1e} of the largest"
        return f"every tensor is finite and accounted for{compared}"
    parts = []
    if bad:
        parts.append(f"{len(bad)} tensors hold NaN, Inf or zero scales, e.g. {bad[0]}")
    if lost:
        parts.append(f"{len(lost)} source tensors are missing, e.g. {lost[0]}")
    if difference is not None and difference > tolerance:
        parts.append(f"outputs after reloading differ by {difference:.1e} of the largest (allowed {tolerance:g})")
    return "; ".join(parts)
