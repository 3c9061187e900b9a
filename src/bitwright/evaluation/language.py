"""Language-model scores: perplexity, divergence from the float model, top-1 agreement and accuracy, in one pass."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.data.tokens import TokenData
from bitwright.errors import InputError
from bitwright.evaluation.logits import LogitsFunction, batch_budget, dtype_of, needs_equal_lengths
from bitwright.evaluation.metric import Metric, ratio_stderr
from bitwright.evaluation.reference import CHUNK_BYTES, ReferenceLogits, log_probabilities, scored_rows

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class LmScores:
    """What one pass over the data says about a model.

    Attributes:
        perplexity: exp of ``nats``; ``nats``: mean negative log-likelihood per scored token.
        top1_accuracy: share of scored tokens that are the model's most likely one.
        kl: mean KL(float || model) per scored token in nats; None without a reference.
        top1_agreement: share of scored tokens where both models have the same most likely token; None likewise.
        perplexity_stderr, kl_stderr: standard errors over sequences.
    """

    perplexity: float
    nats: float
    top1_accuracy: float
    kl: float | None
    top1_agreement: float | None
    tokens: int
    protocol: str
    seconds: float
    perplexity_stderr: float | None = None
    kl_stderr: float | None = None


def score_lm(
    model: LogitsFunction,
    data: TokenData,
    reference: LogitsFunction | ReferenceLogits | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> LmScores:
    """Measure a language model on every scored token of ``data``.

    Args:
        model: see :func:`bitwright.evaluation.logits.logits_of`.
        reference: the float model, run beside this one batch by batch, or its stored predictions.
        batch_tokens: most tokens in one forward pass, padding counted.

    Raises:
        InputError: if no token is scored, an id is outside the vocabulary, or the reference belongs to other data or
            another vocabulary.
    """
    start = time.perf_counter()
    if data.scored_tokens == 0:
        raise InputError(f"{data.source}: no token is scored, so there is nothing to measure; use evaluation data")
    if isinstance(reference, ReferenceLogits) and reference.data.sha256 != data.sha256:
        raise InputError("the float predictions were gathered on other data; gather them on the data that is scored")
    if reference is not None and not isinstance(reference, ReferenceLogits):
        reference = ReferenceLogits.live(reference, data)
    sums = torch.zeros(len(data), 4, dtype=torch.float64)
    for rows in data.plan(batch_budget(model, batch_tokens), needs_equal_lengths(model)):
        logits = scored_rows(model, data, rows)
        expected = None if reference is None else reference.log_probs(rows)
        sums.index_add_(0, _owners(data, rows), _token_scores(logits, _targets(data, rows), expected))
    return _summary(model, data, sums, reference is not None, time.perf_counter() - start)


def perplexity(model: LogitsFunction, data: TokenData, batch_tokens: int = BATCH_TOKENS) -> Metric:
    """Return exp of the mean negative log-likelihood of the scored tokens."""
    scores = score_lm(model, data, None, batch_tokens)
    return Metric(
        "perplexity", scores.perplexity, scores.protocol, scores.tokens, scores.seconds, scores.perplexity_stderr
    )


def kl_divergence(
    reference: LogitsFunction | ReferenceLogits,
    model: LogitsFunction,
    data: TokenData,
    batch_tokens: int = BATCH_TOKENS,
) -> LmScores:
    """Compare a model with the float model: KL, top-1 agreement, and its own perplexity from the same pass."""
    return score_lm(model, data, reference, batch_tokens)


def _targets(data: TokenData, rows: Tensor) -> Tensor:
    return data.ids[rows][data.scored[rows]]


def _owners(data: TokenData, rows: Tensor) -> Tensor:
    return rows.repeat_interleave(data.scored[rows].sum(1))


def _token_scores(logits: Tensor, targets: Tensor, expected: Tensor | None) -> Tensor:
    """Return float64 ``[tokens, 4]``: negative log-likelihood, hit, KL, agreement; worked on in bounded pieces."""
    tokens, vocabulary = logits.shape
    if int(targets.max()) >= vocabulary:
        raise InputError(
            f"token id {int(targets.max())} is outside the model's vocabulary of {vocabulary}; use its own tokenizer"
        )
    if expected is not None and expected.shape != logits.shape:
        raise InputError(
            f"the float model has a vocabulary of {expected.shape[-1]}, this one {vocabulary}; compare like with like"
        )
    scores = torch.zeros(tokens, 4, dtype=torch.float64)
    piece = max(1, CHUNK_BYTES // (4 * vocabulary))
    for begin in range(0, tokens, piece):
        part = slice(begin, begin + piece)
        log_probs = log_probabilities(logits[part])
        target = targets[part].to(logits.device)
        best = log_probs.argmax(-1)
        scores[part, 0] = -log_probs.gather(1, target[:, None])[:, 0].cpu().double()
        scores[part, 1] = (best == target).cpu().double()
        if expected is not None:
            want = expected[part].to(logits.device)
            weight = want.exp()
            gap = torch.where(weight > 0, want - log_probs, 0.0)  # 0 log 0 = 0
            scores[part, 2] = (weight * gap).sum(-1).cpu().double()
            scores[part, 3] = (best == want.argmax(-1)).cpu().double()
    return scores


def _summary(model: LogitsFunction, data: TokenData, sums: Tensor, compared: bool, seconds: float) -> LmScores:
    counts = data.scored.sum(1).tolist()
    tokens = data.scored_tokens
    total = (sums.sum(0) / tokens).tolist()
    error = ratio_stderr(sums[:, 0].tolist(), counts)
    value = math.exp(min(total[0], 700.0)) if not math.isnan(total[0]) else math.nan
    return LmScores(
        perplexity=value,
        nats=total[0],
        top1_accuracy=total[1],
        kl=total[2] if compared else None,
        top1_agreement=total[3] if compared else None,
        tokens=tokens,
        protocol=f"{data.protocol}; {dtype_of(model)}; {tokens:,} scored tokens, sha256 {data.sha256[:12]}",
        seconds=seconds,
        perplexity_stderr=None if error is None else value * error,
        kl_stderr=ratio_stderr(sums[:, 2].tolist(), counts) if compared else None,
    )
