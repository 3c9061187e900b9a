"""Run a native checkpoint that need not fit in memory.

Packed weights are views of the mapped files, so the system reads and drops their pages as it likes; what is not packed
is read at the moment an operation uses it. Only what one layer computes with is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.models.materialise import materialised
from bitwright.models.model import skeleton_of, streamed_model
from bitwright.runtime.dispatch import Table
from bitwright.runtime.install import install
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.load import read_native


@contextmanager
def mapped(folder: str | Path, dtype: torch.dtype = torch.float32, table: Table = TABLE) -> Iterator[nn.Module]:
    """A native transformers folder as a module that can be called while the context lasts.

    Kernels of ``table`` that bring weights into a layout of their own keep a copy of them.

    Raises:
        InputError: if the folder is damaged, is not native, or was written for a plain module.
    """
    manifest, checkpoint = read_native(folder)
    if "model_type" not in checkpoint.config:
        raise InputError(f"{checkpoint.path}: was written for a plain module; give that module to load(folder, module)")
    module = skeleton_of(checkpoint, dtype)
    install(module, manifest, {name: checkpoint.load(name) for name in checkpoint.tensors}, table=table)
    model = streamed_model(module, checkpoint, dtype)
    with torch.no_grad(), materialised(model):
        yield model.module
