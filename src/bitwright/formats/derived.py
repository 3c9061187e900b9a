"""Tables of levels that follow from a definition: quantiles of the normal law, Lloyd-Max, powers of two, trees."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from bitwright.errors import InputError


@functools.cache
def normal_float(bits: int) -> tuple[float, ...]:
    """Return the NormalFloat levels, ascending, from -1 to 1 with an exact zero (QLoRA, arXiv:2305.14314, eq. 4).

    ``2^(b-1)`` quantiles of the normal law serve the positive side and one fewer the negative side. The outermost
    probability is the mean of the two that each side would choose for itself, and the largest quantile becomes 1.
    """
    levels = 1 << bits
    outer = 1 - (1 / (2 * (levels - 1)) + 1 / (2 * levels)) / 2
    half = levels // 2
    positive = torch.special.ndtri(torch.linspace(outer, 0.5, half + 1, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(outer, 0.5, half, dtype=torch.float64)[:-1])
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return tuple((values / values.max()).tolist())


def _normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@functools.cache
def lloyd_max(bits: int) -> tuple[float, ...]:
    """Return the ``2^bits`` levels that minimise the squared error of a unit normal variable (Lloyd 1957, Max 1960).

    Every level is the mean of its cell and every border the middle of two levels; Newton's method solves for the
    fixed point in float64. Mean squared errors for 1 to 4 bits: 0.3634, 0.1175, 0.03454, 0.009497.
    """
    count = 1 << bits
    probability = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # The best density of levels is the cube root of the law's own: a normal law three times as wide (Panter and Dite).
    levels = torch.special.ndtri(probability) * math.sqrt(3.0)
    for _ in range(100):
        border = (levels[1:] + levels[:-1]) / 2
        infinity = torch.full((1,), math.inf, dtype=torch.float64)
        edge = torch.cat([-infinity, border, infinity])
        density = _normal_pdf(edge)
        # Far right of zero the distribution function is 1 in float64; its mirror image keeps the digits.
        tail = torch.special.ndtr(-edge.abs())
        across = 1 - tail[1:] - tail[:-1]
        mass = torch.where(edge[1:] <= 0, tail.diff(), torch.where(edge[:-1] >= 0, -tail.diff(), across))
        mean = -density.diff() / mass
        weighted = torch.where(edge.isinf(), torch.zeros_like(edge), edge) * density
        # Derivatives of the cell's mean with respect to its lower and upper border.
        lower = (mean * density[:-1] - weighted[:-1]) / mass
        upper = (weighted[1:] - mean * density[1:]) / mass
        jacobian = torch.diag((lower + upper) / 2 - 1)
        jacobian += torch.diag(lower[1:] / 2, -1) + torch.diag(upper[:-1] / 2, 1)
        step = torch.linalg.solve(jacobian, mean - levels)
        levels = (levels - step).sort().values
        if float(step.abs().max()) < 1e-11:
            break
    return tuple(((levels - levels.flip(0)) / 2).tolist())


@functools.cache
def bitsandbytes_fp4() -> tuple[float, ...]:
    """Return the 16 levels of bitsandbytes' FP4 in code order, largest 1; code = sign, two exponent bits, mantissa.

    Its exponent field counts down: field f > 0 is ``2^(4-f) * (1 + m/2)``, field 0 is ``m * 2^-4``, all over 12.
    """
    positive = [m * 2.0**-4 if f == 0 else 2.0 ** (4 - f) * (1 + m / 2) for f in range(4) for m in range(2)]
    return tuple(sign * value / 12 for sign in (1.0, -1.0) for value in positive)


@functools.cache
def power_of_two(bits: int) -> tuple[float, ...]:
    """Return zero and ``+-2^-k`` for ``k < 2^(b-1) - 1``, ascending: ``2^b - 1`` levels."""
    magnitudes = [2.0**-k for k in range((1 << (bits - 1)) - 1)]
    return tuple(sorted({0.0, *magnitudes, *(-m for m in magnitudes)}))


@functools.cache
def additive_power_of_two(bits: int) -> tuple[float, ...]:
    """Return the additive powers of two of ``b`` bits, ascending, largest 1 (APoT, arXiv:1909.13144, eq. 5).

    A magnitude of ``b - 1`` bits is a sum of terms, two bits each (zero or one of three powers of two) and one term of
    one bit where the count is odd; the exponents -1, -2, -3, ... are dealt to the terms in turn.
    """
    pairs, single = divmod(bits - 1, 2)
    terms: list[list[float]] = [[0.0] for _ in range(pairs + single)]
    room = [3] * pairs + [1] * single
    # The short term is dealt its only power in the third round's place, after two rounds over the others.
    turns = list(range(pairs)) * 2 + [pairs] * single + list(range(pairs))
    for exponent, term in enumerate(turns, start=1):
        if room[term]:
            terms[term].append(2.0**-exponent)
            room[term] -= 1
    sums = {sum(choice) for choice in itertools.product(*terms)}
    largest = max(sums)
    return tuple(sorted({sign * value / largest for value in sums for sign in (1.0, -1.0)}))


@functools.cache
def bipolar(bits: int) -> tuple[float, ...]:
    """Return the odd integers from ``1 - 2^b`` to ``2^b - 1``, ascending: every bit i means plus or minus ``2^i``.

    Bipolar integers (APT-LLM, arXiv:2409.17870, section 3.2): symmetric about zero, which is no level.
    """
    top = (1 << bits) - 1
    return tuple(float(value) for value in range(-top, top + 1, 2))


@functools.cache
def dynamic_tree() -> tuple[float, ...]:
    """Return the 256 ascending levels of the signed dynamic 8-bit map (Dettmers et al., arXiv:2110.02861, section 1.3).

    Decade ``10^(i-6)`` for i = 0..6 holds ``2^i`` evenly spaced values on each side, the middles of equal parts of
    [0.1, 1]; zero and one complete the table. It codes the scales of double quantization.
    """
    values = [0.0, 1.0]
    for i in range(7):
        parts = 1 << i
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64)
        for middle in ((edges[1:] + edges[:-1]) / 2).tolist():
            values += [middle * 10.0 ** (i - 6), -middle * 10.0 ** (i - 6)]
    return tuple(sorted(values))


def derived_table(word: str) -> tuple[float, ...] | None:
    """Return the levels that a table's name stands for, or None if it is no such name.

    Names: ``nf2..nf4`` (any of 2 to 8), ``lloyd1..lloyd8``, ``fp4-bnb``, ``pot2..pot6``, ``apot2..apot8``,
    ``bipolar1..bipolar8``, ``ternary``, ``binary``.

    Raises:
        InputError: a known name with a width that has no table.
    """
    fixed = {"ternary": (-1.0, 0.0, 1.0), "binary": (-1.0, 1.0)}
    if word in fixed:
        return fixed[word]
    if word == "fp4-bnb":
        return bitsandbytes_fp4()
    families = {
        "nf": (normal_float, 2, 8),
        "lloyd": (lloyd_max, 1, 8),
        "pot": (power_of_two, 2, 6),
        "apot": (additive_power_of_two, 2, 8),
        "bipolar": (bipolar, 1, 8),
    }
    name = word.rstrip("0123456789")
    if name not in families or not 1 <= len(word) - len(name) <= 9:
        return None
    make, low, high = families[name]
    bits = int(word[len(name) :])
    if not low <= bits <= high:
        raise InputError(f"{word} has no table; {name} has {low} to {high} bits, e.g. {name}{min(4, high)}")
    return make(bits)
