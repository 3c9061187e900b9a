"""How large a job's result will be, and what the disk has to hold while it is made. No weight is read."""

from __future__ import annotations

from bitwright.errors import InputError
from bitwright.jobs.memory import spilled_bytes
from bitwright.jobs.opening import Job, Opened
from bitwright.jobs.output import working_folder
from bitwright.jobs.stored import source_bytes, source_keys
from bitwright.machine import disk_free
from bitwright.runtime.activation import is_static, static_size
from bitwright.stages.quantizer import Quantizer

# Beside the tensors: a header entry per tensor; a coded module's lines in manifest, journal and report; the page.
_PER_TENSOR, _PER_MODULE, _FIXED = 200, 2500, 1_000_000


def quantizer_bits(quantizer: Quantizer, shape: tuple[int, int]) -> int:
    """Stored bits of a weight under a quantizer, with its residual terms."""
    bits = quantizer.format.storage_bits(shape)
    for residual in quantizer.residuals:
        estimate = getattr(residual, "storage_bits", None)
        bits += int(estimate(shape)) if estimate is not None else 0
    return bits


def is_exact(quantizer: Quantizer | None) -> bool:
    """Whether :func:`quantizer_bits` is exact: not where the number of sparse entries depends on the weight."""
    residuals = quantizer.residuals if quantizer is not None else ()
    return all(hasattr(r, "storage_bits") and getattr(r, "exact_size", True) for r in residuals)


def output_bytes(opened: Opened) -> int:
    """Bytes of all tensors of the result: coded weights, static input parameters, everything else as it was."""
    model = opened.model
    if model.checkpoint is not None:
        total = sum(info.bytes for info in model.checkpoint.tensors.values())
    else:
        total = sum(t.nbytes for t in model.module.state_dict().values())
    replaced: set[tuple[str, ...]] = set()
    coded = set()
    for path, choice in opened.choices.items():
        if choice.input is not None and is_static(choice.input.format):
            count = static_size(choice.input.format, choice.site.shape[1])
            total += 4 * count * (2 if choice.input.format.asymmetric else 1)
        if choice.weight is None:
            continue
        name = f"{path}.weight"
        coded.add(name)
        total += quantizer_bits(choice.weight, choice.site.shape) // 8
        keys = source_keys(model, name)
        if choice.site.expert is not None or not keys or keys not in replaced:
            total -= source_bytes(model, name)
            replaced.add(keys)
    # The other end of a tie becomes a tensor of its own.
    return total + sum(source_bytes(model, name) for name in opened.untied if name not in coded)


def disk_bytes(job: Job, opened: Opened) -> int:
    """Bytes that the disk has to hold at most: the result with its files, and what spills while the job runs."""
    checkpoint = opened.model.checkpoint
    tensors = len(checkpoint.tensors) if checkpoint is not None else len(opened.model.module.state_dict())
    coded = sum(c.weight is not None or c.input is not None for c in opened.choices.values())
    files = sum(p.stat().st_size for p in checkpoint.extra_files) if checkpoint is not None else 0
    overhead = _PER_TENSOR * (tensors + 3 * coded) + _PER_MODULE * coded + _FIXED
    return output_bytes(opened) + overhead + files + spilled_bytes(job, opened)


def check_disk(job: Job, opened: Opened) -> None:
    """Refuse a job whose result has no room on the disk; what an interrupted run left there counts as room.

    Raises:
        InputError: with what is needed and what is free.
    """
    if job.out is None:
        return
    work = working_folder(job.out)
    made = sum(p.stat().st_size for p in work.rglob("*") if p.is_file()) if work.is_dir() else 0
    need, free = disk_bytes(job, opened), disk_free(work) + made
    if need > free:
        raise InputError(
            f"the result needs about {need / 1e6:,.0f} MB and the disk of {job.out} has {free / 1e6:,.0f} MB free; "
            "free some space or choose another --out"
        )
