"""Correlation of two rows of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.errors import InputError


def ranks(values: Tensor) -> Tensor:
    """Return ranks 1..n as float64; equal values share the mean of their ranks."""
    ordered, order = values.double().sort(stable=True)
    _, group, size = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    last = size.cumsum(0).double()
    mean = last - (size.double() - 1) / 2
    result = torch.empty(len(values), dtype=torch.float64)
    result[order] = mean[group]
    return result


def pearson(first: Tensor, second: Tensor) -> float:
    """Return the linear correlation of two 1-D tensors (nan where one of them is constant).

    Raises:
        InputError: if they differ in length or have fewer than two values.
    """
    _check(first, second)
    a, b = first.double() - first.double().mean(), second.double() - second.double().mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else math.nan


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise InputError("a correlation needs two rows of equal length, at least two values each; mend the data")


def spearman(first: Tensor, second: Tensor) -> float:
    """Return the rank correlation of two 1-D tensors: Pearson's of their ranks, ties sharing the mean rank.

    Raises:
        InputError: as :func:`pearson`.
    """
    _check(first, second)
    return pearson(ranks(first), ranks(second))
