"""Paley's two constructions of Hadamard matrices, over finite fields of any odd prime power.

R. E. A. C. Paley, "On orthogonal matrices", 1933: from the quadratic character chi of GF(q), the matrix
``Q[a, b] = chi(a - b)`` gives order q + 1 for q = 3 mod 4 and order 2(q + 1) for q = 1 mod 4.
"""

from __future__ import annotations

import itertools

import numpy as np


def paley_one(n: int) -> np.ndarray | None:
    """Return a Hadamard matrix of order ``n = q + 1``, q = 3 mod 4 a prime power, as int8; else ``None``."""
    q = n - 1
    if q % 4 != 3 or prime_power(q) is None:
        return None
    bordered = np.zeros((n, n), dtype=np.int8)
    bordered[0, 1:], bordered[1:, 0] = 1, -1
    bordered[1:, 1:] = _character_matrix(q)
    return bordered + np.eye(n, dtype=np.int8)


def paley_two(n: int) -> np.ndarray | None:
    """Return a Hadamard matrix of order ``n = 2(q + 1)``, q = 1 mod 4 a prime power, as int8; else ``None``."""
    q = n // 2 - 1
    if n % 2 or q % 4 != 1 or prime_power(q) is None:
        return None
    bordered = np.zeros((q + 1, q + 1), dtype=np.int8)
    bordered[0, 1:] = bordered[1:, 0] = 1
    bordered[1:, 1:] = _character_matrix(q)
    on_entries = np.array([[1, 1], [1, -1]], dtype=np.int8)
    on_diagonal = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(bordered, on_entries) + np.kron(np.eye(q + 1, dtype=np.int8), on_diagonal)


def prime_power(q: int) -> tuple[int, int] | None:
    """Return ``(p, k)`` with ``q = p^k`` and p prime, or ``None``."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k, rest = 0, q
    while rest % p == 0:
        rest //= p
        k += 1
    return (p, k) if rest == 1 else None


def _character_matrix(q: int) -> np.ndarray:
    """``chi(a - b)`` for all elements of GF(q): 1 for squares, -1 for the others, 0 on the diagonal; int8 [q, q]."""
    field = prime_power(q)
    assert field is not None
    p, k = field
    # Element number e has the base-p digits of e as the coefficients of its polynomial.
    digits = np.stack([(np.arange(q) // p**place) % p for place in range(k)], axis=1)
    squares = _squares(digits, p, k)
    character = np.full(q, -1, dtype=np.int8)
    character[_number(squares, p)] = 1
    character[0] = 0
    difference = (digits[:, None, :] - digits[None, :, :]) % p
    matrix: np.ndarray = character[_number(difference, p)]
    return matrix


def _number(digits: np.ndarray, p: int) -> np.ndarray:
    """Element number of polynomials ``digits[..., k]``."""
    number: np.ndarray = digits @ (p ** np.arange(digits.shape[-1]))
    return number


def _squares(digits: np.ndarray, p: int, k: int) -> np.ndarray:
    """Square every polynomial ``digits[q, k]`` modulo an irreducible one of degree k."""
    product = np.zeros((len(digits), 2 * k - 1), dtype=np.int64)
    for i, j in itertools.product(range(k), range(k)):
        product[:, i + j] += digits[:, i] * digits[:, j]
    low = _irreducible(p, k)
    for power in range(2 * k - 2, k - 1, -1):
        # x^k = -(low order part of the modulus)
        product[:, power - k : power] -= product[:, power : power + 1] * low
        product %= p
    return product[:, :k] % p


def _irreducible(p: int, k: int) -> np.ndarray:
    """Coefficients ``[k]`` below the leading one of the first monic irreducible polynomial of degree ``k`` over GF(p).

    A polynomial is irreducible when no monic polynomial of degree 1 to k/2 divides it.
    """
    for low in itertools.product(range(p), repeat=k):
        candidate = (*low, 1)
        if not any(
            _divides((*part, 1), candidate, p)
            for degree in range(1, k // 2 + 1)
            for part in itertools.product(range(p), repeat=degree)
        ):
            return np.array(low, dtype=np.int64)
    raise AssertionError("an irreducible polynomial exists for every degree")


def _divides(divisor: tuple[int, ...], polynomial: tuple[int, ...], p: int) -> bool:
    """Whether a monic ``divisor`` divides ``polynomial`` (coefficients from low to high) modulo ``p``."""
    rest = list(polynomial)
    degree = len(divisor) - 1
    for top in range(len(rest) - 1, degree - 1, -1):
        factor = rest[top]
        for i, coefficient in enumerate(divisor):
            rest[top - degree + i] = (rest[top - degree + i] - factor * coefficient) % p
    return not any(rest[:degree])
