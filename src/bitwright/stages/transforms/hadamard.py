"""Hadamard matrices by construction, and the fast transform x -> x @ H (orthonormal, optionally with random signs).

A Hadamard matrix of order n has entries +-1 and ``H @ H.T == n * I``. Orders are built, never looked up: Sylvester's
doubling, the two constructions of Paley over finite fields (:mod:`bitwright.stages.transforms.paley`), four circulants
after Williamson for what these leave open, and Kronecker products of all of them.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native.hadamard import hadamard, serves
from bitwright.stages.transforms.paley import paley_one, paley_two
from bitwright.stages.transforms.williamson import williamson

# A dense factor of this order is applied as one matrix product; larger powers of two are split into such factors.
_RADIX = 64


def hadamard_matrix(n: int) -> Tensor | None:
    """Return a Hadamard matrix of order ``n`` (fp32, entries +-1), or ``None`` where nothing here constructs one."""
    matrix = _matrix(n) if n > 0 else None
    return None if matrix is None else torch.from_numpy(matrix.astype(np.float32))


@functools.cache
def hadamard_block(dim: int) -> int:
    """Return the largest divisor of ``dim`` that has a Hadamard matrix here (1 where ``dim`` is odd).

    A transform of ``dim`` channels is one matrix where the result equals ``dim`` and block-diagonal otherwise; callers
    say the second case in an event.

    Raises:
        InputError: if ``dim`` is not positive.
    """
    if dim < 1:
        raise InputError(f"a Hadamard transform needs at least one channel, not {dim}")
    divisors = [d for d in range(1, dim + 1) if dim % d == 0]
    return next(d for d in reversed(divisors) if _base(d) is not None)


def random_signs(dim: int, seed: int) -> Tensor:
    """Return ``dim`` random signs (fp32 +-1) that depend on ``dim`` and ``seed`` only, on every machine and version."""
    digest = hashlib.shake_256(f"bitwright signs {dim} {seed}".encode()).digest((dim + 7) // 8)
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:dim]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


def apply_hadamard(x: Tensor, size: int, seed: int = -1, inverse: bool = False) -> Tensor:
    """Rotate the last axis of ``x[..., dim]`` in blocks of ``size``: ``x -> (x * signs) @ H / sqrt(size)``.

    ``seed`` draws the signs (-1: none). The rotation is orthogonal, so the same call on the rows of ``w[out, in]``
    keeps ``x @ w.T``. ``inverse`` undoes it: ``x -> (x @ H.T / sqrt(size)) * signs``. Computed in fp32 (fp64 for
    fp64), returned in the dtype of ``x``; the cost is ``O(dim log size)`` for powers of two. Compiled kernels add in
    another order than torch's products: equal within the rounding of fp32.

    Raises:
        InputError: if ``size`` does not divide ``dim`` or has no Hadamard matrix.
    """
    dim = x.shape[-1]
    base = _base(size) if size > 0 else None
    if base is None or dim % size:
        raise InputError(
            f"no Hadamard transform in blocks of {size} for {dim} channels; use size={hadamard_block(max(dim, 1))}"
        )
    if serves(x, size // base):
        factor = None if base == 1 else _factor(base) if inverse else _factor(base).T
        return hadamard(x, size, factor, None if seed < 0 else random_signs(dim, seed), inverse)
    work = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    signs = None if seed < 0 else random_signs(dim, seed).to(device=x.device, dtype=work.dtype)
    if signs is not None and not inverse:
        work = work * signs
    work = _multiply(work.reshape(-1, size), size, base, inverse).reshape(x.shape)
    work = work / math.sqrt(size)
    if signs is not None and inverse:
        work = work * signs
    return work.to(x.dtype)


def is_product(dim: int, inner: int) -> bool:
    """Whether the matrix of order ``dim`` is that of order ``dim / inner`` times (Kronecker) that of ``inner``.

    Then a transform of ``dim`` channels without signs, followed by one in blocks of ``inner``, mixes the blocks only:
    Sylvester's matrices are their own inverses up to a factor.
    """
    base = _base(dim)
    power_of_two = inner > 0 and inner & (inner - 1) == 0
    return power_of_two and dim % inner == 0 and base is not None and (dim // inner) % base == 0


def apply_mean_keeping(x: Tensor, size: int, seed: int = -1) -> Tensor:
    """Rotate the last axis of ``x[..., dim]`` by an orthogonal Q that maps the vector of ones to itself.

    ``Q = R P`` with the randomised Hadamard transform R of :func:`apply_hadamard` and the Householder reflection P
    that brings the turned ones back: one more product with a vector. The mean over the channels and the length of
    what is left of a vector without it stay, so ``normalise(x Q) = normalise(x) Q`` for a layer norm without gain.

    Raises:
        InputError: as :func:`apply_hadamard`.
    """
    ones = torch.full((x.shape[-1],), x.shape[-1] ** -0.5, dtype=torch.float64)
    normal = apply_hadamard(ones, size, seed) - ones
    length = float(normal.norm())
    turned = apply_hadamard(x, size, seed)
    if length < 1e-12:  # the ones stayed where they were
        return turned
    normal = (normal / length).to(turned)
    return turned - (turned @ normal).unsqueeze(-1) * (2 * normal)


def _multiply(x: Tensor, size: int, base: int, transpose: bool) -> Tensor:
    """``x[rows, size] @ H`` for ``H = H_base (x) H_2 (x) H_2 ...``, one small dense product per factor."""
    inner = size
    for order in (base, *_radices(size // base)):
        if order == 1:
            continue
        inner //= order
        factor = _factor(order).to(device=x.device, dtype=x.dtype)
        # Row vectors times H on one axis: the transposed factor acts from the left.
        factor = factor if transpose else factor.T
        x = torch.matmul(factor, x.reshape(-1, order, inner))
    return x.reshape(-1, size)


def _radices(power: int) -> list[int]:
    """Factors of at most ``_RADIX`` whose product is the power of two ``power``."""
    radices = []
    while power > 1:
        radices.append(min(power, _RADIX))
        power //= radices[-1]
    return radices


@functools.lru_cache(maxsize=64)
def _factor(order: int) -> Tensor:
    matrix = hadamard_matrix(order)
    assert matrix is not None
    return matrix


@functools.cache
def _base(n: int) -> int | None:
    """Return the smallest order b with ``n = b * 2^k`` that has a matrix of its own, or ``None``."""
    power = n & -n
    odd = n // power
    if odd == 1:
        return 1
    base = odd
    while base <= n:
        if base % 4 == 0 and _matrix(base) is not None:
            return base
        base *= 2
    return None


@functools.lru_cache(maxsize=64)
def _matrix(n: int) -> np.ndarray | None:
    """A Hadamard matrix of order ``n`` as int8, or ``None``."""
    if n & (n - 1) == 0:
        # Sylvester's matrices for powers of two: a fast kernel can run them as butterflies.
        matrix = np.ones((1, 1), dtype=np.int8)
        while len(matrix) < n:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return matrix
    if n % 4:
        return None
    found = paley_one(n)
    if found is None:
        found = paley_two(n)
    if found is None:
        found = _product(n)
    return williamson(n) if found is None else found


def _product(n: int) -> np.ndarray | None:
    """A Kronecker product of two smaller orders, Sylvester's doubling first."""
    for left in range(2, math.isqrt(n) + 1):
        if n % left == 0:
            first, second = _matrix(left), _matrix(n // left)
            if first is not None and second is not None:
                return np.kron(first, second).astype(np.int8)
    return None
