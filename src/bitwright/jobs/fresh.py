"""Reads a finished folder back in a process of its own, which knows nothing but the folder."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitwright.errors import CheckError
from bitwright.jobs.runner import Batch
from bitwright.jobs.stored import all_finite
from bitwright.models import Checkpoint
from bitwright.models.calling import call_module
from bitwright.models.stream import logits_of
from bitwright.runtime.kernels.table import REFERENCE
from bitwright.runtime.load import load
from bitwright.runtime.mapped import mapped

PROBE, ANSWER = "probe.safetensors", "answer.safetensors"


def answer_in_fresh_process(folder: Path, batch: Batch, *, held: bool) -> tuple[Tensor, tuple[str, ...]]:
    """What the model of a native folder answers in a new process, and its unsound tensors.

    Args:
        folder: the finished folder.
        batch: the model's input.
        held: load the whole model; otherwise weights are read as they are used.

    Raises:
        CheckError: if the process cannot load or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="bitwright-") as place:
        probe, answer = Path(place) / PROBE, Path(place) / ANSWER
        save_file({name: x.contiguous() for name, x in batch.items()}, probe)
        command = [sys.executable, "-m", "bitwright.jobs.read_back", str(folder), str(probe), str(answer)]
        command += [str(torch.get_num_threads()), "held" if held else "mapped"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise CheckError(f"{folder} cannot be read back in a fresh process and keeps its name: {reason}")
        bad = tuple(json.loads(done.stdout.splitlines()[-1])["bad"])
        return load_file(answer)["y"], bad


def unsound_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of tensors that hold NaN or Inf, and of scales that hold a zero."""
    return tuple(name for name in checkpoint.tensors if not _sound(name, checkpoint.load(name)))


def _sound(name: str, value: Tensor) -> bool:
    if not all_finite(value):
        return False
    return not (name.endswith("_scale") and value.is_floating_point()) or bool((value != 0).all())


def folder_answer(folder: Path, batch: Batch, skeleton: nn.Module | None = None, *, held: bool = True) -> Tensor:
    """What the model of a native folder answers by definition: bit for bit what it answered in memory.

    ``held`` loads it, otherwise weights are read as they are used.

    ``skeleton`` is the float network where no config rebuilds it; such a model is loaded.
    """
    if held or skeleton is not None:
        return model_answer(load(folder, skeleton, table=REFERENCE), batch)
    with mapped(folder, table=REFERENCE) as model:
        return model_answer(model, batch)


def model_answer(model: nn.Module, batch: Batch) -> Tensor:
    """The logits (or first output) of a model on a batch, fp32."""
    with torch.no_grad():
        return logits_of(call_module(model, batch)).float()
