"""The engine: turns, queue, cache, limits and ends, without HTTP."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
from transformers import LlamaForCausalLM

from bitwright.runtime.continuation import Piece, Wish, continuation
from bitwright.runtime.decoder import ModuleDecoder, module_decoders
from bitwright.serving.engine import BusyError, ClosedError, Engine, LateError, Limits
from bitwright.serving.slots import Slots, common
from tests.unit.serve_toys import Alphabet, Bytes, Collected, Faulty, Rounded, Toys, engine, until


def test_answers_end_at_their_end_token_or_limit() -> None:
    with engine(Toys()) as running:
        assert Collected(running, "vw").wait() == ("xyz", "stop")
        assert Collected(running, "a", limit=3).wait() == ("bcd", "length")
        # 64 positions: the last token that is drawn would be the 64th.
        assert Collected(running, "a" * 60).wait() == ("bcde"[:4], "length")


def test_only_what_is_new_in_a_prompt_is_read_in_pieces() -> None:
    toys = Toys()
    with engine(toys) as running:
        first = Collected(running, "abcdefgh", limit=3)
        assert first.wait() == ("ijk", "length")
        assert toys.made[0].read == [[97, 98, 99, 100], [101, 102, 103, 104], [105], [106]]
        toys.made[0].read.clear()
        second = Collected(running, "abcdefghij!"[:10] + "m", limit=2)
        assert second.wait() == ("no", "length")
        assert toys.made[0].read == [[109], [110]]
        assert (first.ticket.known, second.ticket.known) == (0, 10)
        # The same prompt again: its last token must be read for its logits.
        third = Collected(running, "abcdefghijm", limit=1)
        assert third.wait() == ("n", "length")
        assert third.ticket.known == 10
        assert len(toys.made) == 1
        assert Collected(running, "xy").wait() == ("z", "stop")
        assert len(toys.made) == 2


@pytest.mark.parametrize(("make", "limit"), [(Rounded, 10**6), (Alphabet, 0)])
def test_nothing_is_reused_where_a_cache_cannot_go_back_or_may_not_stay(make: type[Alphabet], limit: int) -> None:
    toys = Toys(make)
    with engine(toys, cache_bytes=limit) as running:
        for _ in range(2):
            again = Collected(running, "abcdefgh", limit=2)
            assert again.wait() == ("ij", "length")
            assert again.ticket.known == 0
    assert [decoder.tokens for decoder in toys.made] == [0, 0]


def test_kept_decoders_stay_within_their_bytes() -> None:
    slots = Slots(Toys(), 250)
    decoders = []
    for letter in "abc":
        decoder, known = slots.take([ord(letter)] * 10)
        assert known == 0
        decoder.extend([ord(letter)] * 10)
        decoders.append(decoder)
    for letter, decoder in zip("abc", decoders, strict=True):
        slots.give(decoder, [ord(letter)] * 10)
        assert slots.bytes <= 250
    assert [decoder.tokens for decoder in decoders] == [0, 10, 10]
    # A little in common is no reason to lose a long sequence.
    other, known = slots.take([ord("b"), *range(40, 49)])
    assert known == 0
    assert other not in decoders
    assert slots.take([ord("b")] * 10) == (decoders[1], 9)
    slots.clear()
    assert slots.bytes == 0
    assert (common([1, 2, 3], [1, 2, 4]), common([], [1]), common([1], [1, 2])) == (2, 0, 1)


def test_answers_take_turns_and_the_queue_is_bounded() -> None:
    toys = Toys(gated=True)
    with engine(toys, parallel=2, queue=1) as running:
        answers = [Collected(running, "a"), Collected(running, "w"), Collected(running, "x")]
        with pytest.raises(BusyError):
            Collected(running, "y")
        toys.gate.set()
        assert [answer.wait()[0][-1] for answer in answers] == ["z", "z", "z"]
        until(lambda: running.load == (0, 0))
        long, short = toys.made[:2]
        turns = [place for place, decoder in enumerate(toys.turns) if decoder is short]
        assert [after - before for before, after in pairwise(turns)] == [2, 2, 2]
        assert long in toys.turns[turns[-1] + 1 :]
        assert Collected(running, "y").wait() == ("z", "stop")


def test_a_cancelled_answer_stops_where_it_is() -> None:
    toys = Toys(gated=True)
    with engine(toys, parallel=1) as running:
        first, second = Collected(running, "a"), Collected(running, "b")
        until(lambda: running.load == (1, 1))
        running.cancel(second.ticket)
        assert running.load == (1, 0)
        running.cancel(first.ticket)
        toys.gate.set()
        until(lambda: running.load == (0, 0))
        assert first.items == second.items == []
        assert len(toys.made) == 1
        assert len(toys.made[0].read) <= 1
        running.cancel(first.ticket)


def test_a_receiver_that_fails_ends_its_own_answer_only() -> None:
    def fail(item: Piece | BaseException) -> None:
        raise RuntimeError("the loop is closed")

    with engine(Toys()) as running:
        running.submit(Wish((97,), 20), fail)
        assert Collected(running, "y").wait() == ("z", "stop")
        until(lambda: running.load == (0, 0))


def test_an_error_of_the_model_ends_one_answer_and_its_decoder_is_not_used_again() -> None:
    toys = Toys(Faulty)
    with engine(toys) as running:
        text, error = Collected(running, "abc!").wait()
        assert text == ""
        assert isinstance(error, RuntimeError)
        assert Collected(running, "abc").wait()[1] == "stop"
        assert len(toys.made) == 2


def test_time_ends_an_answer_and_refuses_one_that_never_began() -> None:
    toys = Toys(gated=True)
    with engine(toys, parallel=1, seconds=0.05) as running:
        first, second = Collected(running, "a"), Collected(running, "b")
        until(lambda: second.ticket.deadline < time.monotonic())
        toys.gate.set()
        assert isinstance(first.wait()[1], LateError)
        assert isinstance(second.wait()[1], LateError)
    pieces: list[Piece | BaseException] = []

    def take(item: Piece | BaseException) -> None:
        pieces.append(item)
        if len(pieces) == 4:
            ticket.deadline = 0.0

    toys.gate.clear()
    with engine(toys) as running:
        ticket = running.submit(Wish((97,), 30), take)
        toys.gate.set()
        until(lambda: len(pieces) == 5)
    assert [(item.text, item.finish) for item in pieces[1:] if isinstance(item, Piece)] == [
        ("b", None), ("c", None), ("d", None), ("", "length"),
    ]  # fmt: skip


def test_draining_refuses_what_waits_and_lets_run_what_runs() -> None:
    toys = Toys(gated=True)
    running = engine(toys, parallel=1)
    with running:
        first, second = Collected(running, "a"), Collected(running, "b")
        until(lambda: running.load == (1, 1))
        running.drain(grace=20)
        assert isinstance(second.wait()[1], ClosedError)
        with pytest.raises(ClosedError):
            Collected(running, "c")
        assert running.draining
        toys.gate.set()
        assert first.wait() == ("bcdefghijklmnopqrstuvwxyz", "stop")
    toys.gate.clear()
    with engine(toys) as running:
        last = Collected(running, "a")
        until(lambda: running.load == (1, 0))
        closing = threading.Thread(target=running.close)
        closing.start()
        until(lambda: running.draining)
        toys.gate.set()
        closing.join(timeout=20)
        assert isinstance(last.wait()[1], ClosedError | LateError)


def test_a_kept_prefix_of_a_real_model_gives_the_answer_of_a_fresh_one(toy_llama: LlamaForCausalLM) -> None:
    class Numbers(Bytes):
        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            return " ".join(map(str, ids)) + " "

    prompt = "the quick brown fox"
    wish = Wish(tuple(prompt.encode()), 12)
    fresh = [piece.token for piece in continuation(ModuleDecoder(toy_llama), Numbers(), wish)]
    with Engine(module_decoders(toy_llama), Numbers(), Limits()) as running:
        Collected(running, prompt[:9] + "er", limit=3).wait()
        answer = Collected(running, prompt, limit=12)
        answer.wait()
        assert answer.ticket.known == 9
        assert [item.token for item in answer.items if isinstance(item, Piece)] == fresh
