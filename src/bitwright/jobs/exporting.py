"""Export: a native checkpoint becomes a folder in the format of another program."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor
from bitwright.interop import Plan, planner
from bitwright.interop.skeleton import network_of
from bitwright.jobs.locking import only_writer
from bitwright.models import Checkpoint
from bitwright.models.checkpoint import TORCH_DTYPES
from bitwright.models.limits import check_config
from bitwright.models.writer import RawTensor, TensorLayout, write_index, write_safetensors, write_text
from bitwright.runtime import Manifest
from bitwright.runtime.install import check_weight, packed_tensors
from bitwright.runtime.load import read_native
from bitwright.runtime.module import buffer_name

logger = logging.getLogger(__name__)

OWN_FILES = frozenset({"job.json", "journal.jsonl", "bitwright-report.json", "report.html"})
"""Files of a native folder that describe how it was made; they stay behind."""


def export(folder: Path, target: str, out: Path) -> dict[str, Any]:
    """Write the native checkpoint ``folder`` as ``target`` into the new folder ``out``; return what ``--json`` prints.

    Nothing is written unless the whole network can be expressed; ``out`` appears complete, by one rename.

    Raises:
        InputError: an unknown target, a folder that is not native, something that the target cannot express, or a
            place that cannot be written.
    """
    make_plan = planner(target)
    manifest, checkpoint = read_native(folder)
    if manifest.experts:
        raise InputError(
            f"{next(iter(manifest.experts))}: not representable because its experts are coded one by one, which "
            "readers of this format do not know; nearest legal: float experts (select='*.self_attn.*')"
        )
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out or remove it")
    check_config(checkpoint)
    _check_weights(manifest, checkpoint)
    plan = make_plan(network_of(checkpoint, manifest))
    with _working_folder(out) as work:
        scalars = _write_tensors(work, plan, manifest, checkpoint)
        write_text(work / "config.json", json.dumps(dict(plan.config), indent=2) + "\n")
        for path in checkpoint.extra_files:
            if path.name not in OWN_FILES:
                shutil.copyfile(path, work / path.name)
        notes = [*plan.notes, *plan.closing_notes(scalars)]
        size = sum(path.stat().st_size for path in work.glob("*.safetensors"))
        os.replace(work, out)
    for note in notes:
        logger.info("%s", note)
    return {"out": str(out), "target": target, "format": plan.summary, "bytes": size, "notes": notes}


def _check_weights(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Check the metadata of every coded weight against the stored shapes, before anything is built of it."""
    stored = {
        name: torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")
        for name, info in checkpoint.tensors.items()
        if info.dtype in TORCH_DTYPES
    }
    for path, entry in manifest.modules.items():
        if entry.weight is not None:
            check_weight(path, entry.weight, packed_tensors(path, entry.weight, stored))


def _write_tensors(work: Path, plan: Plan, manifest: Manifest, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Write shard by shard: coded layers anew, everything else byte for byte; return the packed scalars by name."""
    owner = {name: path for path in manifest.modules for name in _native_names(path, manifest, checkpoint)}
    pending = {path: {name for name in owner if owner[name] == path} for path in manifest.modules}
    weight_map: dict[str, str] = {}
    scalars: dict[str, Tensor] = {}
    total = 0
    for shard in sorted(checkpoint.headers):
        tensors: dict[str, Tensor | RawTensor] = {}
        for name, info in checkpoint.tensors.items():
            if info.shard != shard:
                continue
            if name not in owner:
                tensors[name] = RawTensor(TensorLayout(info.dtype, info.shape), [checkpoint.raw(name)])
                total += info.bytes
                continue
            # A layer whose tensors lie in several shards goes where its last one lies.
            pending[owner[name]].discard(name)
            if not pending[owner[name]]:
                packed = _packed(owner[name], plan, manifest, checkpoint)
                tensors.update(packed)
                scalars.update({key: tensor for key, tensor in packed.items() if tensor.numel() == 1})
                total += sum(tensor.nbytes for tensor in packed.values())
        if tensors:
            write_safetensors(work / shard, tensors, {"format": "pt"})
            weight_map.update(dict.fromkeys(tensors, shard))
    if len(set(weight_map.values())) > 1:
        write_index(work, weight_map, total)
    return scalars


def _native_names(path: str, manifest: Manifest, checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that hold a coded module's weight and input (its bias is a float tensor like any other)."""
    entry = manifest.modules[path]
    found = []
    if entry.weight is not None:
        keys = packed_tensors(path, entry.weight, dict.fromkeys(checkpoint.tensors))  # type: ignore[arg-type]
        found = [f"{path}.{buffer_name(key)}" for key in keys]
    found += [f"{path}.{name}" for name in ("input_scale", "input_zero")]
    return [name for name in found if name in checkpoint.tensors]


def _packed(path: str, plan: Plan, manifest: Manifest, checkpoint: Checkpoint) -> dict[str, Tensor]:
    entry = manifest.modules[path]
    assert entry.weight is not None  # the plan refused modules whose weight is float
    stored = {name: checkpoint.load(name) for name in _native_names(path, manifest, checkpoint)}
    weight = QuantizedTensor.from_tensors(packed_tensors(path, entry.weight, stored), dict(entry.weight))
    return plan.pack(path, weight, stored.get(f"{path}.input_scale"), stored.get(f"{path}.input_zero"))


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out``, removed if the work fails; what a killed export left there is removed first.

    Raises:
        InputError: if the place cannot be written, or another export is writing there.
    """
    work = out.with_name(out.name + ".export.partial")
    with only_writer(work, out, "export"):
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"{work} cannot be written ({reason}); free some space or choose another --out") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
