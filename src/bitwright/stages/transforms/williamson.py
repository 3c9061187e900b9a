"""Hadamard matrices of order 4k from four symmetric circulants of order k (J. Williamson, 1944).

With ``A^2 + B^2 + C^2 + D^2 = 4k I`` for symmetric circulants of +-1, the quaternion-like array of the four is a
Hadamard matrix. The four are found by search: the autocorrelations of two pairs must cancel.
"""

from __future__ import annotations

import itertools

import numpy as np

# The search meets in the middle over 2^((k-1)/2) sequences; beyond this k it would take minutes. 92 = 4 * 23 is the
# smallest order that Paley's constructions and products leave open.
_MAX_K = 23


def williamson(n: int) -> np.ndarray | None:
    """Return a Hadamard matrix of order ``n = 4k`` for odd k up to 23 as int8, or ``None``."""
    k, rest = divmod(n, 4)
    if rest or k % 2 == 0 or k > _MAX_K:
        return None
    found = _search(k)
    if found is None:
        return None
    a, b, c, d = (_circulant(row) for row in found)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]).astype(np.int8)


def _circulant(row: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(row, shift) for shift in range(len(row))])


def _symmetric_rows(k: int) -> np.ndarray:
    """All symmetric first rows ``r[j] == r[k - j]`` with ``r[0] = 1``: int64 ``[2^((k-1)/2), k]``."""
    half = (k - 1) // 2
    bits = (np.arange(1 << half)[:, None] >> np.arange(half)) & 1
    signs = 2 * bits - 1
    return np.concatenate([np.ones((1 << half, 1), dtype=np.int64), signs, signs[:, ::-1]], axis=1)


def _search(k: int) -> tuple[np.ndarray, ...] | None:
    """Four rows whose periodic autocorrelations sum to zero at every shift but 0, or ``None``."""
    rows = _symmetric_rows(k)
    shifts = range(1, (k - 1) // 2 + 1)
    correlation = np.stack([(rows * np.roll(rows, shift, axis=1)).sum(axis=1) for shift in shifts], axis=1)
    # A random projection of the integer autocorrelations: equal keys are checked exactly afterwards.
    weights = np.random.default_rng(0).integers(1, 1 << 40, size=len(shifts))
    key = correlation @ weights
    by_sum: dict[int, np.ndarray] = {}
    sums = np.abs(rows.sum(axis=1))
    for total in np.unique(sums):
        by_sum[int(total)] = np.flatnonzero(sums == total)
    # The eigenvalue at frequency zero demands that the squares of the four row sums add up to 4k.
    for four in itertools.combinations_with_replacement(sorted(by_sum), 4):
        if sum(s * s for s in four) != 4 * k:
            continue
        found = _cancel([by_sum[s] for s in four], key, correlation)
        if found is not None:
            return tuple(rows[i] for i in found)
    return None


def _cancel(groups: list[np.ndarray], key: np.ndarray, correlation: np.ndarray) -> tuple[int, ...] | None:
    """One row of each group such that the four autocorrelations cancel, or ``None``."""
    left = (key[groups[0]][:, None] + key[groups[1]][None, :]).ravel()
    right = -(key[groups[2]][:, None] + key[groups[3]][None, :]).ravel()
    _, at_left, at_right = np.intersect1d(left, right, return_indices=True)
    for i, j in zip(at_left, at_right, strict=True):
        first, second = np.unravel_index(i, (len(groups[0]), len(groups[1])))
        third, fourth = np.unravel_index(j, (len(groups[2]), len(groups[3])))
        chosen = (groups[0][first], groups[1][second], groups[2][third], groups[3][fourth])
        if not np.any(sum(correlation[index] for index in chosen)):
            return tuple(int(index) for index in chosen)
    return None
