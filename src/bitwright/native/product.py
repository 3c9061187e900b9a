"""Products in every way beside the plain one, as one operator ``bitwright::product``.

A :class:`Product` is a weight made ready: a coded matrix that one of the :class:`Way` multiplies, and what is added to
it (single weights, narrow factors). Activations are taken as they are, rounded to 8 bits by block, or coded as a
:class:`Coding` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.buffers import FLOAT_CODES, float_code, span
from bitwright.native.linear import NativeWeight
from bitwright.native.loading import extension, require_library
from bitwright.native.operators import register

Parts = list[Tensor | None]


class Way(IntEnum):
    """Which kernel multiplies the coded matrix."""

    EXACT = 0
    """fp32."""
    INT8 = 1
    """Integers; affine codes."""
    LOOKUP = 2
    """Integers; at most 16 levels out of byte tables."""
    BF16 = 3
    """Pairs of bf16; any codes, where the processor has them."""
    TERNARY = 4
    """Integers; five ternary digits in a byte."""
    BITS = 5
    """Counts of common bits; affine codes, coded activations with one scale for a row."""
    SUMS = 6
    """Tables of sums of four activations; affine codes of up to 4 bits."""
    PAIRS = 7
    """Tables of sums of two activations; ternary digits."""
    LATTICE = 10
    """Integers; points of E8P."""
    LATTICE_EXACT = 11
    """fp32; points of E8P."""
    ADDITIVE = 12
    """fp32; sums of entries of learned codebooks."""


@dataclass(frozen=True, eq=False)
class ByteTables:
    """Levels as integers: ``level = step * (128 * high + low - offset)``; ``native/core/variants.h`` has the shapes.

    ``by_row``: a table for every row; the codes then went through :func:`by_rows` before they were packed.
    """

    low: Tensor
    high: Tensor | None
    offset: int
    step: float
    by_row: bool = False


@dataclass(frozen=True, eq=False)
class LatticeTables:
    """How words of E8P become whole numbers, uint8; ``native/core/vectors.h`` has the shapes."""

    patterns: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class AdditiveWeight:
    """Sums of entries of codebooks of 8 weights.

    Attributes:
        codes: uint8 ``[out, in / 8 * books * index_bytes]``: indices, rows as they are saved.
        scale: fp32 ``[out, groups]``, one for every ``group`` inputs. entries: fp16 ``[books, 256 or 65536, 8]``.
        shape: ``(out, in)``.
    """

    codes: Tensor
    scale: Tensor
    entries: Tensor
    shape: tuple[int, int]
    index_bytes: int
    group: int

    def bytes(self) -> int:
        """Bytes that a product reads."""
        return self.codes.nbytes + self.scale.nbytes + self.entries.nbytes

    def geometry(self) -> list[int]:
        """The whole numbers of the weight, as the operator takes them."""
        return [*self.shape, self.entries.shape[0], self.index_bytes, self.group, 0, 0]


@dataclass(frozen=True, eq=False)
class Terms:
    """What is added: single weights as compressed rows, ``left @ right``, sums of the weight for zero points.

    Attributes:
        starts: int32 ``[out + 1]``; columns: int32; values: fp32.
        left: fp32 ``[tiles, rank, 16]``. right: fp32 ``[rank, in]``.
        sums: fp32 ``[tiles, runs, 16]``: the sum of the weights of each run of inputs.
    """

    starts: Tensor | None = None
    columns: Tensor | None = None
    values: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    sums: Tensor | None = None


@dataclass(frozen=True)
class Coding:
    """How activations are coded: ``clamp(round(x / scale + zero), low, high)``.

    Attributes:
        run: inputs that share a scale. low, high: levels of the grid. asymmetric: with a zero point.
        steps: a range over this is the scale. clip: share of the range. given: ``scale`` and ``zero`` are fixed.
    """

    run: int
    low: float
    high: float
    steps: float
    asymmetric: bool = False
    clip: float = 1.0
    given: bool = False
    scale: float = 1.0
    zero: float = 0.0

    def numbers(self) -> list[float]:
        """As the operator takes it."""
        return [
            float(self.given), float(self.asymmetric), float(self.run), self.low, self.high, self.steps, self.clip,
            self.scale, self.zero,
        ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class TernaryWeight:
    """A ternary matrix, five digits in a byte, one scale for every row; see ``native/core/variants.h``."""

    codes: Tensor
    scale: Tensor
    shape: tuple[int, int]

    def bytes(self) -> int:
        """Bytes that a product reads."""
        return self.codes.nbytes + self.scale.nbytes


@dataclass(frozen=True, eq=False)
class Product:
    """A weight made ready for one way of multiplying; ``levels`` is bf16 ``[2^bits]`` for ``Way.BF16`` and the
    sums of codes, int32 ``[tiles, groups, 16]``, for ``Way.BITS``.
    """

    way: Way
    weight: NativeWeight | TernaryWeight | AdditiveWeight
    tables: ByteTables | None = None
    levels: Tensor | None = None
    terms: Terms | None = None
    points: LatticeTables | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.weight.shape

    @property
    def vectors(self) -> bool:
        """Whether the weight is coded as vectors."""
        return self.way >= Way.LATTICE

    def bytes(self) -> int:
        """Bytes that a product of one row reads."""
        terms = self.terms or Terms()
        parts = (terms.starts, terms.columns, terms.values, terms.left, terms.right, self.levels)
        return self.weight.bytes() + sum(part.nbytes for part in parts if part is not None)

    def parts(self) -> Parts:
        """Tensors in the operator's order."""
        tables, terms = self.tables, self.terms or Terms()
        zero = self.weight.zero if isinstance(self.weight, NativeWeight) else None
        table = self.weight.table if isinstance(self.weight, NativeWeight) else None
        low = high = None
        if tables is not None:
            low, high = tables.low, tables.high
        elif self.points is not None:
            low, high = self.points.patterns, self.points.values
        elif isinstance(self.weight, AdditiveWeight):
            low = self.weight.entries
        return [
            self.weight.codes, self.weight.scale, zero, table, low, high, self.levels, terms.starts, terms.columns,
            terms.values, terms.left, terms.right, terms.sums,
        ]  # fmt: skip

    def geometry(self) -> list[int]:
        """Whole numbers in the operator's order."""
        tables = self.tables
        offset, by_row = (0, 0) if tables is None else (tables.offset, int(tables.by_row))
        plain = [*self.shape, 2, 0, 0, 0, 0] if isinstance(self.weight, TernaryWeight) else self.weight.geometry()
        return [int(self.way), int(self.terms is not None), offset, by_row, *plain]

    def step(self) -> float:
        """Factor of the byte tables."""
        return 1.0 if self.tables is None else self.tables.step


