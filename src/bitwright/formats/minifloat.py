"""Minifloats of 3 to 8 bits: levels, and rounding by arithmetic on the bits of float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError

Convention = Literal["ocp", "fn", "ieee"]

# Eight-bit types whose usual form has infinities (ml_dtypes float8_e5m2, float8_e3m4); OCP MX v1.0, section 5.3.
_IEEE_BY_DEFAULT = {(5, 2), (3, 4)}

_EXPONENT_MASK = 0x7F800000


def default_convention(exponent: int, mantissa: int) -> Literal["fn", "ieee"]:
    """Return what the plain name ``eEmM`` means: IEEE for e5m2 and e3m4, else finite."""
    return "ieee" if (exponent, mantissa) in _IEEE_BY_DEFAULT else "fn"


@dataclass(frozen=True)
class MiniFloat:
    """A sign, ``exponent`` and ``mantissa`` bits; the code is the bit pattern ``sign|exponent|mantissa``.

    Conventions: ``fn`` is finite (below 8 bits every pattern is a number; at 8 bits the pattern of all ones is NaN);
    ``ieee`` keeps the top exponent for infinities and NaN; ``ocp`` is what the OCP specification or common use says
    for this type and is replaced by one of the other two. The bias is ``2^(e-1) - 1``. Levels equal those of
    ml_dtypes' types of the same name.

    Raises:
        InputError: fewer than 3 or more than 8 bits, no exponent bits, or IEEE without room for a NaN.
    """

    exponent: int
    mantissa: int
    convention: Convention = "ocp"

    def __post_init__(self) -> None:
        name = f"e{self.exponent}m{self.mantissa}"
        if self.exponent < 1 or self.mantissa < 0 or not 3 <= self.bits <= 8:
            raise InputError(f"{name} is no minifloat of 3 to 8 bits with a sign; e.g. e2m1, e3m2, e4m3, e5m2")
        if self.convention not in ("ocp", "fn", "ieee"):
            raise InputError(f"unknown minifloat convention {self.convention!r}; valid: fn, ieee, ocp")
        if self.convention == "ieee" and (self.mantissa == 0 or self.exponent == 1):
            raise InputError(f"{name} has no room for IEEE infinities and NaN; use {name}fn")
        if self.convention == "ocp":
            object.__setattr__(self, "convention", default_convention(self.exponent, self.mantissa))

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def text(self) -> str:
        name = f"e{self.exponent}m{self.mantissa}"
        return name if self.convention == default_convention(self.exponent, self.mantissa) else name + self.convention

    @property
    def span(self) -> int:
        return 1

    @property
    def kind(self) -> str:
        return "table"

    @property
    def affine(self) -> bool:
        return False

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def has_infinity(self) -> bool:
        return self.convention == "ieee"

    @property
    def has_nan(self) -> bool:
        return self.convention == "ieee" or self.bits == 8

    @property
    def top_code(self) -> int:
        """The magnitude pattern of the largest finite level."""
        if self.convention == "ieee":
            return (((1 << self.exponent) - 1) << self.mantissa) - 1
        return (1 << (self.exponent + self.mantissa)) - (2 if self.bits == 8 else 1)

    def magnitude(self, code: int) -> float:
        """Return the value of a magnitude pattern, which must be a finite one."""
        field, fraction = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        significand = fraction + ((1 << self.mantissa) if field else 0)
        return float(significand) * 2.0 ** (max(field, 1) - self.bias - self.mantissa)

    @property
    def max_level(self) -> float:
        return self.magnitude(self.top_code)

    @property
    def min_level(self) -> float:
        return -self.max_level

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest finite level, ``emax`` of the OCP specification."""
        return max(self.top_code >> self.mantissa, 1) - self.bias

    def levels(self) -> Tensor:
        """Return float32 ``[2^bits]``; patterns of infinities and NaN hold those."""
        half = 1 << (self.bits - 1)
        values = [self.magnitude(code) for code in range(self.top_code + 1)]
        if self.has_infinity:
            values.append(float("inf"))
        values += [float("nan")] * (half - len(values))
        positive = torch.tensor(values, dtype=torch.float32)
        return torch.cat([positive, -positive])

    def _rounding_magic(self, magnitude: Tensor) -> Tensor:
        """Return, as int32 bits, the power of two whose last place is the distance of levels around ``magnitude``.

        Adding it to the magnitude makes the adder round to a level, ties to even.
        """
        bits = magnitude.view(torch.int32) & _EXPONENT_MASK
        smallest_normal = (1 - self.bias + 127) << 23
        return bits.clamp_(min=smallest_normal).add_((23 - self.mantissa) << 23)

    def encode(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32).contiguous()
        magnitude = x.abs().clamp_(max=self.max_level)
        magic = self._rounding_magic(magnitude)
        # steps: how many level distances from zero (or, in a binade, from zero extended down at that distance).
        steps = magnitude.add_(magic.view(torch.float32)).view(torch.int32).sub_(magic)
        lowest = (1 - self.bias + 127 + 23 - self.mantissa) << 23
        code = magic.sub_(lowest).bitwise_right_shift_(23 - self.mantissa).add_(steps)
        sign = x.view(torch.int32).bitwise_right_shift(31).bitwise_and_(1 << (self.bits - 1))
        return code.bitwise_or_(sign).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return take_levels(self.levels(), codes)

    def round(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32).contiguous()
        magnitude = x.abs().clamp_(max=self.max_level)
        magic = self._rounding_magic(magnitude).view(torch.float32)
        return magnitude.add_(magic).sub_(magic).copysign_(x)


def take_levels(levels: Tensor, codes: Tensor) -> Tensor:
    """Return ``levels[codes]`` in the shape of the codes (uint8), on their device."""
    index = codes.reshape(-1).to(torch.int32)
    return levels.to(codes.device).index_select(0, index).view(codes.shape)


def cast(x: Tensor, grid: MiniFloat, saturate: bool = True) -> Tensor:
    """Round to the minifloat ``grid`` (nearest, ties to even) and return the values as float32.

    NaN stays NaN where the type has one, else it becomes a zero (as ml_dtypes does). With ``saturate`` everything
    beyond the largest level becomes that level; without it, overflow gives the infinity of an IEEE type, the NaN of an
    8-bit finite one, and still saturates where the type has neither. A one-digit type (no mantissa) rounds ties to the
    larger magnitude (IEEE 754-2019, 4.3.1).
    """
    x = x.to(torch.float32)
    rounded = grid.round(x)
    is_nan = torch.isnan(x)
    if not grid.has_nan:
        return torch.where(is_nan, torch.zeros_like(x).copysign_(-x), rounded)
    rounded = torch.where(is_nan, x, rounded)
    if saturate:
        return rounded
    step = grid.max_level - grid.magnitude(grid.top_code - 1)
    overflow = float("inf") if grid.has_infinity else float("nan")
    # The last level keeps what rounds down to it: below half a step, and the tie too when the last pattern is even.
    half = x.abs() - grid.max_level
    beyond = (half > step / 2) | ((half == step / 2) & (grid.top_code % 2 == 1))
    return torch.where(beyond, torch.full_like(x, overflow).copysign_(x), rounded)
