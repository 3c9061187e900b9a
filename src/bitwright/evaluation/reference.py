"""Float log-probabilities gathered once and compared with many quantized models, in bounded memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitwright.data.tokens import TokenData
from bitwright.errors import InputError
from bitwright.evaluation.logits import LogitsFunction, batch_budget, needs_equal_lengths

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 26  # rows of logits worked on at a time: bounds the temporary memory for large vocabularies


def scored_rows(model: LogitsFunction, data: TokenData, rows: Tensor) -> Tensor:
    """Return the logits that predict the scored tokens of the sequences ``rows``: ``[tokens, vocabulary]``.

    The order is sequence by sequence as in ``rows``, position by position.
    """
    batch = data.batch(rows)
    width = batch["input_ids"].shape[1]
    logits = model(batch["input_ids"], batch["attention_mask"])
    chosen = data.scored[rows, 1:width].to(logits.device)
    return logits[:, :-1][chosen]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return float32 natural log-probabilities of ``[tokens, vocabulary]`` logits."""
    return torch.log_softmax(logits.float(), -1)


@dataclass(frozen=True, eq=False)
class ReferenceLogits:
    """The float model's predictions on one data set.

    They are kept as float32 log-probabilities of the scored tokens, in memory or in a memory-mapped file. Where neither
    has room, the float model itself is kept and run again for every batch (``stored`` is None).
    """

    data: TokenData
    model: LogitsFunction
    stored: Tensor | None
    starts: Tensor

    @classmethod
    def gather(
        cls,
        model: LogitsFunction,
        data: TokenData,
        memory_bytes: int = 1 << 30,
        folder: Path | None = None,
        batch_tokens: int = 4096,
    ) -> ReferenceLogits:
        """Run the float model over ``data`` once and keep its log-probabilities.

        Args:
            memory_bytes: they stay in memory up to this size.
            folder: beyond it, they go into a memory-mapped file of this folder (removed by the caller with the folder).

        Raises:
            InputError: if nothing is scored or the file cannot be written.
        """
        starts = _starts(data)
        stored: Tensor | None = None
        for rows in data.plan(batch_budget(model, batch_tokens), needs_equal_lengths(model)):
            logits = scored_rows(model, data, rows)
            if stored is None:
                stored = _room(int(starts[-1]), logits.shape[-1], memory_bytes, folder)
                if stored is None:
                    break
            where = _places(starts, rows)
            for start in range(0, len(where), _chunk(logits)):
                piece = slice(start, start + _chunk(logits))
                stored[where[piece]] = log_probabilities(logits[piece]).cpu()
        return cls(data, model, stored, starts)

    @classmethod
    def live(cls, model: LogitsFunction, data: TokenData) -> ReferenceLogits:
        """Keep nothing: the float model runs again for every batch."""
        return cls(data, model, None, _starts(data))

    def log_probs(self, rows: Tensor) -> Tensor:
        """Return the log-probabilities ``[tokens, vocabulary]`` of the sequences ``rows``, in that order."""
        if self.stored is None:
            return log_probabilities(scored_rows(self.model, self.data, rows))
        return self.stored[_places(self.starts, rows)]


def _starts(data: TokenData) -> Tensor:
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), data.scored.sum(1).cumsum(0)])
    if int(starts[-1]) == 0:
        raise InputError(f"{data.source}: no token is scored, so there is nothing to compare; use evaluation data")
    return starts


def _places(starts: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([torch.arange(int(starts[r]), int(starts[r + 1])) for r in rows.tolist()])


def _chunk(logits: Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * logits.shape[-1]))


def _room(tokens: int, vocabulary: int, memory_bytes: int, folder: Path | None) -> Tensor | None:
    size = tokens * vocabulary * 4
    if size <= memory_bytes:
        return torch.empty(tokens, vocabulary)
    if folder is None:
        logger.info("the float model runs again for every comparison: its %.1f GB do not fit in memory", size / 1e9)
        return None
    path = folder / "reference-log-probabilities.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return torch.from_file(str(path), shared=True, size=tokens * vocabulary).view(tokens, vocabulary)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be written ({size / 1e9:.1f} GB: {error}); free space or use less data"
        ) from error
