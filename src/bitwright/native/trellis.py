"""Trellis-coded weights, compiled: the search for codes, and products as one operator ``bitwright::trellis``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import FLOAT_CODES, float_code, span
from bitwright.native.linear import ROWS
from bitwright.native.loading import Library, extension, library, require_library
from bitwright.native.operators import register

RUN = 32
"""A block of a product is a multiple of so many columns."""

MOST_SPAN = 256
"""Columns of the longest block of a product."""

ONE_MAD, THREE_INST = 0, 1
_SCALES = (torch.float32, torch.float16, torch.bfloat16)


def search(
    x: Tensor,
    values: Tensor,
    bits: int,
    state_bits: int,
    columns: int,
    around: int,
    importance: Tensor | None = None,
    kernels: Library | None = None,
) -> Tensor | None:
    """Return uint8 codes of fp32 ``x[..., n * columns]``, or ``None`` where nothing compiled serves.

    Args:
        values: fp32 ``[2^state_bits]``, the level of every state. bits: of a code, 1 to 4. columns: of a run.
        around: columns on each side of a run's seam that choose the bits across it.
        importance: fp32 ``[n * columns]``, factors of the squared errors.

    Raises:
        InputError: for sizes or types that the search does not take.
    """
    found = library() if kernels is None else kernels
    if found is None or x.device.type != "cpu":
        return None
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.uint8)
    count = x.shape[-1]
    try:
        found.trellis_search(
            x.numel() // max(count, 1), count, columns, bits, state_bits, around, span(values, torch.float32),
            span(x, torch.float32), span(importance, torch.float32), span(codes), torch.get_num_threads(),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise InputError(f"trellis codes cannot be sought: {error}") from error
    return codes


@dataclass(frozen=True, eq=False)
class TrellisWeight:
    """A matrix ``[out, in]`` of trellis codes in the kernels' layout (``native/core/trellis.h``).

    A weight is ``scale * (number + offset)``, where the number is what the code computes of a state; 1MAD counts from
    510.

    Attributes:
        codes: int32 words. scale: fp32, fp16 or bf16 ``[tiles, groups, 16]``.
        shape: ``(out, in)``. columns: of a run. bits: of a code. state_bits: of a state. code: ``ONE_MAD`` or
            ``THREE_INST``. blocks_per_scale: runs of a group.
    """

    codes: Tensor
    scale: Tensor
    shape: tuple[int, int]
    columns: int
    bits: int
    state_bits: int
    code: int
    blocks_per_scale: int
    offset: float

    def geometry(self) -> list[int]:
        """The whole numbers of the weight, as the operator takes them."""
        return [*self.shape, self.columns, self.bits, self.state_bits, self.code, self.blocks_per_scale]

    def handle(self) -> Any:
        """The compiled view; every buffer is checked against the geometry."""
        return _handle(self.codes, self.scale, self.geometry(), self.offset)

    def bytes(self) -> int:
        """Bytes that a product reads."""
        return self.codes.nbytes + self.scale.nbytes


def _handle(codes: Tensor, scale: Tensor, geometry: list[int], offset: float) -> Any:
    try:
        return extension().TrellisWeight(
            *geometry, span(codes, torch.int32), span(scale, *_SCALES), FLOAT_CODES[scale.dtype], offset
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"packed trellis codes do not fit their geometry: {error}") from error


def pack(codes: Tensor, columns: int, bits: int, state_bits: int) -> Tensor:
    """Return uint8 ``codes[out, in]`` in the kernels' layout, int32.

    Raises:
        InputError: for codes that are not a contiguous uint8 matrix, or sizes that products do not take.
    """
    if codes.dim() != 2:
        raise InputError(f"codes are a matrix [out, in], not of {codes.dim()} dimensions")
    out, count = codes.shape
    packed = torch.empty(-(-out // ROWS) * ROWS * (count // RUN) * bits, dtype=torch.int32)
    try:
        require_library().trellis_pack(
            out, count, columns, bits, state_bits, span(codes, torch.uint8), span(packed), torch.get_num_threads()
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"trellis codes cannot be packed: {error}") from error
    return packed


def linear(x: Tensor, weight: TrellisWeight, bias: Tensor | None = None, *, exact: bool = True) -> Tensor:
    """Return ``x[..., in] @ w.T + bias`` in the dtype of x (fp32, fp16, bf16), accumulated in fp32.

    ``exact``: activations as they are. Otherwise (1MAD only) they are rounded to 8 bits, a scale for every row and run
    of the weight, and multiplied in integers.

    Raises:
        InputError: for a dtype, device, shape or code that the kernels do not serve.
    """
    y: Tensor = _OPERATOR(x, weight.codes, weight.scale, bias, weight.geometry(), weight.offset, exact)
    return y


def _fake(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, geometry: list[int], offset: float, exact: bool
) -> Tensor:
    return x.new_empty((*x.shape[:-1], geometry[0]))


def _run(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, geometry: list[int], offset: float, exact: bool
) -> Tensor:
    handle = _handle(codes, scale, geometry, offset)
    channels = x.shape[-1] if x.dim() else 0
    if channels != geometry[1]:
        raise InputError(f"the weight takes {geometry[1]} channels, not {channels}; check the input")
    if bias is not None and bias.shape != (geometry[0],):
        raise InputError(f"a bias for {geometry[0]} outputs has {tuple(bias.shape)} numbers; check the layer")
    x = x.detach().contiguous()
    y = x.new_empty((*x.shape[:-1], geometry[0]))
    bias = None if bias is None else bias.detach().float().contiguous()
    rows, threads = x.numel() // channels, torch.get_num_threads()
    call = [handle, span(x), float_code(x.dtype), rows, span(y), span(bias), exact, threads]
    try:
        require_library().trellis_linear(*call)
    except ValueError as error:
        raise InputError(f"a product of trellis codes is refused: {error}") from error
    return y


_OPERATOR = register(
    "trellis",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? bias, int[] geometry, float offset, bool exact) -> Tensor",
    _run, _fake,
)  # fmt: skip
