"""How scales and zero points are stored: plain floats, powers of two (E8M0), two levels (NVFP4, double)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import double
from bitwright.formats.minifloat import MiniFloat

ScaleStorage = Literal["fp32", "fp16", "bf16", "e8m0", "e4m3", "uint8", "int8", "none"]
ZeroStorage = Literal["code", "fp16", "bf16", "fp32"]

FLOAT_STORAGE: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "e8m0": 8, "e4m3": 8, "uint8": 8, "int8": 8, "none": 0}

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""The smallest scale that is used; a smaller one would lose digits as a float32 subnormal."""

_E4M3 = MiniFloat(4, 3)

PROTECTED = 119
"""The largest integer to start from where 4-bit integers times whole scales must keep 8 bits: 119 + 15/2 < 127."""


@dataclass(frozen=True)
class Outer:
    """A second level of scale: float32 values, one per ``size`` inner scales (None: one for the tensor).

    With ``offset`` one more value, the mean of the scales, is taken off before the division. With ``rows`` they
    are fp16 values, one for each row of scales.
    """

    size: int | None = None
    offset: bool = False
    rows: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """How the values are stored."""
        return torch.float16 if self.rows else torch.float32


@dataclass(frozen=True)
class ScaleFormat:
    """How the scales of a tensor are stored.

    ``fp32``, ``fp16``, ``bf16``: plain. ``e8m0``: a power of two in one byte; ``rule`` says how it is made of the
    largest magnitude: ``ocp`` rounds down (OCP MX v1.0, section 6.3), ``ct`` rounds up what would round beyond the
    largest level (as compressed-tensors does). ``e4m3``: a minifloat under one float32 scale per tensor (NVFP4).
    ``uint8``: codes of the dynamic map under float32 scales per 256, minus the mean (double quantization, QLoRA).
    ``int8``: whole numbers under one fp16 scale per row, chosen so that every whole scale times a level's distance from
    the zero point is an integer of 8 bits (QServe's two levels, arXiv:2405.04532, section 4.1).
    ``none``: no scales, for learned codebooks that hold the final values.

    Raises:
        InputError: an unknown storage, or an outer level that does not belong to it.
    """

    storage: ScaleStorage = "fp16"
    outer: Outer | None = None
    rule: Literal["ocp", "ct"] = "ocp"

    def __post_init__(self) -> None:
        if self.storage not in _BITS:
            raise InputError(f"scales cannot be stored as {self.storage!r}; valid: {', '.join(sorted(_BITS))}")
        expected = _OUTERS.get(self.storage)
        if self.outer != expected:
            raise InputError(f"{self.storage} scales go with outer={expected}, not {self.outer}")
        if self.rule != "ocp" and self.storage != "e8m0":
            raise InputError(f"the rule {self.rule!r} belongs to e8m0 scales, not to {self.storage}")

    @classmethod
    def named(cls, word: str) -> ScaleFormat:
        """Return the scale format of a word: fp32, fp16, bf16, e8m0, e8m0-ct, e4m3, int8, double or none.

        Raises:
            KeyError: no such word.
        """
        return SCALE_WORDS[word]

    @property
    def text(self) -> str:
        return next(word for word, value in SCALE_WORDS.items() if value == self)

    @property
    def bits(self) -> int:
        """Stored bits of one inner scale."""
        return _BITS[self.storage]

    def storage_bits(self, count: int, rows: int = 1) -> int:
        """Return the bits of ``count`` scales in ``rows`` with their outer scales and offset."""
        outer = 0 if self.outer is None else self.outer.dtype.itemsize * 8
        return count * self.bits + outer * self.outer_count(count, rows)

    def outer_count(self, count: int, rows: int = 1) -> int:
        """Return how many numbers the outer level has for ``count`` scales in ``rows``."""
        if self.outer is None:
            return 0
        if self.outer.rows:
            return rows
        blocks = 1 if self.outer.size is None else -(-count // self.outer.size)
        return blocks + int(self.outer.offset)


_OUTERS: dict[str, Outer] = {"e4m3": Outer(), "uint8": Outer(double.BLOCK, offset=True), "int8": Outer(rows=True)}

SCALE_WORDS: dict[str, ScaleFormat] = {
    "fp32": ScaleFormat("fp32"),
    "fp16": ScaleFormat("fp16"),
    "bf16": ScaleFormat("bf16"),
    "e8m0": ScaleFormat("e8m0"),
    "e8m0-ct": ScaleFormat("e8m0", rule="ct"),
    "e4m3": ScaleFormat("e4m3", Outer()),
    "double": ScaleFormat("uint8", Outer(double.BLOCK, offset=True)),
    "int8": ScaleFormat("int8", Outer(rows=True)),
    "none": ScaleFormat("none"),
}


@dataclass(frozen=True)
class ZeroFormat:
    """How zero points are stored: ``code`` (an integer of as many bits as the codes) or a float.

    Raises:
        InputError: an unknown storage.
    """

    storage: ZeroStorage = "code"

    def __post_init__(self) -> None:
        if self.storage != "code" and self.storage not in FLOAT_STORAGE:
            raise InputError(f"zero points cannot be stored as {self.storage!r}; valid: code, bf16, fp16, fp32")

    def bits(self, code_bits: int) -> int:
        """Stored bits of one zero point."""
        return code_bits if self.storage == "code" else _BITS[self.storage]

    def store(self, zero: Tensor, code_bits: int) -> Tensor:
        """Return the zero points as stored: uint8 codes, or the float type.

        Raises:
            InputError: a float that the type cannot hold.
        """
        if self.storage == "code":
            return zero.to(torch.float32).round().clamp(0, (1 << code_bits) - 1).to(torch.uint8)
        stored = zero.to(FLOAT_STORAGE[self.storage])
        if not bool(torch.isfinite(stored).all()):
            raise InputError(f"a zero point does not fit {self.storage}; use zero=bf16 or zero=fp32")
        return stored


@dataclass(frozen=True)
class Scale:
    """Scales of one tensor: ``stored[rows, groups]`` in their stored type and ``effective`` float32 to divide by.

    E8M0, E4M3, whole and double-quantized scales are stored as uint8 bit patterns. ``outer`` is float32 ``[1]`` for
    NVFP4 and ``[ceil(rows*groups/256)]`` for double quantization, fp16 ``[rows]`` for whole scales; ``offset`` is
    float32 ``[1]`` for double quantization.
    """

    stored: Tensor
    effective: Tensor
    outer: Tensor | None = None
    offset: Tensor | None = None


def power_of_two(biased: Tensor) -> Tensor:
    """Return float32 ``2^(biased - 127)`` exactly, for int32 0..254 (0 is the float32 subnormal 2^-127)."""
    return torch.where(biased > 0, biased << 23, torch.full_like(biased, 1 << 22)).view(torch.float32)


def exponent_byte(values: Tensor, shift: int, rounding: int) -> Tensor:
    """Return int32 ``floor(log2(values)) + 127 - shift`` in 0..254, read off the bits of positive float32 values.

    ``rounding`` is added to the bits first: ``1 << 22`` rounds to the nearest power of two, ``(1 << 23) - 1`` up.
    """
    bits = values.to(torch.float32).contiguous().view(torch.int32)
    # Below 2^-126 there is no hidden bit: the octave above 2^-127 is half as wide.
    half = rounding >> 1
    carry = (bits >= 1 << 23).to(torch.int32) * (rounding - half) + half
    return ((bits + carry >> 23) - shift).clamp(0, 254)


def store(form: ScaleFormat, scale: Tensor, step_exponent: int, outer: Tensor | None = None) -> Scale:
    """Round positive scales ``[rows, groups]`` to their stored form; none becomes 0, infinite or NaN.

    ``step_exponent`` is added to the exponent of an E8M0 scale (integers of MX count in steps of ``2^step``).
    ``outer`` is what :func:`fit_outer` gives for all scales of the tensor; it is fitted here when it is not given.

    Raises:
        InputError: a scale beyond the range of its type.
    """
    scale = scale.to(torch.float32)
    if form.storage == "none":
        return Scale(scale.new_empty(0), torch.ones_like(scale))
    if form.storage == "e8m0":
        byte = exponent_byte(scale * 2.0**-step_exponent, 0, rounding=1 << 22)
        return Scale(byte.to(torch.uint8), power_of_two(byte) * 2.0**step_exponent)
    if form.storage == "e4m3":
        whole = fit_outer(form, scale) if outer is None else outer.to(torch.float32).reshape(1)
        assert whole is not None
        codes = _E4M3.encode(scale / whole).clamp_(min=1)
        return Scale(codes, _E4M3.decode(codes) * whole, whole)
    if form.storage == "uint8":
        fitted = fit_outer(form, scale) if outer is None else outer.to(torch.float32)
        assert fitted is not None
        codes, effective = double.encode(scale, fitted[1:], fitted[:1])
        return Scale(codes, effective, fitted[1:], fitted[:1])
    if form.storage == "int8":
        by_row = fit_outer(form, scale, 1.0) if outer is None else outer
        assert by_row is not None
        spread = by_row.to(torch.float32).view(-1, 1)
        whole = (scale / spread).round_().clamp_(1, 127)
        return Scale(whole.to(torch.uint8), whole * spread, by_row)
    return _store_float(scale, form.storage)


def _store_float(scale: Tensor, storage: str) -> Scale:
    dtype = FLOAT_STORAGE[storage]
    if storage == "fp16":
        # The coarse scales below the normal range are rounded up: rounded down they would clip the largest values.
        scale = torch.where(scale < 2.0**-14, (scale * 2.0**24).ceil() * 2.0**-24, scale)
    stored = scale.clamp(min=SMALLEST_SCALE).to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise InputError(f"a scale of {float(scale.max()):.3g} does not fit {storage}; use scale=bf16 or scale=fp32")
    return Scale(stored, stored.to(torch.float32))


def load(form: ScaleFormat, stored: Tensor, step_exponent: int, outer: Tensor | None, offset: Tensor | None) -> Scale:
    """Return the :class:`Scale` of stored values (inverse of :func:`store`).

    Raises:
        InputError: an outer level is missing, or a stored scale is not positive and finite.
    """
    if form.storage == "e8m0":
        effective = power_of_two(stored.to(torch.int32).clamp(max=254)) * 2.0**step_exponent
        if bool((stored == 255).any()):
            raise InputError("an E8M0 scale is NaN (255); the file is damaged, quantize again")
    elif form.storage == "e4m3":
        if outer is None:
            raise InputError("E4M3 scales need their tensor scale 'scale_outer'; the file is incomplete")
        effective = _E4M3.decode(stored) * outer
    elif form.storage == "int8":
        if outer is None:
            raise InputError("whole scales need their rows' scales 'scale_outer'; the file is incomplete")
        effective = stored.to(torch.float32) * outer.to(torch.float32).view(-1, 1)
    elif form.storage == "uint8":
        if outer is None or offset is None:
            raise InputError("double-quantized scales need 'scale_outer' and 'scale_offset'; the file is incomplete")
        effective = double.decode(stored, outer, offset)
    else:
        effective = stored.to(torch.float32)
    if not bool((torch.isfinite(effective) & (effective > 0)).all()):
        raise InputError("a stored scale is zero, negative, infinite or NaN; the file is damaged, quantize again")
    return Scale(stored, effective, outer, offset)


def fit_outer(form: ScaleFormat, scale: Tensor, reach: Tensor | float = 1.0) -> Tensor | None:
    """Return the outer values for all scales of a tensor: ``[1]`` (NVFP4), ``[1 + blocks]`` (offset first), ``[rows]``
    (whole scales), or None. ``reach`` is how far a level can lie from the zero point, which whole scales need.

    NVFP4: the largest scale over 448, so that with ``scale = absmax / 6`` it is ``absmax / (448 * 6)``. Tensors that
    must share it (fused q, k, v) take the largest of theirs. Whole scales: the row's farthest value over 119, so that a
    scale that is rounded up by a half takes no value beyond 127.
    """
    if form.outer is None:
        return None
    if form.outer.rows:
        return _store_float((scale.to(torch.float32) * reach).amax(dim=1) / PROTECTED, "fp16").stored
    if form.storage == "e4m3":
        largest = scale.to(torch.float32).max().reshape(1)
        # A tensor of zeros has only the smallest scales; 1 keeps their product away from zero.
        nothing = largest <= SMALLEST_SCALE
        return torch.where(nothing, torch.ones_like(largest), (largest / _E4M3.max_level).clamp(min=SMALLEST_SCALE))
    return double.fit(scale)
