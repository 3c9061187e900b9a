"""Labelled images, normalised the way the network was trained."""

from __future__ import annotations

import hashlib
import inspect
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.data.files import MAX_ARRAY_BYTES, check_file, check_npz
from bitwright.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images ``[n, channels, height, width]`` float32 after normalisation, and their labels int64 ``[n]``.

    ``input_name`` is the keyword under which :meth:`batches` hands the images to a model.
    """

    images: Tensor
    labels: Tensor
    source: str
    protocol: str
    sha256: str
    input_name: str = "pixel_values"

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32 or len(self.images) == 0:
            raise InputError(
                f"{self.source}: images must be float32 [n, channels, height, width] with n > 0; mend them"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise InputError(f"{self.source}: {len(self.labels)} labels for {len(self.images)} images; give one each")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def first(self, count: int) -> ImageData:
        """Return the first ``count`` images (all of them where there are fewer)."""
        if count < 1:
            raise InputError("a subset needs at least one image; ask for 1 or more")
        if count >= len(self):
            return self
        images, labels = self.images[:count], self.labels[:count]
        return replace(
            self,
            images=images,
            labels=labels,
            protocol=f"{self.protocol}; only the first {count}",
            sha256=_hash(images, labels),
        )

    def draw(self, count: int, generator: torch.Generator) -> ImageData:
        """Return ``count`` images drawn without replacement, in their order (all where there are fewer)."""
        if count < 1:
            raise InputError("a subset needs at least one image; ask for 1 or more")
        rows = torch.randperm(len(self), generator=generator)[:count].sort().values
        images, labels = self.images[rows], self.labels[rows]
        protocol = f"{self.protocol}; {len(rows)} of them drawn by seed"
        return replace(self, images=images, labels=labels, protocol=protocol, sha256=_hash(images, labels))

    def for_module(self, module: nn.Module) -> ImageData:
        """Return the same data with ``input_name`` set to the first argument of the module's ``forward``."""
        return replace(self, input_name=next(iter(inspect.signature(module.forward).parameters)))

    def batches(self, batch_size: int = 64) -> Iterator[dict[str, Tensor]]:
        """Yield ``{input_name: images[batch, channels, height, width]}`` in order."""
        for start in range(0, len(self), batch_size):
            yield {self.input_name: self.images[start : start + batch_size]}


def image_data(
    pixels: np.ndarray, labels: np.ndarray, mean: Sequence[float], std: Sequence[float], source: str, protocol: str = ""
) -> ImageData:
    """Normalise ``pixels`` (uint8, ``[n, height, width]`` or ``[n, height, width, channels]``): (x / 255 - mean) / std.

    Raises:
        InputError: if shapes or types are not these.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise InputError(f"{source}: images are {pixels.dtype} with {pixels.ndim} axes; store uint8 [n, h, w(, c)]")
    stacked = pixels[..., None] if pixels.ndim == 3 else pixels
    channels = stacked.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"{source}: {channels} channels but {len(mean)} means and {len(std)} deviations; give one each"
        )
    images = torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))).float().div_(255)
    images.sub_(torch.tensor(list(mean)).view(1, -1, 1, 1)).div_(torch.tensor(list(std)).view(1, -1, 1, 1))
    kept = torch.from_numpy(labels.astype(np.int64))
    text = protocol or (
        f"{source}, {len(images)} images, / 255, mean {' '.join(map(str, mean))}, std {' '.join(map(str, std))}"
    )
    return ImageData(images, kept, source, text, _hash(images, kept))


def read_images(path: Path | str, mean: Sequence[float], std: Sequence[float], count: int | None = None) -> ImageData:
    """Read an ``.npz`` file with ``images`` (uint8) and ``labels``; only the first ``count`` are kept.

    Raises:
        InputError: if the file is missing, broken, or lacks one of the two arrays.
    """
    path = Path(path)
    try:
        check_file(path, MAX_ARRAY_BYTES)
        check_npz(path, ("images", "labels"))
        with np.load(path, allow_pickle=False) as file:
            missing = {"images", "labels"} - set(file.files)
            if missing:
                raise InputError(f"{path} has no array {sorted(missing)[0]!r}; store images and labels")
            pixels, labels = file["images"][:count], file["labels"][:count]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as images ({error}); give an .npz with images and labels") from error
    return image_data(pixels, labels, mean, std, path.name)


def zoo_digits(split: Literal["train", "test"] = "test") -> ImageData:
    """Return the digits (8 x 8, one channel) of ``train`` or ``test``, values from 0 to 1, for the zoo's CNN."""
    from bitwright import zoo  # needs scikit-learn: only when it is asked for

    images, labels = zoo.digits_data(split)
    protocol = f"scikit-learn digits, {split} split of the zoo, {len(images)} images of 8 x 8"
    return ImageData(images.float(), labels.long(), f"zoo digits {split}", protocol, _hash(images, labels))


def _hash(images: Tensor, labels: Tensor) -> str:
    state = hashlib.sha256(str(tuple(images.shape)).encode())
    state.update(images.contiguous().numpy().tobytes())
    state.update(labels.contiguous().numpy().tobytes())
    return state.hexdigest()
