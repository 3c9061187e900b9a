"""Pieces join to the text of all tokens, at a cost that does not grow, and stop strings are cut wherever they fall."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.models import Checkpoint
from bitwright.models.model import load_tokenizer
from bitwright.runtime.pieces import StopStrings, TextStream
from bitwright.zoo import lm_path


class Words:
    """A tokenizer of bytes that drops the space before the first token, as SentencePiece does; counts its work."""

    clean_up_tokenization_spaces = True

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        self.decoded += len(ids)
        return bytes(ids).removeprefix(b" ").decode(errors="replace")


def _pieces(data: bytes, prompt: bytes = b"a") -> list[str]:
    stream = TextStream(Words(), list(prompt))
    return [*(stream.push(byte) for byte in data), stream.finish()]


@given(st.text(max_size=40), st.text(min_size=1, max_size=9))
def test_pieces_join_to_the_text(text: str, prompt: str) -> None:
    pieces = _pieces(text.encode(), prompt.encode())
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or "\N{REPLACEMENT CHARACTER}" in text


def test_bytes_that_never_become_text_do_not_block_it() -> None:
    text = "".join(_pieces(b"\xff" * 50 + b" yes" + b"\xe2\x82"))
    assert text.endswith(" yes\N{REPLACEMENT CHARACTER}")
    assert text.startswith("\N{REPLACEMENT CHARACTER}")


def test_the_work_of_a_token_does_not_grow() -> None:
    words = Words()
    stream = TextStream(words, list(b"once upon a time"))
    done = []
    for byte in b"x" * 400:
        stream.push(byte)
        done.append(words.decoded)
    assert len({after - before for before, after in pairwise(done)}) == 1


@pytest.mark.parametrize("cut", range(1, 12))
def test_pieces_of_a_real_tokenizer_join_to_its_text(cut: int) -> None:
    tokenizer = load_tokenizer(Checkpoint.open(lm_path()))
    ids = tokenizer("def f(x):\n    return x  # na\u00efve \u4f60\u597d\n\n\tdone")["input_ids"]
    stream = TextStream(tokenizer, ids[:cut])
    pieces = [*(stream.push(token) for token in ids[cut:]), stream.finish()]
    assert tokenizer.decode(ids[:cut]) + "".join(pieces) == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(
    st.text("ab<>", max_size=30),
    st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=9),
)
def test_stop_strings_are_cut_wherever_the_borders_are(text: str, stops: list[str], borders: list[int]) -> None:
    cutter = StopStrings(stops)
    shown, whole = "", ""
    for start, stop in pairwise([0, *sorted(borders), len(text)]):
        whole += text[start:stop]
        shown += cutter.push(text[start:stop])
        assert text.startswith(shown)
        assert cutter.found == any(word in whole for word in stops)
        if cutter.found:
            break
    places = [text.find(word) for word in stops if word in whole]
    expected = text[: min(places)] if places else text
    assert (shown if cutter.found else shown + cutter.finish()) == expected


@pytest.mark.parametrize("stops", [(), ("",)])
def test_without_stop_strings_nothing_is_held_back(stops: tuple[str, ...]) -> None:
    cutter = StopStrings(stops)
    assert cutter.push("abc") == "abc"
    assert cutter.finish() == ""
