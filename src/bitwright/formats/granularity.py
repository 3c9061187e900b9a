"""Which weights share one scale: tensor, channel, group, block, flat block, token."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.formats.layout import AxisLayout, BlockLayout, FlatLayout, Layout


def _check_size(word: str, size: int) -> None:
    if size < 1:
        raise InputError(f"{word} of {size} values is not possible; give a size of at least 1")


def _check_axis(axis: int) -> None:
    if axis not in (0, 1):
        raise InputError(f"axis={axis} does not exist in a matrix [out, in]; use axis=0 or axis=1")


def _check_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(f"formats work on matrices [out, in] with values in them, not {tuple(shape)}; flatten first")
    return int(shape[0]), int(shape[1])


@dataclass(frozen=True)
class Tensor:
    """One scale for the whole matrix."""

    @property
    def text(self) -> str:
        return "tensor"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        out, columns = _check_shape(shape)
        return FlatLayout((out, columns), out * columns)


@dataclass(frozen=True)
class Channel:
    """One scale per row (``axis=0``, output channel) or per column (``axis=1``, input channel)."""

    axis: int = 0

    def __post_init__(self) -> None:
        _check_axis(self.axis)

    @property
    def text(self) -> str:
        return "channel" if self.axis == 0 else "channel axis=1"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        out, columns = _check_shape(shape)
        return AxisLayout((out, columns), columns if self.axis == 0 else out, transposed=self.axis == 1)


@dataclass(frozen=True)
class Token:
    """One scale per token: a row of activations ``x[tokens, features]``."""

    @property
    def text(self) -> str:
        return "token"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        tokens, features = _check_shape(shape)
        return AxisLayout((tokens, features), features)


@dataclass(frozen=True)
class Group:
    """One scale per ``size`` neighbours along ``axis`` (1: along the inputs of a row; 0: along the outputs)."""

    size: int
    axis: int = 1

    def __post_init__(self) -> None:
        _check_size("a group", self.size)
        _check_axis(self.axis)

    @property
    def text(self) -> str:
        return f"g{self.size}" if self.axis == 1 else f"g{self.size} axis=0"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return AxisLayout(_check_shape(shape), self.size, transposed=self.axis == 0)


@dataclass(frozen=True)
class Block:
    """One scale per block of ``rows`` x ``cols`` weights."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        _check_size("a block side", min(self.rows, self.cols))

    @property
    def text(self) -> str:
        return f"block{self.rows}x{self.cols}"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return BlockLayout(_check_shape(shape), self.rows, self.cols)


@dataclass(frozen=True)
class FlatBlock:
    """One scale per ``size`` consecutive values of the flattened matrix, rows after each other (as bitsandbytes)."""

    size: int

    def __post_init__(self) -> None:
        _check_size("a block", self.size)

    @property
    def text(self) -> str:
        return f"b{self.size}"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return FlatLayout(_check_shape(shape), self.size)


Granularity = Tensor | Channel | Group | Block | FlatBlock | Token
