"""A measured number that carries its protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One measurement.

    Attributes:
        name: what was measured (``perplexity``, ``top-1``, ``spearman`` ...).
        value: the number.
        protocol: data set, split, tokenisation, context, stride, dtype, seed, number of tokens or samples.
        count: tokens or samples that entered the value.
        seconds: time that the measurement took.
        stderr: standard error of the value over the data, None where it is not defined.
    """

    name: str
    value: float
    protocol: str
    count: int
    seconds: float
    stderr: float | None = None

    @property
    def tokens(self) -> int:
        """The count under the name that language models use."""
        return self.count

    def __str__(self) -> str:
        error = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        return f"{self.name} {self.value:.4f}{error} ({self.protocol})"


def ratio_stderr(sums: list[float], counts: list[int]) -> float | None:
    """Return the standard error of ``sum(sums) / sum(counts)`` where the pairs (sequences) are independent draws.

    Tokens of one sequence are correlated, so sequences, not tokens, are the unit (ratio estimator, Cochran 1977,
    equation 2.46). None for fewer than two sequences.
    """
    n, total = len(sums), sum(counts)
    if n < 2 or total == 0:
        return None
    mean = sum(sums) / total
    spread = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return math.sqrt(n / (n - 1) * spread) / total
