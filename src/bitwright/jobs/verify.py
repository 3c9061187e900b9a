"""Verification after the work: reload from disk, compare with the result in memory and with the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.jobs.fresh import answer_in_fresh_process, folder_answer, unsound_tensors
from bitwright.jobs.stored import source_keys, stored_dtype
from bitwright.models import Checkpoint

if TYPE_CHECKING:
    from bitwright.jobs.run import JobResult

MOVED = 1e-3
"""How far transforms may move a float model's outputs, over the largest: rounding of fp32 through many layers."""
ROUNDINGS = 8
"""As far in steps of the coarsest dtype that is stored (bf16: 1/128): every weight that a transform changes is rounded
to it, and a routed token may take another expert."""


@dataclass(frozen=True)
class Verification:
    """What was compared, on the probe: at most 64 tokens of the calibration data, or one image.

    Attributes:
        reload_difference: largest absolute difference of outputs between the model in memory and the one that was read
            back, over the largest absolute output.
        kl: divergence (nats per token or image) of the model read back from the original, where both give logits.
        top1_agreement: share of equal most likely answers of the two.
        transform_difference: how far the transforms moved the float model's outputs, over the largest one; they are
            meant to leave it as it is.
        bad_tensors: those that hold NaN or Inf, or scales of zero.
        lost_tensors: source tensors that the output does not account for.
        process: where the model was read back.
    """

    ok: bool
    reload_difference: float | None
    bad_tensors: tuple[str, ...]
    lost_tensors: tuple[str, ...]
    text: str
    kl: float | None = None
    top1_agreement: float | None = None
    transform_difference: float | None = None
    process: str = "this process"

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A batch with what the float model answers, before and behind its transforms, and the quantized one in memory."""

    batch: dict[str, Tensor]
    original: Tensor
    quantized: Tensor
    transformed: Tensor | None = None


def verify(folder: Path, result: JobResult, skeleton: nn.Module | None = None, tolerance: float = 1e-4) -> Verification:
    """Check a finished folder against the job that wrote it.

    Every tensor is scanned; the model is read back and run on the probe that the job carried through its units. A
    transformers folder is read back in a fresh process where the job asks for it, weight by weight where the job has a
    memory cap; ``skeleton`` is the float network where no config rebuilds it.
    """
    checkpoint = Checkpoint.open(folder)
    lost = lost_tensors(result, checkpoint)
    probe, job = result.probe, result.job
    fresh = job.fresh_process and skeleton is None and probe is not None
    answer: Tensor | None = None
    if fresh:
        assert probe is not None
        answer, bad = answer_in_fresh_process(folder, probe.batch, held=job.max_memory is None)
    else:
        bad = unsound_tensors(checkpoint)
        if probe is not None:
            answer = folder_answer(folder, probe.batch, skeleton, held=job.max_memory is None)
    difference = kl = agreement = moved = None
    if probe is not None and answer is not None:
        difference = relative_difference(answer, probe.quantized)
        kl, agreement = _against_original(probe.original, answer)
        if probe.transformed is not None:
            moved = relative_difference(probe.transformed, probe.original)
    faults = _faults(bad, lost, difference, tolerance, moved, movement_allowed(result))
    compared = "" if difference is None else f"; outputs after reloading differ by {difference:.1e} of the largest"
    text = "; ".join(faults) or f"every tensor is finite and accounted for{compared}"
    where = "a fresh process" if fresh else "this process"
    text += _compared(kl, agreement)
    return Verification(not faults, difference, bad, lost, text, kl, agreement, moved, where)


def movement_allowed(result: JobResult) -> float:
    """How far exact transforms may move the outputs: what they change is rounded to the dtypes that are stored."""
    checkpoint = result.opened.model.checkpoint
    stored = (
        {p.dtype for p in result.opened.model.module.parameters()}
        if checkpoint is None
        else {stored_dtype(checkpoint, key) for key in checkpoint.tensors}
    )
    return max(MOVED, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in stored if dtype.is_floating_point))


def relative_difference(y: Tensor, expected: Tensor) -> float:
    """Largest difference of outputs over the largest output; infinite where an output is not finite."""
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    return float((y - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _against_original(original: Tensor, answer: Tensor) -> tuple[float | None, float | None]:
    """KL divergence and agreement of the most likely class; ``None`` where the outputs are no logits that compare."""
    if original.shape != answer.shape or original.shape[-1] < 2:
        return None, None
    p, q = original.float().log_softmax(-1), answer.log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    return kl, float((p.argmax(-1) == q.argmax(-1)).float().mean())


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


def _compared(kl: float | None, agreement: float | None) -> str:
    if kl is None or agreement is None:
        return ""
    return f"; against the original, on a short probe: KL {kl:.3g}, the same most likely answer {agreement:.0%}"


def _faults(
    bad: tuple[str, ...],
    lost: tuple[str, ...],
    difference: float | None,
    tolerance: float,
    moved: float | None,
    allowed: float,
) -> list[str]:
    """What is wrong, in sentences."""
    found = []
    if bad:
        found.append(f"{len(bad)} tensors hold NaN, Inf or zero scales, e.g. {bad[0]}")
    if lost:
        found.append(f"{len(lost)} source tensors are missing, e.g. {lost[0]}")
    if difference is not None and difference > tolerance:
        found.append(f"outputs after reloading differ by {difference:.1e} of the largest (allowed {tolerance:g})")
    if moved is not None and moved > allowed:
        found.append(f"transforms moved the float outputs by {moved:.1e} of the largest (allowed {allowed:g})")
    return found