def multiply(x: Tensor, product: Product, bias: Tensor | None = None, coding: Coding | None = None) -> Tensor:
    """Return ``x[..., in] @ w.T + bias`` in the dtype of x (fp32, fp16, bf16), accumulated in fp32.

    Raises:
        InputError: for a dtype, device or shape that the kernels do not serve.
    """
    numbers = [product.step(), *(coding.numbers() if coding is not None else [])]
    y: Tensor = _OPERATOR(x, product.parts(), bias, product.geometry(), numbers)
    return y


def _fake(x: Tensor, parts: Parts, bias: Tensor | None, geometry: list[int], numbers: list[float]) -> Tensor:
    return x.new_empty((*x.shape[:-1], geometry[4]))


def _run(x: Tensor, parts: Parts, bias: Tensor | None, geometry: list[int], numbers: list[float]) -> Tensor:
    x = x.detach().contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    y, arguments = call(x, parts, bias, geometry, numbers)
    require_library().product(*arguments, torch.get_num_threads())
    return y


def call(
    x: Tensor, parts: Parts, bias: Tensor | None, geometry: list[int], numbers: list[float]
) -> tuple[Tensor, list[Any]]:
    """Return the result, not yet written, and the arguments of ``Library.product`` but the last, the threads.

    The arguments are addresses: the caller keeps the (contiguous) ``x``, ``bias`` (fp32) and parts alive.

    Raises:
        InputError: for parts that do not fit each other.
    """
    out, columns = geometry[4:6]
    if x.shape[-1] != columns:
        raise InputError(f"the weight takes {columns} channels, not {x.shape[-1]}; check the input")
    kind = float_code(x.dtype)
    y = x.new_empty((*x.shape[:-1], out))
    rows = x.numel() // columns
    return y, [*operands(parts, geometry, numbers), span(x), kind, rows, span(y), span(bias, torch.float32)]


