"""Sentence embeddings: mean pooling, cosine, and its rank correlation with people's similarity scores."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitwright.data.pairs import PairData
from bitwright.data.sentences import sentence_tokens
from bitwright.data.tokenizing import Tokenizer
from bitwright.evaluation.logits import device_of, dtype_text, evaluating
from bitwright.evaluation.metric import Metric
from bitwright.evaluation.rank import spearman


def embed(
    module: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], length: int = 256, batch_tokens: int = 2048
) -> Tensor:
    """Return unit embeddings float32 ``[texts, hidden]``: the mean of the last hidden states over the real tokens.

    Args:
        module: an encoder of transformers (its output has ``last_hidden_state`` or is that tensor).
        length: texts are cut at this many tokens, special tokens counted.
    """
    data = sentence_tokens(tokenizer, texts, length)
    device = device_of(module)
    result: Tensor | None = None
    with evaluating(module):
        for rows in data.plan(batch_tokens):
            batch = {name: value.to(device) for name, value in data.batch(rows).items()}
            output = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            hidden = (output if isinstance(output, Tensor) else output.last_hidden_state).float()
            weight = batch["attention_mask"][..., None].float()
            pooled = (hidden * weight).sum(1) / weight.sum(1)
            unit = torch.nn.functional.normalize(pooled, dim=-1).cpu()
            result = torch.empty(len(data), unit.shape[-1]) if result is None else result
            result[rows] = unit
    if result is None:  # sentence_tokens refuses an empty list, so a batch has run
        raise AssertionError("no batch of sentences")
    return result


def similarity_correlation(units: Tensor, data: PairData) -> float:
    """Spearman correlation of the cosine of ``units[data.sentences]`` (unit rows) with the scores of the pairs."""
    place = {text: i for i, text in enumerate(data.sentences)}
    first = units[[place[t] for t in data.first_sentences]]
    second = units[[place[t] for t in data.second_sentences]]
    return spearman((first * second).sum(-1), data.scores)


def embedding_error(reference: Tensor, units: Tensor) -> float:
    """Mean over texts of ``1 - cosine`` between the embeddings of two models, both unit rows ``[texts, hidden]``."""
    return max(0.0, float((1.0 - (reference.double() * units.double()).sum(-1)).mean()))


def sts_spearman(module: nn.Module, tokenizer: Tokenizer, data: PairData, length: int = 256) -> Metric:
    """Return the Spearman correlation of the embeddings' cosine with the scores of sentence pairs."""
    start = time.perf_counter()
    value = similarity_correlation(embed(module, tokenizer, data.sentences, length), data)
    protocol = f"{sts_protocol(data, length)}; {dtype_text(module)}; sha256 {data.sha256[:12]}"
    # Fieller's approximation of the standard error of a rank correlation (Biometrika 1957)
    error = math.sqrt(1.06 / (len(data) - 3)) * (1 - value**2) if len(data) > 3 else None
    return Metric("spearman", value, protocol, len(data), time.perf_counter() - start, error)


def sts_protocol(data: PairData, length: int = 256) -> str:
    """How sentences become a correlation, in words."""
    return (
        f"{data.protocol}, Spearman of cosine and score, mean pooling over the mask, unit length, "
        f"cut at {length} tokens"
    )
