"""Nearest points of vector codebooks: sums of several codebooks by beam search, E8P by its structure.

These are the definitions; compiled code gives the same codes. Every sum is taken in fp32 in the order that is stated,
product by product and without fused operations; of equally good candidates the first one wins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.native import vectors as compiled

_CANDIDATES = 1 << 20
"""Scores that are held at once."""

_FAR = 1e30
"""What larger values are cut to: no product overflows, so all scores compare."""


def half_norms(books: Tensor) -> Tensor:
    """Return fp32 ``[..., entries]``: half the squared length of entries ``[..., entries, span]``, summed in order."""
    total = torch.zeros(books.shape[:-1], device=books.device)
    for column in range(books.shape[-1]):
        total = total + books[..., column] * books[..., column]
    return total * 0.5


def scores(x: Tensor, book: Tensor, half: Tensor) -> Tensor:
    """Return fp32 ``[n, entries]``: ``x . c - |c|^2 / 2`` of vectors ``x[n, span]``; the largest is the nearest."""
    total = x[:, :1] * book[:, 0]
    for column in range(1, x.shape[1]):
        total = total + x[:, column : column + 1] * book[:, column]
    return total.sub_(half)


def beam_search(x: Tensor, books: Tensor, beam: int = 1) -> Tensor:
    """Return int32 indices ``[n, m]`` of entries of ``books[m, entries, span]`` whose sum is near ``x[n, span]``.

    Codebook after codebook the ``beam`` best partial sums are kept. The gain of a partial sum is that of the one that
    it extends plus the score of the new entry against what that one leaves (``x`` less its entries, one after the
    other); candidates are ordered by gain, then by the place of the extended sum, then by the index of the entry. With
    one codebook the result is the nearest entry, with ``beam`` of 1 the greedy one.
    """
    x, books = x.to(torch.float32), books.to(torch.float32)
    half = half_norms(books)
    found = compiled.beam_search(x, books, half, beam)
    return plain_beam_search(x, books, half, beam) if found is None else found


def plain_beam_search(x: Tensor, books: Tensor, half: Tensor, beam: int) -> Tensor:
    """The definition of :func:`beam_search`."""
    x = x.clamp(-_FAR, _FAR)
    step = max(1, _CANDIDATES // (books.shape[1] * beam))
    parts = [_beam_of(part, books, half, beam) for part in x.split(step)]
    return torch.cat(parts) if parts else torch.empty(0, len(books), dtype=torch.int32)


def _beam_of(x: Tensor, books: Tensor, half: Tensor, beam: int) -> Tensor:
    count, entries = x.shape[0], books.shape[1]
    rest, gain = x.unsqueeze(1), torch.zeros(count, 1, device=x.device)
    index = torch.empty(count, 1, 0, dtype=torch.int64, device=x.device)
    for book, norms in zip(books, half, strict=True):
        kept = rest.shape[1]
        found = scores(rest.reshape(-1, x.shape[1]), book, norms).view(count, kept, entries)
        flat = (gain.unsqueeze(2) + found).view(count, kept * entries)
        width = min(beam, kept * entries)
        # A stable sort keeps the order of places among equals; topk does not.
        gain, place = flat.max(1, keepdim=True) if width == 1 else _first_best(flat, width)
        parent, entry = place // entries, place % entries
        rest = rest.gather(1, parent.unsqueeze(2).expand(-1, -1, x.shape[1])) - book[entry]
        index = torch.cat([index.gather(1, parent.unsqueeze(2).expand(-1, -1, index.shape[2])), entry.unsqueeze(2)], 2)
    return index[:, 0].to(torch.int32)


def _first_best(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` largest of each row with their places, equal ones in the order of their places."""
    ordered, place = values.sort(dim=1, descending=True, stable=True)
    return ordered[:, :width], place[:, :width]


def nearest_e8p(x: Tensor, base: Tensor) -> Tensor:
    """Return int32 codes ``[n]`` of the points of E8P nearest to ``x[n, 8]``; ``base[256, 8]`` are its base points.

    For each shift s (+1/4, then -1/4) and each pattern of absolute values a the best signs are those of ``y = x - s``,
    unless they change an odd number of the base point's: then the coordinate with the smallest ``|y_j| a_j`` (the
    first of equals) takes the other sign. The gain is ``sum_j |y_j| a_j - |a|^2 / 2``, less twice that smallest product
    where a sign was given up, plus ``s sum_j x_j``, which is what the shift changes in the distance.
    """
    x, base = x.to(torch.float32), base.to(torch.float32)
    half = half_norms(base)
    found = compiled.nearest_e8p(x, base, half)
    return plain_nearest_e8p(x, base, half) if found is None else found


def plain_nearest_e8p(x: Tensor, base: Tensor, half: Tensor) -> Tensor:
    """The definition of :func:`nearest_e8p`."""
    x = x.clamp(-_FAR, _FAR)
    parts = [_e8p_of(part, base, half) for part in x.split(_CANDIDATES // (2 * len(base)))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def _e8p_of(x: Tensor, base: Tensor, half: Tensor) -> Tensor:
    size = base.abs()
    negative = base < 0
    total = x[:, 0]
    for column in range(1, x.shape[1]):
        total = total + x[:, column]
    best = torch.full_like(total, -torch.inf)
    code = torch.zeros(len(x), dtype=torch.int64)
    for sign, shift in ((0, 0.25), (1, -0.25)):
        y = x - shift
        length = y.abs()
        smallest = (length.unsqueeze(1) * size).amin(2)
        odd = ((y < 0).sum(1, keepdim=True) + negative.sum(1)) % 2 == 1
        gain = scores(length, size, half)
        gain = torch.where(odd, gain - (smallest + smallest), gain) + (shift * total).unsqueeze(1)
        value, pattern = gain.max(1)
        changes = _sign_changes(y, size[pattern], negative[pattern])
        better = value > best
        code = torch.where(better, pattern | changes << 8 | sign << 15, code)
        best = torch.where(better, value, best)
    return code.to(torch.int32)


def _sign_changes(y: Tensor, size: Tensor, negative: Tensor) -> Tensor:
    """The seven sign bits of the best signs for ``y[n, 8]`` on the patterns ``size`` whose base points are given."""
    change = (y < 0) ^ negative
    odd = change.sum(1) % 2 == 1
    given_up = (y.abs() * size).argmin(1, keepdim=True)
    change = change ^ (torch.zeros_like(change).scatter(1, given_up, True) & odd.unsqueeze(1))
    return (change[:, :7].to(torch.int64) << torch.arange(7)).sum(1)
