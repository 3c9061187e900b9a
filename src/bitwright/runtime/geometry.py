"""What a convolution needs beside its weight: kernel size, stride, padding, dilation, groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.runtime.activation import ActivationQuantizer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class ConvGeometry:
    """The attributes of a two-dimensional convolution; ``padding`` is a pair or ``same`` / ``valid``.

    One along a single axis has a kernel of height 1.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, source: nn.Conv1d | nn.Conv2d) -> ConvGeometry:
        """Read the attributes of a float convolution."""
        return cls(
            kernel_size=_pair(source.kernel_size, 1),
            stride=_pair(source.stride, 1),
            padding=source.padding if isinstance(source.padding, str) else _pair(source.padding, 0),
            dilation=_pair(source.dilation, 1),
            groups=source.groups,
            padding_mode=source.padding_mode,
        )

    def quantized(self, x: Tensor, quantizer: ActivationQuantizer | None) -> Tensor:
        """Round ``x[batch, channels, height, width]`` with the channels as features: a token is one position."""
        if quantizer is None:
            return x
        return quantizer(x.movedim(1, -1)).movedim(-1, 1)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with a flattened float weight ``[out, in / groups * kh * kw]``.

        Raises:
            InputError: if the channels of ``x`` do not belong to the weight.
        """
        height, width = self.kernel_size
        self.check_channels(x, weight.shape[1])
        full = weight.view(weight.shape[0], -1, height, width)
        bias = None if bias is None else bias.to(x.dtype)
        padding: tuple[int, int] | str = self.padding
        if self.padding_mode != "zeros":
            x = functional.pad(x, self._border(), mode=self.padding_mode)
            padding = (0, 0)
        return functional.conv2d(x, full, bias, self.stride, padding, self.dilation, self.groups)

    def check_channels(self, x: Tensor, columns: int) -> None:
        """Check the channels of ``x`` against the columns ``in / groups * kh * kw`` of the weight.

        Raises:
            InputError: if they do not belong to each other.
        """
        channels = columns // (self.kernel_size[0] * self.kernel_size[1]) * self.groups
        if x.shape[-3] != channels:
            raise InputError(f"the convolution takes {channels} channels, not {x.shape[-3]}; check its input")

    def _border(self) -> list[int]:
        """Widths ``[left, right, top, bottom]`` of a border that is not of zeros."""
        if self.padding == "valid":
            return [0, 0, 0, 0]
        border: list[int] = []
        for axis in (1, 0):
            if isinstance(self.padding, str):  # "same": what a dilated kernel hangs over, more on the far side
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                border += [total // 2, total - total // 2]
            else:
                border += [self.padding[axis]] * 2
        return border


def _pair(value: int | tuple[int, ...], first: int) -> tuple[int, int]:
    """Sizes along two axes; ``first`` is that of the axis that a convolution along one does not have."""
    if isinstance(value, int):
        return value, value
    return (first, value[0]) if len(value) == 1 else (value[0], value[1])
