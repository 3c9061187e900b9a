"""Hidden states between two units: in memory up to a window, on disk beyond."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.errors import InputError


class HiddenStates:
    """One tensor per batch; batches beyond ``window_bytes`` are kept in files under ``folder``."""

    def __init__(self, count: int, window_bytes: int | None = None, folder: Path | None = None) -> None:
        self._held: list[Tensor | Path | None] = [None] * count
        self._window = window_bytes
        self._folder = folder
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Tensor | None:
        """The hidden state of a batch; ``None`` before the first unit."""
        item = self._held[index]
        return load_file(item)["x"] if isinstance(item, Path) else item

    def __setitem__(self, index: int, x: Tensor) -> None:
        previous = self._held[index]
        if isinstance(previous, Tensor):
            self._bytes -= previous.nbytes
        if self._window is None or self._folder is None or self._bytes + x.nbytes <= self._window:
            if isinstance(previous, Path):
                previous.unlink(missing_ok=True)
            self._held[index] = x
            self._bytes += x.nbytes
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = previous if isinstance(previous, Path) else self._folder / f"{id(self):x}-{index}.safetensors"
        # Beside and renamed: ``x`` may look into the very file that it replaces.
        fresh = path.with_suffix(".new")
        try:
            save_file({"x": x.contiguous()}, fresh)
        except SafetensorError as error:
            raise InputError(f"{path}: {error}; free some space and run the same command again") from OSError()
        fresh.replace(path)
        self._held[index] = path

    def clear(self) -> None:
        """Forget all states and remove their files."""
        for index, item in enumerate(self._held):
            if isinstance(item, Path):
                item.unlink(missing_ok=True)
            self._held[index] = None
        self._bytes = 0

    def copy(self) -> HiddenStates:
        """The same states under an independent name (tensors are shared, files are read into memory or new files)."""
        other = HiddenStates(len(self), self._window, self._folder)
        for index in range(len(self)):
            x = self[index]
            if x is not None:
                other[index] = x
        return other


def equal(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality of two tensors, shapes included."""
    return a.shape == b.shape and bool(torch.equal(a, b))
