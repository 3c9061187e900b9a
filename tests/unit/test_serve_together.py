"""Several answers in one step: the bits of each are those it gets alone, in every form of weights and cache."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bitwright.errors import InputError
from bitwright.native import extension, instruction_sets, unavailable
from bitwright.native.buffers import span
from bitwright.runtime.cache import attach_cache, cache_factory
from bitwright.runtime.continuation import Continuation, Piece, Wish, continuation
from bitwright.runtime.decoder import ModuleDecoder, module_decoders, step_together
from bitwright.runtime.load import configure
from bitwright.runtime.native_decoder import NativeDecoder, native_network
from bitwright.serving.engine import Engine, Limits
from tests.unit.serve_toys import Bytes, Collected, Faulty, Toys, until
from tests.unit.test_native_decoder import quantized as packed
from tests.unit.test_native_decoder import tiny

needs_kernels = pytest.mark.skipif(unavailable() is not None, reason="compiled kernels are not there")

PROMPTS = [[5, 6, 7], [9], list(range(20, 61)), [3, 3, 3, 3, 3], [70, 1], list(range(90, 60, -1)), [8, 9], [4]]
STEPS = 5


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 131, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 640,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))
    return model.eval().requires_grad_(requires_grad=False)


def quantized(weights: str, exact: bool, cache: dict[str, Any] | None = None) -> nn.Module:
    model: nn.Module = llama()
    if weights:
        configure(packed(model, weights), exact=exact)
    if cache is not None:
        attach_cache(model, cache_factory(cache, model.config))  # type: ignore[arg-type]
    return model


def alone(make: Any, prompt: list[int]) -> list[Tensor]:
    """Logits after the prompt and of greedy steps of one sequence."""
    decoder = make()
    logits = [decoder.start(prompt)]
    for _ in range(STEPS):
        logits.append(decoder.step(int(logits[-1].argmax())))
    return logits


@needs_kernels
@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize(
    ("weights", "exact", "cache"),
    [
        ("", True, None),
        ("int4 g32 asym", False, None),
        ("int4 g32 asym", True, None),
        ("int3 channel", False, {"key": {"format": "int8 token"}, "value": {"format": "int4 g16 asym"}}),
        ("nf4 b32", False, {"key": {"format": "int4 g16 axis=0 asym"}, "value": {"format": "int4 g16"}, "window": 8}),
        ("ternary g32", False, None),
        ("e4m3 channel", False, None),
        ("e2m1 g32", False, None),
    ],
    ids=["float", "int8", "exact", "coded cache", "grouped cache", "ternary", "bf16", "lookup"],
)  # fmt: skip
def test_a_step_together_gives_the_bits_of_a_step_alone(
    weights: str, exact: bool, cache: dict[str, Any] | None, count: int
) -> None:
    network, _ = native_network(quantized(weights, exact, cache))
    expected = [alone(lambda: NativeDecoder(network), prompt) for prompt in PROMPTS[:count]]
    decoders = [NativeDecoder(network) for _ in range(count)]
    logits = [d.start(prompt) for d, prompt in zip(decoders, PROMPTS, strict=False)]
    for step in range(STEPS):
        made = NativeDecoder.step_together(decoders, [int(row.argmax()) for row in logits])
        assert made is not None
        logits = list(made)
        for row, other in zip(logits, expected, strict=True):
            assert torch.equal(row, other[step + 1])
    assert [d.tokens for d in decoders] == [len(prompt) + STEPS for prompt in PROMPTS[:count]]


@needs_kernels
@pytest.mark.parametrize("name", ["avx512", "avx2", "scalar"])
def test_every_instruction_set_and_number_of_threads(name: str) -> None:
    if name not in instruction_sets():
        pytest.skip(f"this machine has no {name}")
    network, _ = native_network(quantized("int4 g32", False), name)
    results = []
    for threads in (1, 2, 3):
        decoders = [NativeDecoder(network, threads=threads) for _ in range(6)]
        for decoder, prompt in zip(decoders, PROMPTS, strict=False):
            decoder.start(prompt)
        results.append(NativeDecoder.step_together(decoders, [7] * 6))
        for decoder, prompt, row in zip(decoders, PROMPTS, results[-1], strict=False):
            decoder.crop(len(prompt))
            assert torch.equal(decoder.step(7), row)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_kernels
@pytest.mark.parametrize(
    ("config", "changes"),
    [("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 8}), ("Qwen3Config", {"head_dim": 16})],
)
def test_windows_norms_of_heads_and_capped_logits(config: str, changes: dict[str, Any]) -> None:
    network, _ = native_network(tiny(config, **changes))
    prompts = [[i % 67 for i in prompt] for prompt in PROMPTS[:5]]
    expected = [alone(lambda: NativeDecoder(network), prompt) for prompt in prompts]
    decoders = [NativeDecoder(network) for _ in prompts]
    logits = [d.start(prompt) for d, prompt in zip(decoders, prompts, strict=True)]
    for step in range(STEPS):
        made = NativeDecoder.step_together(decoders, [int(row.argmax()) for row in logits])
        assert made is not None
        logits = list(made)
        assert all(torch.equal(row, other[step + 1]) for row, other in zip(logits, expected, strict=True))


@needs_kernels
def test_a_long_cache_is_split_between_threads_beside_short_ones() -> None:
    network, _ = native_network(llama(sliding_window=None, max_position_embeddings=1200))
    prompts = [[i % 131 for i in range(1100)], [5], [i % 97 for i in range(530)]]
    decoders = [NativeDecoder(network) for _ in prompts]
    for decoder, prompt in zip(decoders, prompts, strict=True):
        decoder.start(prompt)
    made = NativeDecoder.step_together(decoders, [1, 2, 3])
    assert made is not None
    for decoder, prompt, token, row in zip(decoders, prompts, (1, 2, 3), made, strict=True):
        decoder.crop(len(prompt))
        assert torch.equal(decoder.step(token), row)


@needs_kernels
def test_what_cannot_step_together_says_so_and_reads_nothing() -> None:
    first, second = (native_network(llama(max_position_embeddings=64))[0] for _ in range(2))
    decoders = [NativeDecoder(first), NativeDecoder(second)]
    for decoder in decoders:
        decoder.start([5, 6])
    assert NativeDecoder.step_together(decoders, [1, 2]) is None
    assert NativeDecoder.step_together([decoders[0], NativeDecoder(first)], [1, 2]) is None
    other = NativeDecoder(first)
    other.start([7])
    pair = [decoders[0], other]
    with pytest.raises(InputError, match="vocabulary"):
        NativeDecoder.step_together(pair, [1, 131])
    with pytest.raises(InputError, match="twice"):
        NativeDecoder.step_together([other, other], [1, 2])
    full = NativeDecoder(first)
    full.start([1] * 64)
    with pytest.raises(InputError, match="context"):
        NativeDecoder.step_together([other, full], [1, 2])
    assert [d.tokens for d in (*decoders, other, full)] == [2, 2, 1, 64]
    # Mixed networks take their steps one after the other.
    made = step_together(decoders, [1, 2])
    assert all(isinstance(row, Tensor) for row in made)
    assert [d.tokens for d in decoders] == [3, 3]
    readers = [d._reader for d in pair]
    ids, logits = torch.zeros(2, dtype=torch.int64), torch.empty(2, 131)
    for arguments, why in (
        (([], span(ids), span(logits), 1), "1 to 64"),
        ((readers, span(ids[:1]), span(logits), 1), "ids"),
        ((readers, span(ids), span(logits[:1]), 1), "logits"),
        ((readers, span(ids), span(logits), 0), "threads"),
    ):
        with pytest.raises(ValueError, match=why):
            extension().read_together(*arguments)
    with pytest.raises(ValueError, match="missing"):
        extension().read_together([None, None], span(ids), span(logits), 1)


def test_decoders_without_a_common_step_take_one_after_the_other(toy_llama: LlamaForCausalLM) -> None:
    decoders = [ModuleDecoder(toy_llama), ModuleDecoder(toy_llama)]
    expected = []
    for decoder, prompt in zip(decoders, ([5, 6, 7], [9]), strict=True):
        decoder.start(prompt)
        expected.append(decoder.step(11))
        decoder.crop(len(prompt))
    made = step_together(decoders, [11, 11])
    for row, other in zip(made, expected, strict=True):
        assert isinstance(row, Tensor)
        torch.testing.assert_close(row, other)
    assert step_together([], []) == []


def test_an_error_of_one_sequence_leaves_the_others_alone() -> None:
    toys = Toys(Faulty)
    decoders = [toys(), toys()]
    for decoder in decoders:
        decoder.start([97])
    made = step_together(decoders, [98, Faulty.fault or 0])
    assert isinstance(made[0], Tensor)
    assert isinstance(made[1], RuntimeError)


class Numbers(Bytes):
    """Every token is a word."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, ids)) + " "


