"""Sentence pairs with a similarity score (STS Benchmark, Cer et al. 2017, arXiv:1708.00055)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitwright.data.files import MAX_TEXT_BYTES, check_file
from bitwright.errors import InputError


@dataclass(frozen=True, eq=False)
class PairData:
    """Two sentences and a score 0-5 (float64 ``[n]``) per pair."""

    first_sentences: tuple[str, ...]
    second_sentences: tuple[str, ...]
    scores: Tensor
    source: str
    protocol: str
    sha256: str

    def __len__(self) -> int:
        return len(self.first_sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every different sentence once, in the order of its first appearance."""
        pairs = zip(self.first_sentences, self.second_sentences, strict=True)
        return tuple(dict.fromkeys(sentence for pair in pairs for sentence in pair))

    def first(self, count: int) -> PairData:
        """Return the first ``count`` pairs."""
        if count >= len(self):
            return self
        a, b, scores = self.first_sentences[:count], self.second_sentences[:count], self.scores[:count]
        return replace(
            self,
            first_sentences=a,
            second_sentences=b,
            scores=scores,
            protocol=f"{self.protocol}; only the first {count}",
            sha256=_hash(a, b, scores),
        )


def read_pairs(path: Path | str) -> PairData:
    """Read STS-B's tab-separated lines: genre, file, year, id, score, sentence 1, sentence 2 (further columns ignored).

    Raises:
        InputError: if the file is missing or empty, or a line has too few columns or no number as score.
    """
    path = Path(path)
    try:
        check_file(path, MAX_TEXT_BYTES)
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a tab-separated UTF-8 file of pairs") from error
    first, second, scores = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        try:
            score, a, b = float(columns[4]), columns[5], columns[6]
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{path}, line {number} is not genre, file, year, id, score, two sentences; mend it"
            ) from error
        first.append(a.strip())
        second.append(b.strip())
        scores.append(score)
    if not scores:
        raise InputError(f"{path} holds no pair; give a file with at least one line")
    values = torch.tensor(scores, dtype=torch.float64)
    protocol = f"STS Benchmark {path.name}, {len(scores)} pairs"
    return PairData(tuple(first), tuple(second), values, path.name, protocol, _hash(first, second, values))


def _hash(first: list[str] | tuple[str, ...], second: list[str] | tuple[str, ...], scores: Tensor) -> str:
    state = hashlib.sha256()
    for a, b, score in zip(first, second, scores.tolist(), strict=True):
        state.update(f"{a}\0{b}\0{score}\0".encode())
    return state.hexdigest()
