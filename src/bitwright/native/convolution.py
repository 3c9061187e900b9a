"""Two-dimensional convolutions over packed weights, as the operator ``bitwright::convolve``: windows become rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import float_code, span
from bitwright.native.loading import require_library
from bitwright.native.operators import register
from bitwright.native.product import Coding, Parts, Product, operands

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Where the windows of a convolution lie, down and right; ``before`` and ``after``: rows and columns of zeros.

    Attributes:
        place: first input channel, first output channel, and all output channels; a group has its own.
    """

    kernel: Pair
    stride: Pair
    before: Pair
    after: Pair
    dilation: Pair
    place: tuple[int, int, int]

    def positions(self, height: int, width: int) -> Pair:
        """Rows and columns of the result.

        Raises:
            InputError: if no window fits into the image.
        """
        found = []
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = size + self.before[axis] + self.after[axis] - reach
            if room < 0:
                raise InputError(f"a window of {reach} does not fit into {size} values; give a larger image or padding")
            found.append(room // self.stride[axis] + 1)
        return found[0], found[1]

    def numbers(self) -> list[int]:
        """As the operator takes it."""
        return [*self.kernel, *self.stride, *self.before, *self.after, *self.dilation, *self.place]

    @classmethod
    def of(cls, numbers: list[int]) -> Windows:
        """The inverse of :meth:`numbers`."""
        kernel, stride, before, after, dilation = ((numbers[i], numbers[i + 1]) for i in range(0, 10, 2))
        return cls(kernel, stride, before, after, dilation, (numbers[10], numbers[11], numbers[12]))


def convolve(
    x: Tensor, product: Product, windows: Windows, y: Tensor, bias: Tensor | None = None, coding: Coding | None = None
) -> None:
    """Write one group's outputs of ``x[batch, channels, height, width]`` into ``y[batch, outputs, height', width']``.

    Raises:
        InputError: for a dtype, device or shape that the kernels do not serve.
    """
    numbers = [product.step(), *(coding.numbers() if coding is not None else [])]
    _OPERATOR(x, product.parts(), bias, product.geometry(), numbers, windows.numbers(), y)


def _fake(*_: Any) -> None:
    """The result is memory that the caller gives."""


def _run(
    x: Tensor,
    parts: Parts,
    bias: Tensor | None,
    geometry: list[int],
    numbers: list[float],
    windows: list[int],
    y: Tensor,
) -> None:
    run(require_library(), x, parts, bias, geometry, numbers, windows, y)


def run(
    library: Any, x: Tensor, parts: Parts, bias: Tensor | None, geometry: list[int], numbers: list[float],
    windows: list[int], y: Tensor,
) -> None:  # fmt: skip
    """Run on a given instruction set; see :func:`convolve`."""
    x = x.detach().contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    where = Windows.of(windows)
    batch, channels, height, width = x.shape
    positions = where.positions(height, width)
    if y.dtype != x.dtype or tuple(y.shape) != (batch, where.place[2], *positions):
        raise InputError(f"the result has shape {(batch, where.place[2], *positions)} and the dtype of the input")
    try:
        library.convolve(
            *operands(parts, geometry, numbers), span(x), float_code(x.dtype), (batch, channels, height, width),
            where.place[0], where.kernel, where.stride, where.before, where.dilation, positions, span(y),
            where.place[2], where.place[1], span(bias, torch.float32), torch.get_num_threads(),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"the parts of a convolution do not fit: {error}") from error


_OPERATOR = register(
    "convolve",
    "(Tensor x, Tensor?[] parts, Tensor? bias, int[] geometry, float[] numbers, int[] windows, Tensor(a!) y) -> ()",
    _run, _fake,
)  # fmt: skip