@needs_kernels
@pytest.mark.parametrize("native", [True, False])
def test_answers_of_an_engine_do_not_depend_on_who_else_is_served(native: bool) -> None:
    model = quantized("int4 g32", False)
    network = native_network(model)[0]
    make = (lambda: NativeDecoder(network)) if native else module_decoders(model)
    texts = ["the quick brown fox", "a", "jumps over", "the lazy dog and then some more", "bc", "zz"]
    expected = [
        [piece.token for piece in continuation(make(), Numbers(), Wish(tuple(text.encode()), 9 + place))]
        for place, text in enumerate(texts)
    ]
    with Engine(make, Numbers(), Limits(parallel=len(texts), cache_bytes=0)) as running:
        answers = [Collected(running, text, limit=9 + place) for place, text in enumerate(texts)]
        for answer in answers:
            answer.wait()
        until(lambda: running.load == (0, 0))
        counts = running.counts
    found = [[item.token for item in answer.items if isinstance(item, Piece)] for answer in answers]
    assert found == expected
    assert counts.drawn == sum(9 + place for place in range(len(texts)))
    assert counts.rows == counts.drawn - len(texts)  # the first token of each follows from its prompt
    assert counts.steps < counts.rows / 3  # they went together
    assert counts.read == sum(len(text) for text in texts)
    assert (counts.answers, counts.errors) == (len(texts), 0)


