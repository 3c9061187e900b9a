"""Trellis codes: a weight is a function of the last bits of a stream of codes (QTIP, arXiv:2406.11235).

A run of ``span`` weights of one row is coded by ``bits`` bits each. The *state* of a weight is made of the last
``state_bits`` bits of codes up to its own, the newest lowest; before the first code of a run stands the last one (a
tail-biting bitshift trellis), so no start is stored. What a state means is computed from it: a linear congruence makes
a pseudo-random word, and a few instructions a number that is close to normal. So 2^16 levels need no table, and every
weight decodes by itself.

QTIP codes tiles of 16 x 16 weights, whose rows and columns its GPU products multiply together. Here a run lies along
the input of one row: a product on a processor then decodes 16 rows side by side, a scale belongs to a row, and
second-order rounding feeds back what a run missed to the 256 columns after it instead of to the next 16. Of a random
matrix both runs are the same 256 numbers.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.trellis import search

CODES = ("1mad", "3inst")
"""Computed codes: the sum of four bytes; the sum of two fp16 numbers."""

STATE_BITS = 16
SPAN = 256

_MASK = 0xFFFFFFFF
_FAR = 1024.0


@dataclass(frozen=True)
class TrellisGrid:
    """A bitshift trellis with a computed code (text ``trellis2``, ``trellis3-3inst``).

    Args:
        bits: of a code, 1 to 4.
        code: ``1mad`` or ``3inst``.
        state_bits: bits that decide a level, at most 16.
        span: weights of a run.

    Raises:
        InputError: a code that there is not, or sizes that do not fit each other.
    """

    bits: int
    code: str = "1mad"
    state_bits: int = STATE_BITS
    span: int = SPAN

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 4:
            raise InputError(f"trellis codes have 1 to 4 bits, not {self.bits}; choose trellis1 to trellis4")
        if self.code not in CODES:
            raise InputError(f"there is no trellis code {self.code!r}; choose {' or '.join(CODES)}")
        if not max(2 * self.bits, self.bits + 4) <= self.state_bits <= STATE_BITS:
            least = max(2 * self.bits, self.bits + 4)
            raise InputError(f"a state of {self.bits}-bit codes has {least} to 16 bits, not {self.state_bits}")
        if self.span * self.bits < self.state_bits or self.span > 1 << 16:
            raise InputError(f"a run of {self.span} codes does not hold {self.state_bits} bits; take a longer one")

    @property
    def kind(self) -> str:
        return "trellis"

    @property
    def text(self) -> str:
        """``trellis2``, and what differs from 1MAD, 16 bits of state and runs of 256: ``trellis2-3inst-l12-t128``."""
        words = [f"trellis{self.bits}"]
        words += [self.code] if self.code != CODES[0] else []
        words += [f"l{self.state_bits}"] if self.state_bits != STATE_BITS else []
        words += [f"t{self.span}"] if self.span != SPAN else []
        return "-".join(words)

    @property
    def affine(self) -> bool:
        return False

    @property
    def max_level(self) -> float:
        """The largest level of any state."""
        return float(self.values().max())

    @property
    def min_level(self) -> float:
        return float(self.values().min())

    def levels(self) -> Tensor:
        raise InputError(f"a code of {self.text} has no level of its own; see TrellisGrid.values for those of states")

    def numbers(self) -> Tensor:
        """Return float64 ``[2^state_bits]``: what the code computes of every state, before it is normalised."""
        states = torch.arange(1 << self.state_bits)
        return _one_mad(states) if self.code == "1mad" else _three_inst(states)

    def normal(self) -> tuple[float, float]:
        """Return mean and standard deviation of the numbers over all states."""
        return _normal(self)

    def values(self) -> Tensor:
        """Return float32 ``[2^state_bits]``: the levels of all states, of mean 0 and variance 1."""
        return _values(self)

    def states(self, codes: Tensor) -> Tensor:
        """Return int32 states of uint8 ``codes[..., n * span]``."""
        runs = self._runs(codes).to(torch.int32)
        state = torch.zeros_like(runs)
        for back in range(-(-self.state_bits // self.bits)):
            state |= runs.roll(back, -1) << (back * self.bits)
        return (state & ((1 << self.state_bits) - 1)).view(codes.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 levels of uint8 ``codes[..., n * span]``."""
        states = self.states(codes)
        return self.values().to(codes.device).index_select(0, states.view(-1)).view(codes.shape)

    def round(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def encode(self, x: Tensor, importance: Tensor | None = None, around: int | None = None) -> Tensor:
        """Return uint8 codes of ``x[..., n * span]`` by the compiled search, or by :func:`viterbi` without one.

        ``importance`` (``[n * span]``, positive) weighs the squared errors of a column. ``around``: columns on each
        side of the seam between a run's end and its beginning that choose the bits across it (by default half a run:
        the paper's algorithm 4). Values beyond +-1024 count as +-1024, so that sums of squares stay exact enough.

        Raises:
            InputError: NaN or Inf in ``x``, or columns that are no whole runs.
        """
        self._runs(x)
        x = x.to(torch.float32)
        weight = None if importance is None else importance.to(torch.float32)
        if not bool(torch.isfinite(x).all()) or (weight is not None and not bool((weight >= 0).all())):
            raise InputError("trellis codes are sought for finite values and importances that are not negative")
        around = self._around(around)
        x = x.clamp(-_FAR, _FAR)
        found = search(x, self.values(), self.bits, self.state_bits, self.span, around, weight)
        return viterbi(self, x, weight, around) if found is None else found

    def _runs(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.span or not x.numel():
            raise InputError(f"trellis codes come in runs of {self.span} columns; {x.shape[-1]} are no whole runs")
        return x.reshape(*x.shape[:-1], -1, self.span)

    def _around(self, around: int | None) -> int:
        return max(self.span // 2, 1) if around is None else min(max(around, 1), self.span)


def _congruence(states: Tensor, factor: int, summand: int) -> Tensor:
    return (states.to(torch.int64) * factor + summand) & _MASK


def _one_mad(states: Tensor) -> Tensor:
    """Sum of the four bytes of a word (algorithm 1)."""
    word = _congruence(states, 34038481, 76625530)
    return sum((word >> shift & 255 for shift in (8, 16, 24)), word & 255).to(torch.float64)


def _three_inst(states: Tensor) -> Tensor:
    """Sum of two fp16 numbers (algorithm 2): sign, mantissa and two exponent bits of 0.922, turned by a word.

    The paper adds them in fp16; here the sum is exact.
    """
    word = _congruence(states, 89226354, 64248484)
    start = int(torch.tensor(0.922, dtype=torch.float16).view(torch.int16))
    half = [(part & 0x8FFF) ^ start for part in (word & 0xFFFF, word >> 16)]
    low, high = ((part - (part >> 15 << 16)).to(torch.int16).view(torch.float16).to(torch.float64) for part in half)
    return low + high


@functools.cache
def _normal(trellis: TrellisGrid) -> tuple[float, float]:
    numbers = trellis.numbers()
    mean = float(numbers.mean())
    return mean, math.sqrt(float((numbers - mean).square().mean()))


@functools.cache
def _values(trellis: TrellisGrid) -> Tensor:
    mean, deviation = trellis.normal()
    return ((trellis.numbers() - mean) / deviation).to(torch.float32)


def viterbi(trellis: TrellisGrid, x: Tensor, importance: Tensor | None = None, around: int | None = None) -> Tensor:
    """Return uint8 codes of float32 ``x[..., n * span]``: the definition of the compiled search, equal in every code.

    Two passes of Viterbi's algorithm (algorithm 4): the first over ``2 * around`` columns with the run's seam in
    their middle, free at both ends; the bits that its best path carries across the seam then bind both ends of the
    second. Sums in float32: the difference, times the importance, then fused with the cost before. Ties go to the
    smaller state.
    """
    runs = trellis._runs(x).reshape(-1, trellis.span)
    weight = torch.ones(x.shape[-1]) if importance is None else importance
    weights = trellis._runs(weight).repeat(x[..., 0].numel(), 1)
    around = trellis._around(around)
    kept = 1 << (trellis.state_bits - trellis.bits)
    columns = [(trellis.span - around + i) % trellis.span for i in range(2 * around)]
    free = torch.zeros(len(runs), kept)
    last, choices = _forward(trellis, runs[:, columns], weights[:, columns], free)
    place, _ = _backward(trellis, last.argmin(1), choices[around:])
    bound = torch.full((len(runs), kept), math.inf).scatter_(1, place[:, None], 0.0)
    _, choices = _forward(trellis, runs, weights, bound)
    return _backward(trellis, place, choices)[1].view(x.shape)


def _forward(trellis: TrellisGrid, x: Tensor, weights: Tensor, worth: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the least cost of every place after the last column, and each column's choice of the dropped bits."""
    values, choices = trellis.values(), []
    for column in range(x.shape[1]):
        miss = x[:, column, None] - values
        cost = _fused(weights[:, column, None] * miss, miss, worth.repeat_interleave(1 << trellis.bits, 1))
        # On ties min takes any of the places; the first is wanted.
        by_dropped = cost.view(len(x), 1 << trellis.bits, -1)
        worth = by_dropped.amin(1)
        choices.append((by_dropped == worth[:, None]).to(torch.uint8).argmax(1))
    return worth, choices


def _backward(trellis: TrellisGrid, place: Tensor, choices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Follow the best path back: the place before the first of these columns, and the codes."""
    codes = []
    for choice in reversed(choices):
        state = place + (choice.gather(1, place[:, None])[:, 0] << (trellis.state_bits - trellis.bits))
        codes.append((state & ((1 << trellis.bits) - 1)).to(torch.uint8))
        place = state >> trellis.bits
    return place, torch.stack(codes[::-1], 1)


def _fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``a * b + c`` of float32 numbers, rounded once.

    The product is exact in float64. Their sum is made odd in its last bit where it is not exact, so that rounding it
    again gives what one rounding would.
    """
    product, summand = a.to(torch.float64) * b.to(torch.float64), c.to(torch.float64).expand(len(a), -1)
    total = product + summand
    part = total - product
    error = (product - (total - part)) + (summand - part)
    bits = total.view(torch.int64)
    exact = (error == 0) | ~torch.isfinite(total) | (bits & 1 == 1)
    towards = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(exact, bits, bits + towards).view(torch.float64).to(torch.float32)


def trellis_grid(word: str) -> TrellisGrid:
    """Return the grid of a word such as ``trellis2`` or ``trellis2-3inst-l12-t128``; ``text`` is the inverse.

    Raises:
        InputError: a word that names none.
    """
    match = re.fullmatch(r"trellis([0-9]{1,3})(?:-(1mad|3inst))?(?:-l([0-9]{1,3}))?(?:-t([0-9]{1,6}))?", word)
    if match is None:
        raise InputError(f"{word!r} is no trellis; write e.g. trellis2, trellis3-3inst or trellis2-l12-t128")
    bits, code, state_bits, span = match.groups()
    return TrellisGrid(int(bits), code or CODES[0], int(state_bits or STATE_BITS), int(span or SPAN))
