"""Language-model scores against plain loops, and every way of holding the float model's predictions."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM

from bitwright.data.tokens import TokenData, token_data
from bitwright.errors import InputError
from bitwright.evaluation import ReferenceLogits, kl_divergence, logits_of, perplexity, score_lm
from bitwright.evaluation import reference as reference_file
from bitwright.evaluation.logits import batch_budget
from bitwright.evaluation.metric import Metric, ratio_stderr

LENGTHS = (5, 12, 3, 9, 12, 7)


@pytest.fixture(scope="module")
def data() -> TokenData:
    generator = torch.Generator().manual_seed(1)
    return token_data([torch.randint(0, 128, (n,), generator=generator) for n in LENGTHS], "toy", "toy tokens")


@pytest.fixture(scope="module")
def changed(toy_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """The toy Llama with noise in its weights, standing for a quantized one."""
    model = copy.deepcopy(toy_llama)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.add_(0.1 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
    return model


def by_hand(float_model: nn.Module, model: nn.Module, data: TokenData) -> dict[str, float]:
    """Nats, KL, agreement and accuracy of each sequence alone, token by token, in float64."""
    nats, kl, agree, hit, count = 0.0, 0.0, 0, 0, 0
    for row, keep in zip(data.ids, data.mask, strict=True):
        ids = row[keep][None]
        with torch.no_grad():
            want = torch.log_softmax(float_model(ids).logits[0].double(), -1)
            got = torch.log_softmax(model(ids).logits[0].double(), -1)
        for t in range(1, ids.shape[1]):
            nats -= float(got[t - 1, ids[0, t]])
            kl += float((want[t - 1].exp() * (want[t - 1] - got[t - 1])).sum())
            agree += int(want[t - 1].argmax() == got[t - 1].argmax())
            hit += int(got[t - 1].argmax() == ids[0, t])
            count += 1
    return {"nats": nats / count, "kl": kl / count, "agree": agree / count, "hit": hit / count, "count": count}


def test_scores_are_those_of_a_plain_loop(
    toy_llama: LlamaForCausalLM, changed: LlamaForCausalLM, data: TokenData
) -> None:
    expected = by_hand(toy_llama, changed, data)
    scores = kl_divergence(logits_of(toy_llama), logits_of(changed), data, batch_tokens=30)
    assert scores.kl == pytest.approx(expected["kl"], rel=1e-5)
    assert expected["kl"] > 0.001
    assert scores.nats == pytest.approx(expected["nats"], rel=1e-6)
    assert scores.perplexity == pytest.approx(math.exp(expected["nats"]), rel=1e-6)
    assert scores.top1_agreement == pytest.approx(expected["agree"])
    assert scores.top1_accuracy == pytest.approx(expected["hit"])
    assert scores.tokens == expected["count"]
    metric = perplexity(logits_of(changed), data)
    assert metric.value == pytest.approx(scores.perplexity, rel=1e-6)
    assert metric.tokens == scores.tokens


def test_a_model_does_not_differ_from_itself(toy_llama: LlamaForCausalLM, data: TokenData) -> None:
    scores = kl_divergence(logits_of(toy_llama), logits_of(toy_llama), data)
    assert (scores.kl, scores.top1_agreement) == (0.0, 1.0)


def test_batches_and_pieces_do_not_change_the_scores(
    toy_llama: LlamaForCausalLM, changed: LlamaForCausalLM, data: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = score_lm(logits_of(changed), data, logits_of(toy_llama), batch_tokens=10_000)
    monkeypatch.setattr("bitwright.evaluation.language.CHUNK_BYTES", 4 * 128 * 3)
    monkeypatch.setattr(reference_file, "CHUNK_BYTES", 4 * 128 * 3)
    narrow = score_lm(logits_of(changed), data, ReferenceLogits.gather(logits_of(toy_llama), data, batch_tokens=1))
    assert narrow.nats == pytest.approx(wide.nats, rel=1e-6)
    assert narrow.kl == pytest.approx(wide.kl, rel=1e-4)
    assert narrow.kl_stderr == pytest.approx(wide.kl_stderr, rel=1e-3)


def test_float_predictions_in_memory_in_a_file_or_run_again_are_equal(
    toy_llama: LlamaForCausalLM, changed: LlamaForCausalLM, data: TokenData, tmp_path: Path
) -> None:
    memory = ReferenceLogits.gather(logits_of(toy_llama), data)
    disk = ReferenceLogits.gather(logits_of(toy_llama), data, memory_bytes=100, folder=tmp_path / "new")
    again = ReferenceLogits.gather(logits_of(toy_llama), data, memory_bytes=100)
    assert memory.stored is not None
    assert again.stored is None
    size = data.scored_tokens * 128 * 4
    assert (tmp_path / "new" / "reference-log-probabilities.bin").stat().st_size == size
    results = [score_lm(logits_of(changed), data, r) for r in (memory, disk, again)]
    assert results[0].kl == results[1].kl == pytest.approx(results[2].kl, rel=1e-5)


def test_a_file_that_cannot_be_written_is_refused(toy_llama: LlamaForCausalLM, data: TokenData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        ReferenceLogits.gather(logits_of(toy_llama), data, memory_bytes=100, folder=tmp_path / "file")


def test_a_cache_is_made_for_every_batch_and_sees_no_padding(toy_llama: LlamaForCausalLM, data: TokenData) -> None:
    caches: list[DynamicCache] = []

    def factory() -> DynamicCache:
        caches.append(DynamicCache(config=toy_llama.config))
        return caches[-1]

    with_cache = perplexity(logits_of(toy_llama, factory), data)
    assert with_cache.value == pytest.approx(perplexity(logits_of(toy_llama), data).value, rel=1e-5)
    assert sorted(c.get_seq_length() for c in caches) == sorted(set(LENGTHS))


def test_a_large_vocabulary_makes_the_batches_smaller(toy_llama: LlamaForCausalLM) -> None:
    assert batch_budget(logits_of(toy_llama), 4096) == 4096
    wide = SimpleNamespace(vocabulary=131_072)
    assert batch_budget(wide, 4096) == 512
    assert batch_budget(lambda ids, mask: ids, 4096) == 4096


def test_only_scored_tokens_count(toy_llama: LlamaForCausalLM, data: TokenData) -> None:
    rows = [row[keep] for row, keep in zip(data.ids, data.mask, strict=True)]
    late = token_data(rows, "toy", "", score_from=[n - 1 for n in LENGTHS])
    scores = score_lm(logits_of(toy_llama), late)
    total = 0.0
    for row in rows:
        with torch.no_grad():
            total -= float(torch.log_softmax(toy_llama(row[None]).logits[0, -2], -1)[row[-1]])
    assert scores.tokens == len(LENGTHS)
    assert scores.nats == pytest.approx(total / len(LENGTHS), rel=1e-5)


def test_impossible_tokens_do_not_spoil_the_divergence(data: TokenData) -> None:
    def masked(ids: Tensor, mask: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, 128)
        logits[..., 100:] = -math.inf
        return logits

    low = token_data(list(data.ids.clamp(max=99)), "toy", "")
    assert score_lm(masked, low, masked).kl == 0.0
    assert score_lm(masked, low).nats == pytest.approx(math.log(100), rel=1e-6)


def test_mode_of_the_module_comes_back(toy_llama: LlamaForCausalLM, data: TokenData) -> None:
    model = copy.deepcopy(toy_llama)
    model.train()
    model.lm_head.eval()
    perplexity(logits_of(model), data.first(1))
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training


def test_protocol_tells_data_number_type_and_tokens(toy_llama: LlamaForCausalLM, data: TokenData) -> None:
    expected = f"toy tokens; fp32; 42 scored tokens, sha256 {data.sha256[:12]}"
    assert score_lm(logits_of(toy_llama), data).protocol == expected
    half = copy.deepcopy(toy_llama).to(torch.bfloat16)
    assert "; bf16;" in score_lm(logits_of(half), data).protocol
    assert str(Metric("perplexity", 3.53817, "p", 5, 0.1, 0.035)) == "perplexity 3.5382 ± 0.035 (p)"


def test_mismatches_are_refused(toy_llama: LlamaForCausalLM, data: TokenData) -> None:
    model = logits_of(toy_llama)
    with pytest.raises(InputError, match="gathered on other data"):
        score_lm(model, data, ReferenceLogits.gather(model, data.first(2)))
    with pytest.raises(InputError, match="no token is scored"):
        score_lm(model, token_data([[1, 2]], "toy", "", score_from=None))
    with pytest.raises(InputError, match="no token is scored"):
        ReferenceLogits.gather(model, token_data([[1, 2]], "toy", "", score_from=None))
    with pytest.raises(InputError, match="vocabulary of 130, this one 128"):
        score_lm(model, data, lambda ids, mask: torch.zeros(*ids.shape, 130))
    with pytest.raises(InputError, match="outside the model's vocabulary of 90"):
        score_lm(lambda ids, mask: torch.zeros(*ids.shape, 90), data)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=20))
def test_standard_error_is_the_plain_one_for_equal_counts(values: list[float]) -> None:
    found = ratio_stderr([4 * v for v in values], [4] * len(values))
    plain = torch.tensor(values, dtype=torch.float64).std() / math.sqrt(len(values))
    assert found == pytest.approx(float(plain), abs=1e-9)
    assert ratio_stderr(values[:1], [4]) is None
