"""The process that reads a finished folder back.

``python -m bitwright.jobs.read_back FOLDER PROBE ANSWER THREADS WAY`` runs the model of FOLDER on the batch in PROBE,
writes its output to ANSWER and prints the names of the tensors that are no sound numbers. WAY ``mapped`` reads weights
as they are used, for models that memory cannot hold; ``held`` loads them all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.jobs.fresh import folder_answer, unsound_tensors
from bitwright.jobs.runner import Batch
from bitwright.models import Checkpoint


def answer(folder: Path, batch: Batch, *, held: bool) -> tuple[Tensor, tuple[str, ...]]:
    """What the model of a native folder answers to a batch, and the names of its unsound tensors."""
    return folder_answer(folder, batch, held=held), unsound_tensors(Checkpoint.open(folder))


def main(arguments: list[str]) -> None:
    """Do what the module's docstring says."""
    folder, probe, place, threads, way = arguments
    torch.set_num_threads(int(threads))
    y, bad = answer(Path(folder), load_file(probe), held=way == "held")
    save_file({"y": y.contiguous()}, place)
    sys.stdout.write(json.dumps({"bad": bad}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