def test_a_long_prompt_does_not_hold_up_answers_that_draw() -> None:
    toys = Toys(gated=True)
    with Engine(toys, Bytes(), Limits(parallel=3)) as running:
        short = Collected(running, "a", limit=20)
        long = Collected(running, "b" * 40, limit=2)
        toys.gate.set()
        assert short.wait()[1] == "length"
        assert long.wait() == ("cd", "length")


def test_prompts_are_read_in_turn_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.serving.engine.PIECE", 4)
    toys = Toys(gated=True)
    with Engine(toys, Bytes(), Limits(parallel=3)) as running:
        answers = [Collected(running, "a", limit=12), Collected(running, "b" * 16, 1), Collected(running, "c" * 8, 1)]
        toys.gate.set()
        for answer in answers:
            answer.wait()
    drawing, long = toys.made[:2]
    turns = ["drawing" if d is drawing else "long" if d is long else "middle" for d in toys.turns]
    # Whoever draws gets a token between any two pieces of prompts, and the prompts take turns.
    first = turns.index("long")
    pieces = [t for t in turns if t != "drawing"]
    assert pieces[:4] == ["long", "middle", "long", "middle"]
    between = turns[first : len(turns) - turns[::-1].index("long")]
    assert all("drawing" in pair for pair in pairwise(between))


def test_a_continuation_can_be_driven_from_outside() -> None:
    toy = Toys()()
    answer = Continuation(toy, Bytes(), Wish(tuple(b"abcdef"), 3))
    seen = []
    while answer.reading:
        seen.append(answer.unread)
        answer.read()
    assert seen == [6, 2]
    pieces = [answer.draw()]
    while pieces[-1].finish is None:
        pieces.append(answer.draw(toy.step(answer.token)))
    assert [piece.text for piece in pieces] == ["g", "h", "i"]