def operands(parts: Parts, geometry: list[int], numbers: list[float]) -> list[Any]:
    """Return the first arguments of ``Library.product`` and ``convolve``: way, weights, tables, levels, terms, coding.

    Raises:
        InputError: for parts that do not fit each other.
    """
    way, has_terms, offset, by_row, out, columns, *_ = geometry
    low, high, levels = parts[4:7]
    try:
        weight, ternary = _weight(way, parts, geometry)
        tables = None
        if way == Way.LOOKUP:
            tables = extension().ByteTables(weight, _bytes(low), _bytes(high), bool(by_row), offset, numbers[0])
        vectors = _vectors(way, weight, parts, geometry)
        terms = _terms(parts, out, columns) if has_terms else None
        coding = _coding(numbers[1:]) if len(numbers) > 1 else None
    except ValueError as error:
        raise InputError(f"the parts of a product do not fit: {error}") from error
    return [way, weight, ternary, tables, vectors, span(levels, torch.bfloat16, torch.int32), terms, coding]


def _bytes(tensor: Tensor | None) -> tuple[int, int]:
    return span(tensor, torch.uint8)


def _weight(way: int, parts: Parts, geometry: list[int]) -> tuple[Any, Any]:
    codes, scale, zero, table = parts[:4]
    if codes is None or scale is None:
        raise InputError("a product needs codes and scales")
    if way == Way.ADDITIVE:
        return None, None
    if way == Way.TERNARY:
        kind = FLOAT_CODES[scale.dtype]
        return None, extension().TernaryWeight(geometry[4], geometry[5], _bytes(codes), span(scale), kind)
    out, columns, bits, block, per_scale, levels, constant = geometry[4:]
    view = NativeWeight(codes, scale, zero, table, (out, columns), bits, block, per_scale, levels, constant)
    return view.handle(), None


def _vectors(way: int, weight: Any, parts: Parts, geometry: list[int]) -> Any:
    codes, scale, low, high = parts[0], parts[1], parts[4], parts[5]
    if way in (Way.LATTICE, Way.LATTICE_EXACT):
        return extension().lattice_tables(weight, _bytes(low), _bytes(high))
    if way == Way.ADDITIVE:
        out, columns, books, index_bytes, group = geometry[4:9]
        return extension().additive_tables(
            out, columns, books, index_bytes, group, _bytes(codes), span(low, torch.float16), span(scale, torch.float32)
        )
    return None


def _terms(parts: Parts, out: int, columns: int) -> Any:
    starts, places, values, left, right, sums = parts[7:]
    return extension().Terms(
        out, columns, span(starts, torch.int32), span(places, torch.int32), span(values, torch.float32),
        0 if values is None else values.numel(), 0 if right is None else right.shape[0], span(left, torch.float32),
        span(right, torch.float32), 0 if sums is None else sums.shape[1], span(sums, torch.float32),
    )  # fmt: skip


def _coding(numbers: list[float]) -> Any:
    given, asymmetric, run, *rest = numbers
    return extension().Coding(bool(given), bool(asymmetric), int(run), *rest)




_OPERATOR = register(
    "product",
    "(Tensor x, Tensor?[] parts, Tensor? bias, int[] geometry, float[] numbers) -> Tensor",
    _run, _fake,
)  # fmt: skip

__all__ = [
    "AdditiveWeight", "ByteTables", "Coding", "LatticeTables", "Product", "Terms", "TernaryWeight", "Way", "call",
    "multiply", "operands",
]  # fmt: skip
