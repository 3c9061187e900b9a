"""Correlation, image scores, sentence embeddings, speed and memory."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bitwright.data.images import ImageData
from bitwright.data.pairs import PairData
from bitwright.errors import InputError
from bitwright.evaluation import (
    accuracy,
    embed,
    generation_speed,
    image_scores,
    peak_memory,
    pearson,
    ranks,
    spearman,
    sts_spearman,
)
from bitwright.evaluation import memory as memory_file
from bitwright.evaluation.images import class_logits
from tests.unit.data_toys import LetterTokenizer

VALUES = st.lists(st.one_of(st.integers(-3, 3), st.floats(-5, 5, width=32)), min_size=2, max_size=30)


@given(VALUES)
def test_correlations_are_scipys(values: list[float]) -> None:
    other = sorted(values, key=lambda v: math.sin(37.0 * v))
    a, b = torch.tensor(values, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    assert ranks(a).tolist() == scipy.stats.rankdata(values).tolist()
    if len(set(values)) == 1:
        assert math.isnan(spearman(a, b))
        return
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(values, other).statistic, abs=1e-9)
    if float(a.std()) > 1e-3:  # below, scipy itself warns that its digits are lost
        assert pearson(a, b) == pytest.approx(scipy.stats.pearsonr(values, other).statistic, abs=1e-6)


def test_correlation_needs_two_equal_rows() -> None:
    for a, b in [(torch.ones(3), torch.ones(2)), (torch.ones(1), torch.ones(1)), (torch.ones(2, 2), torch.ones(2, 2))]:
        with pytest.raises(InputError, match="two rows of equal length"):
            spearman(a, b)


class Lookup(nn.Module):
    """A classifier whose logits are stored in the first pixels of the image."""

    def __init__(self, classes: int, wrapped: bool) -> None:
        super().__init__()
        self.classes = classes
        self.wrapped = wrapped
        self.norm = nn.BatchNorm2d(1)

    def forward(self, image: Tensor) -> Tensor | SimpleNamespace:
        if self.training:
            raise AssertionError("scores are measured in evaluation mode")
        logits = image.flatten(1)[:, : self.classes]
        return SimpleNamespace(logits=logits) if self.wrapped else logits


@pytest.mark.parametrize("wrapped", [False, True])
def test_image_scores_are_counted_by_hand(wrapped: bool) -> None:
    logits = torch.tensor([[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5.0]])
    data = ImageData(logits.view(4, 1, 2, 3), torch.tensor([0, 5, 1, 5]), "toy", "toy images", "0")
    module = Lookup(6, wrapped)
    module.train()
    data = data.for_module(module)
    float_logits = class_logits(module, data, batch_size=3)
    assert torch.equal(float_logits, logits)
    scores = image_scores(module, data, float_logits, batch_size=3)
    assert (scores.top1, scores.top5, scores.kl, scores.top1_agreement) == (50.0, 75.0, 0.0, 1.0)
    assert scores.protocol == "toy images; fp32; 4 images, sha256 0"
    assert accuracy(module, data).value == 50.0
    other = image_scores(module, data, float_logits.roll(1, -1))
    expected = scipy.stats.entropy(float_logits.roll(1, -1).softmax(-1).double(), logits.softmax(-1).double(), axis=1)
    assert other.kl == pytest.approx(expected.mean(), rel=1e-5)
    assert other.top1_agreement == 0.0


def test_image_mismatches_are_refused() -> None:
    data = ImageData(torch.zeros(2, 1, 2, 3), torch.tensor([0, 7]), "toy", "", "0", "image")
    with pytest.raises(InputError, match="label 7 but the network has 6 classes"):
        image_scores(Lookup(6, False), data)
    with pytest.raises(InputError, match="reference logits"):
        image_scores(Lookup(6, False), data.first(1), torch.zeros(1, 5))


class Encoder(nn.Module):
    """Hidden states that depend on a token and on nothing else, but for a large value at padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(128, 8)
        torch.nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        hidden = self.table(input_ids) + 100.0 * (1 - attention_mask)[..., None]
        return SimpleNamespace(last_hidden_state=hidden)


def test_embeddings_are_unit_means_of_real_tokens() -> None:
    encoder, tokenizer = Encoder(), LetterTokenizer()
    texts = ["abc", "a", "abcdefgh", "zz"]
    units = embed(encoder, tokenizer, texts, length=6, batch_tokens=12)
    for text, unit in zip(texts, units, strict=True):
        ids = tokenizer([text], truncation=True, max_length=6)["input_ids"][0]
        mean = encoder.table.weight[ids].mean(0)
        torch.testing.assert_close(unit, (mean / mean.norm()).detach())


def test_sts_correlates_cosines_with_scores() -> None:
    encoder, tokenizer = Encoder(), LetterTokenizer()
    first, second = ("abc", "abc", "xyz", "qq"), ("abc", "abd", "abc", "rst")
    scores = torch.tensor([5.0, 3.0, 1.0, 2.0], dtype=torch.float64)
    metric = sts_spearman(encoder, tokenizer, PairData(first, second, scores, "toy", "toy pairs", "0"))
    a, b = embed(encoder, tokenizer, first), embed(encoder, tokenizer, second)
    assert metric.value == pytest.approx(scipy.stats.spearmanr((a * b).sum(-1), scores).statistic)
    assert metric.count == 4
    assert "cut at 256 tokens; fp32" in metric.protocol


def test_speed_counts_prompt_and_new_tokens(toy_llama: LlamaForCausalLM) -> None:
    calls: list[int] = []
    handle = toy_llama.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        speed = generation_speed(toy_llama, 128, prompt=6, new_tokens=3, batch=2, repeats=2)
    finally:
        handle.remove()
    assert calls == [6, 1, 1] + 2 * [6, 1, 1, 1]
    assert speed.tokens_per_second > 0
    assert speed.prefill_tokens_per_second > 0
    assert "batch 2, random prompt of 6 tokens (seed 0), 3 new tokens" in speed.protocol
    with pytest.raises(InputError, match="at least 1"):
        generation_speed(toy_llama, 128, prompt=0)


def test_peak_memory_sees_what_is_freed_again() -> None:
    with peak_memory(interval=0.001) as memory:
        block = torch.ones(2**24)  # 64 MiB
        first = memory_file.anonymous_bytes()
        del block
    assert first is not None
    assert 60e6 < memory.above_start < 200e6
    assert "anonymous" in memory.method


def test_peak_memory_falls_back_where_the_system_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_file, "anonymous_bytes", lambda: None)
    with peak_memory() as memory:
        torch.ones(2**20)
    assert memory.peak >= memory.start > 1e6
    assert "largest resident" in memory.method
