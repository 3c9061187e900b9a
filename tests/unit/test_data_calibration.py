"""Calibration and evaluation sequences: joining, cutting, drawing, scoring; sampling from the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from bitwright.data import calibration, documents_alone, evaluation, pieces, self_generated, sentence_tokens, windows
from bitwright.data.sources import Documents
from bitwright.errors import CheckError, InputError
from bitwright.events import Events
from tests.unit.data_toys import LetterTokenizer


def running(*lines: str) -> Documents:
    return Documents(lines, "toy", "lines", "0")


def texts(tokenizer: LetterTokenizer, rows: torch.Tensor) -> list[str]:
    return [tokenizer.decode(row) for row in rows.tolist()]


def test_lines_are_joined_and_every_window_begins_with_bos() -> None:
    tokenizer = LetterTokenizer()
    data = calibration(tokenizer, running("abcd", "efgh", "ij"), sequences=3, length=5)
    assert texts(tokenizer, data.ids) == ["^abcd", "^\nefg", "^h\nij"]
    assert data.mask.all()
    assert "3 x 5 tokens, windows of BOS + 4" in data.protocol


def test_documents_are_separated_by_eos_or_bos_or_nothing() -> None:
    for begin, end, expected in [(1, 2, "^ab$cd"), (1, None, "^ab^cd"), (None, None, "abcdef")]:
        tokenizer = LetterTokenizer(begin, end)
        data = calibration(tokenizer, ["ab", "cdef"], sequences=1, length=6)
        assert texts(tokenizer, data.ids) == [expected]


def test_cut_takes_beginnings_of_long_documents() -> None:
    tokenizer = LetterTokenizer()
    data = calibration(tokenizer, ["abcdef", "gh", "ijkl"], sequences=2, length=4, joining="cut")
    assert texts(tokenizer, data.ids) == ["^abc", "^ijk"]
    with pytest.raises(InputError, match="longest document of texts has 7 tokens, fewer than the context of 9"):
        calibration(tokenizer, ["abcdef", "gh"], length=9, joining="cut")


def test_the_seed_draws_windows_in_the_order_of_the_text() -> None:
    tokenizer = LetterTokenizer()
    source = running("".join(chr(97 + i % 26) + "." for i in range(200)))
    draws = [calibration(tokenizer, source, 10, 5, seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0].ids, draws[1].ids)
    assert not torch.equal(draws[0].ids, draws[2].ids)
    everything = calibration(tokenizer, source, 100, 5).ids.tolist()
    places = [everything.index(row) for row in draws[0].ids.tolist()]
    assert len(places) == 10
    assert len({tuple(row) for row in everything}) > 10


def test_a_short_text_is_an_event_and_a_too_short_one_an_error() -> None:
    events = Events()
    data = calibration(LetterTokenizer(), running("abcdefgh"), 4, 5, events=events)
    assert len(data) == 2
    assert events.entries[0].message == "only 2 of 4 calibration sequences can be made from toy"
    with pytest.raises(CheckError, match="only 2 of 4"):
        calibration(LetterTokenizer(), running("abcdefgh"), 4, 5, events=Events(strict=True))
    with pytest.raises(InputError, match=r"toy has 8 tokens, fewer than one context of 10; .* length of at most 9"):
        calibration(LetterTokenizer(), running("abcdefgh"), 4, 10)


def test_calibration_refuses_senseless_sizes() -> None:
    with pytest.raises(InputError, match="context of 1"):
        calibration(LetterTokenizer(), ["abc"], length=1)
    with pytest.raises(InputError, match="at least one sequence"):
        calibration(LetterTokenizer(), ["abc"], sequences=0, length=2)
    with pytest.raises(InputError, match="without a tokenizer"):
        calibration(None, ["abc"], length=2)


def test_stored_ids_calibrate_without_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"ids": torch.arange(40).reshape(5, 8)}, str(path))
    data = calibration(None, path, sequences=2, length=6)
    assert data.ids.shape == (2, 6)
    assert set(data.ids[:, 0].tolist()) <= {0, 8, 16, 24, 32}
    with pytest.raises(InputError, match="at most 8 tokens"):
        calibration(None, path, length=9)


def test_documents_alone_are_cut_and_scored_after_bos() -> None:
    tokenizer = LetterTokenizer()
    data = documents_alone(tokenizer, ["abcdef", "gh", "x"], count=2, length=4)
    assert texts(tokenizer, data.ids) == ["^abc", "^gh?"]
    assert data.scored.sum(1).tolist() == [3, 2]
    assert "first 2 documents, each alone: BOS" in data.protocol
    short = documents_alone(LetterTokenizer(begin=None), ["ab", "c"])
    assert (len(short), "(1 without a second token left out)" in short.protocol) == (1, True)
    with pytest.raises(InputError, match="3 documents, not 4"):
        documents_alone(tokenizer, ["a", "b", "c"], count=4)
    with pytest.raises(InputError, match="no document of texts has two tokens"):
        documents_alone(LetterTokenizer(begin=None), ["a"])


@settings(max_examples=25)
@given(st.integers(6, 60), st.integers(3, 6), st.integers(1, 5), st.booleans())
def test_windows_score_every_covered_token_once(characters: int, length: int, stride: int, begin: bool) -> None:
    tokenizer = LetterTokenizer(1 if begin else None)
    body = length - int(begin)
    stride = min(stride, length - 1)  # without BOS and overlap nothing predicts the first token of a window
    text = "".join(chr(33 + i) for i in range(characters))
    data = windows(tokenizer, running(text), length, stride)
    scored = tokenizer.decode(data.ids[data.scored].tolist())
    reached = stride * (len(data) - 1) + body
    assert reached <= characters < reached + stride
    assert scored == text[0 if begin else 1 : reached]


def test_pieces_are_whole_and_of_one_document() -> None:
    tokenizer = LetterTokenizer()
    data = pieces(tokenizer, ["abcdefgh", "ij", "klm"], length=4, per_document=2)
    assert texts(tokenizer, data.ids) == ["^abc", "^def", "^klm"]
    assert len(pieces(tokenizer, ["abcdefghi"], length=4)) == 3
    with pytest.raises(InputError, match="no document of texts has 9 tokens"):
        pieces(tokenizer, ["abcdefgh"], length=10)


def test_windows_without_stride_do_not_overlap() -> None:
    tokenizer = LetterTokenizer()
    data = windows(tokenizer, running("abcdefgh"), length=4)
    assert texts(tokenizer, data.ids) == ["^abc", "^def"]
    assert data.scored_tokens == 6
    assert "the last 2 tokens left out" in data.protocol
    assert len(windows(tokenizer, running("abcdefgh"), length=4, count=1)) == 1
    with pytest.raises(InputError, match="fewer than the context of 40"):
        windows(tokenizer, running("abc"), length=40)
    with pytest.raises(InputError, match="stride of 4 does not fit"):
        windows(tokenizer, running("abcdefgh"), length=4, stride=4)


def test_evaluation_picks_the_protocol_by_the_source(tmp_path: Path) -> None:
    tokenizer = LetterTokenizer()
    assert "windows of the running text" in evaluation(tokenizer, running("abcdefgh"), 4).protocol
    assert "each alone" in evaluation(tokenizer, ["abcd"], 4).protocol
    save_file({"ids": torch.arange(6).reshape(2, 3)}, str(tmp_path / "a.safetensors"))
    assert evaluation(None, tmp_path / "a.safetensors", count=1).ids.tolist() == [[0, 1, 2]]
    with pytest.raises(InputError, match="without a tokenizer"):
        evaluation(None, ["abcd"])


def test_zoo_text_is_drawn_by_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def texts_of(seed: int, count: int) -> list[str]:
        asked.append((seed, count))
        return [chr(97 + seed) * 100_000] * count

    monkeypatch.setattr("bitwright.zoo.calibration_texts", texts_of)  # the real one looks through the installation
    data = calibration(LetterTokenizer(), "zoo", sequences=40, length=64, seed=3)
    assert asked == [(3, 20)]
    assert (data.ids.shape, data.source) == ((40, 64), "zoo")
    assert texts(LetterTokenizer(), data.ids)[0] == "^" + "d" * 63


def test_sentences_keep_special_tokens_and_score_nothing() -> None:
    tokenizer = LetterTokenizer()
    data = sentence_tokens(tokenizer, ["abc", "defghi"], length=4)
    assert texts(tokenizer, data.ids) == ["^abc", "^def"]
    assert data.scored_tokens == 0
    with pytest.raises(InputError, match="no sentence"):
        sentence_tokens(tokenizer, [])


def test_self_generated_text_follows_the_models_own_distribution(toy_llama: LlamaForCausalLM) -> None:
    from bitwright.data.seeds import stream

    data = self_generated(toy_llama, begin=1, sequences=3, length=10, seed=5, temperature=0.7)
    with torch.no_grad():
        logits = toy_llama(data.ids).logits
    draws = torch.stack([torch.rand(10, generator=stream(5, "self", str(i))) for i in range(3)])
    cumulative = torch.softmax(logits.float() / 0.7, -1).double().cumsum(-1)[:, :-1].contiguous()
    point = draws[:, 1:, None].double() * cumulative[..., -1:]
    assert torch.equal(torch.searchsorted(cumulative, point, right=True)[..., 0], data.ids[:, 1:])
    assert data.source == "self"
    assert "seed 5" in data.protocol


def test_self_is_a_source_of_calibration(toy_llama: LlamaForCausalLM) -> None:
    data = calibration(LetterTokenizer(5, 7), "self", 2, 8, seed=3, module=toy_llama)
    assert torch.equal(data.ids, self_generated(toy_llama, 5, 2, 8, seed=3, end=7).ids)
    with pytest.raises(InputError, match="needs the model and its tokenizer"):
        calibration(LetterTokenizer(), "self", 2, 8)
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        calibration(LetterTokenizer(None), "self", 2, 8, module=toy_llama)


def test_self_generated_text_does_not_depend_on_the_batch(toy_llama: LlamaForCausalLM) -> None:
    one, three = (self_generated(toy_llama, 1, 3, 8, batch_size=size) for size in (1, 3))
    assert torch.equal(one.ids, three.ids)
    assert len({tuple(row) for row in one.ids.tolist()}) == 3


def test_self_generated_text_starts_anew_after_the_end(toy_llama: LlamaForCausalLM) -> None:
    ids = self_generated(toy_llama, 1, 16, 24, seed=3, end=7).ids
    after = ids[:, 1:][ids[:, :-1] == 7]
    assert len(after) > 0
    assert (after == 1).all()
    one = self_generated(toy_llama, 7, 2, 12, end=7).ids  # begin and end are one token in many tokenizers
    assert len(set(one[0].tolist())) > 4
    with pytest.raises(InputError, match="positive temperature"):
        self_generated(toy_llama, 1, temperature=0.0)
