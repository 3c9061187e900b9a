"""Grids of vectors: one code names the values of several neighbouring columns of a row.

The code of ``span`` weights is a word of ``span * bits`` bits. It is stored as the codes of its columns: column j of
the span holds the bits ``j * bits .. (j + 1) * bits - 1``, lowest first. So a row of packed codes is the row of its
words, and everything that packs, saves, cuts or counts codes treats vectors and scalars alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.search import beam_search
from bitwright.formats.tables import LearnedGrid

WORD_BITS = 63
"""The most bits of a word: it must fit a positive int64."""


def join_words(codes: Tensor, span: int, bits: int) -> Tensor:
    """Return int64 words ``[..., n / span]`` of uint8 column codes ``[..., n]``."""
    fields = codes.reshape(*codes.shape[:-1], -1, span)
    words = torch.zeros(fields.shape[:-1], dtype=torch.int64, device=codes.device)
    for column in range(span):
        words |= fields[..., column].to(torch.int64) << (column * bits)
    return words


def split_words(words: Tensor, span: int, bits: int) -> Tensor:
    """Return the uint8 column codes ``[..., n * span]`` of int64 words ``[..., n]`` (inverse of :func:`join_words`)."""
    shifts = torch.arange(0, span * bits, bits, device=words.device)
    fields = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return fields.to(torch.uint8).flatten(-2)


@dataclass(frozen=True)
class AdditiveGrid(LearnedGrid):
    """Sums of one entry from each of ``books`` learned codebooks of ``2^index_bits`` vectors (text ``vq2x8d8``).

    AQLM (Egiazarian et al. 2024, arXiv:2401.06118): ``w[8 columns] = scale * sum_m codebook[m, index_m]``. The
    codebooks ``[books, 2^index_bits, span]`` (fp16) are shared by the whole matrix and travel with it. Index m lies at
    the bits ``m * index_bits ..`` of the word; ``books * index_bits / span`` bits are stored per weight.

    ``levels``, ``encode``, ``decode`` and ``round`` of the plain grid are refused: use the format's own, which take the
    codebooks.

    Raises:
        InputError: sizes out of range, or a number of bits per weight that is not a whole one of 1 to 8.
    """

    books: int
    index_bits: int
    span: int

    def __post_init__(self) -> None:
        if not (1 <= self.books <= 8 and 1 <= self.index_bits <= 16 and 2 <= self.span <= 32):
            raise InputError(f"{self.text}: there are 1 to 8 codebooks of 1 to 16 bits and vectors of 2 to 32 weights")
        word = self.books * self.index_bits
        if word % self.span or not 1 <= word // self.span <= 8 or word > WORD_BITS:
            raise InputError(
                f"{self.text} stores {word} bits for {self.span} weights; that must be 1 to 8 whole bits for each and "
                f"at most {WORD_BITS} in all, e.g. vq2x8d8 or vq1x16d8"
            )

    @property
    def kind(self) -> str:
        return "vector"

    @property
    def bits(self) -> int:
        return self.books * self.index_bits // self.span

    @property
    def text(self) -> str:
        return f"vq{self.books}x{self.index_bits}d{self.span}"

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        """Shape of the codebooks."""
        return self.books, 1 << self.index_bits, self.span

    def encode_with(self, x: Tensor, codebook: Tensor, beam: int = 1) -> Tensor:
        """Return uint8 codes of ``x[..., n]``, codebook after codebook with the ``beam`` best sums kept.

        With one codebook the nearest entry is found. See :func:`bitwright.formats.search.beam_search` for the rule.
        """
        vectors = x.to(torch.float32).reshape(-1, self.span)
        index = beam_search(vectors, codebook.to(torch.float32), beam).to(torch.int64)
        return split_words(self.words(index), self.span, self.bits).view(x.shape)

    def decode_with(self, codes: Tensor, codebook: Tensor) -> Tensor:
        """Return the float32 values of ``codes[..., n]``: entries added in the order of the codebooks."""
        index = self.indices(join_words(codes, self.span, self.bits))
        books = codebook.to(torch.float32)
        total = books[0][index[..., 0]]
        for book in range(1, self.books):
            total = total + books[book][index[..., book]]
        return total.view(codes.shape)

    def words(self, index: Tensor) -> Tensor:
        """Return the int64 words ``[...]`` of indices ``[..., books]``."""
        shifts = torch.arange(0, self.books * self.index_bits, self.index_bits, device=index.device)
        return (index.to(torch.int64) << shifts).sum(-1)

    def indices(self, words: Tensor) -> Tensor:
        """Return the int64 indices ``[..., books]`` of words ``[...]``."""
        shifts = torch.arange(0, self.books * self.index_bits, self.index_bits, device=words.device)
        return (words.unsqueeze(-1) >> shifts) & ((1 << self.index_bits) - 1)
