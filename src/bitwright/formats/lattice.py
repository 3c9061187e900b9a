"""The lattice codebooks of QuIP#: E8P of two bits per weight, and its residual codebooks of three and four.

Tseng et al. 2024 (arXiv:2402.04396, section 4): ``D8^`` is the set of vectors of eight halves of odd integers with an
even sum. ``E8 + 1/4`` is the union of ``D8^ + 1/4`` and ``D8^ - 1/4``, and up to signs ``D8^`` has few short vectors:
227 with a squared length of at most 10, to which 29 of length 12 are added. A point is then 8 bits for the absolute
values, 7 for sign changes (the eighth keeps the sum even) and one for the shift.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.search import beam_search, nearest_e8p
from bitwright.formats.vectors import join_words, split_words

SPAN = 8
SHIFT = 0.25

RESIDUAL_SCALE = {3: 1 / 2, 4: 2 / 7}
"""What the second codebook is multiplied by.

The squared error on normal weights is least near these fractions (docs/decisions.md, 17), and with them every level is
a whole number of steps of 1/4 (3 bits) and 1/28 (4 bits) that fits a byte.
"""


@functools.cache
def base_points() -> Tensor:
    """Return float32 ``[256, 8]``: one point of ``D8^`` for each pattern of absolute values, by length, then in order.

    All coordinates are positive but the last, which is negative where the sum would be odd. Of the patterns of squared
    length 12 the lexicographically first 29 are taken.
    """
    patterns = [p for p in itertools.product((0.5, 1.5, 2.5, 3.5), repeat=SPAN) if sum(v * v for v in p) <= 12]
    patterns.sort(key=lambda p: (sum(v * v for v in p), p))
    return torch.tensor([(*p[:-1], p[-1] if sum(p) % 2 == 0 else -p[-1]) for p in patterns[:256]])


@functools.cache
def sign_changes() -> Tensor:
    """Return float32 ``[128, 8]`` of -1 and 1: bit j of the index is the sign of coordinate j, the product is 1."""
    free = 1 - 2 * ((torch.arange(128).unsqueeze(1) >> torch.arange(7)) & 1)
    return torch.cat([free, free.prod(1, keepdim=True)], 1).float()


@functools.cache
def e8p_points() -> Tensor:
    """Return float32 ``[65536, 8]``: the point of every code.

    Bits 0..7 of a code are the pattern, 8..14 the sign changes, 15 the shift (0: +1/4, 1: -1/4).
    """
    whole = sign_changes().unsqueeze(1) * base_points()
    shift = torch.tensor([SHIFT, -SHIFT]).view(2, 1, 1, 1)
    return (whole + shift).reshape(-1, SPAN)


@functools.cache
def e8_points() -> Tensor:
    """Return float32 ``[256, 8]``: zero, the 240 shortest vectors of E8 and 15 of squared length 4, by length.

    E8 is the union of the integer vectors with an even sum and of ``D8^``. Of length 4 the points ``2 e_i`` and
    ``-2 e_i`` are taken but for the last.
    """
    whole = [p for p in itertools.product((-1.0, 0.0, 1.0), repeat=SPAN) if sum(v * v for v in p) in (0, 2)]
    half = [p for p in itertools.product((-0.5, 0.5), repeat=SPAN) if sum(p) % 2 == 0]
    long = [tuple(sign * 2.0 if i == j else 0.0 for j in range(SPAN)) for i in range(SPAN) for sign in (1, -1)]
    short = sorted(whole + half, key=lambda p: (sum(v * v for v in p), p))
    return torch.tensor(short + long[:15])


@dataclass(frozen=True)
class LatticeGrid:
    """Points of E8P for eight weights, alone (``e8p``) or with a second, finer codebook (``e8p3``, ``e8p4``).

    The second word follows the first: 8 bits of :func:`e8_points` or 16 of E8P, times :data:`RESIDUAL_SCALE`.

    Raises:
        InputError: bits other than 2, 3 or 4.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4):
            raise InputError(f"E8P has 2, 3 or 4 bits per weight, not {self.bits}; choose e8p, e8p3 or e8p4")

    @property
    def span(self) -> int:
        return SPAN

    @property
    def kind(self) -> str:
        return "vector"

    @property
    def text(self) -> str:
        return "e8p" if self.bits == 2 else f"e8p{self.bits}"

    @property
    def affine(self) -> bool:
        return False

    @property
    def max_level(self) -> float:
        """The largest coordinate of any point."""
        first = 2.5 + SHIFT
        if self.bits == 2:
            return first
        return first + RESIDUAL_SCALE[self.bits] * (2.0 if self.bits == 3 else first)

    @property
    def min_level(self) -> float:
        return -self.max_level

    @property
    def steps(self) -> int:
        """How many steps of the exact integer form make one: 4 times every coordinate of E8P is an integer."""
        return {2: 4, 3: 4, 4: 28}[self.bits]

    def levels(self) -> Tensor:
        raise InputError(f"the levels of {self.text} are vectors; use e8p_points")

    def encode(self, x: Tensor) -> Tensor:
        """Return uint8 codes of ``x[..., n]`` (n a multiple of 8): nearest points, the second to what the first leaves.

        See :func:`bitwright.formats.search.nearest_e8p` for the rule.
        """
        vectors = x.to(torch.float32).reshape(-1, SPAN)
        words = nearest_e8p(vectors, base_points()).to(torch.int64)
        if self.bits > 2:
            rest = (vectors - e8p_points()[words]) / RESIDUAL_SCALE[self.bits]
            if self.bits == 3:
                second = beam_search(rest, e8_points().unsqueeze(0), 1).view(-1)
            else:
                second = nearest_e8p(rest, base_points())
            words = words | second.to(torch.int64) << 16
        return split_words(words, SPAN, self.bits).view(x.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return float32 values of ``codes[..., n]``."""
        words = join_words(codes, SPAN, self.bits)
        value = e8p_points().to(codes.device)[words & 0xFFFF]
        if self.bits > 2:
            points = e8_points() if self.bits == 3 else e8p_points()
            # In whole steps, so that there is one rounding only: that of the quotient.
            finer = round(RESIDUAL_SCALE[self.bits] * self.steps)
            value = (value * self.steps + points.to(codes.device)[words >> 16] * finer) / self.steps
        return value.view(codes.shape)

    def round(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
