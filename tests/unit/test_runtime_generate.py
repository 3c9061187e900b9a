"""Text comes out in pieces; speed is related to the bytes of the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.native import unavailable
from bitwright.runtime import QuantEmbedding, QuantLinear
from bitwright.runtime.bench import bench, bytes_per_token
from bitwright.runtime.continuation import Wish, continuation
from bitwright.runtime.decoder import ModuleDecoder
from bitwright.runtime.generate import generate
from bitwright.runtime.sampling import Sampling


class Letters:
    """A tokenizer of one token per byte; characters of two bytes come in two tokens."""

    eos_token_id = 127

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


class Script(nn.Module):
    """A model that says a fixed text and remembers how many tokens it was fed."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.text, self.fed, self.config = text, [], type("Config", (), {"max_position_embeddings": 64})()

    def forward(self, input_ids: torch.Tensor, use_cache: bool, past_key_values: Any = None) -> Any:
        done = 0 if past_key_values is None else past_key_values
        self.fed.append(input_ids.shape[1])
        logits = torch.zeros(1, input_ids.shape[1], 256)
        logits[0, -1, self.text[done]] = 9.0
        return type("Output", (), {"logits": logits, "past_key_values": done + 1})()


def test_pieces_are_whole_characters_and_the_end_token_ends() -> None:
    model = Script("a\u00fcb".encode() + b"\x7fzzz")
    pieces = list(generate(model, Letters(), "hi ", max_new_tokens=20))
    assert pieces == ["a", "\u00fc", "b"]
    assert model.fed == [3, 1, 1, 1, 1]
    assert "".join(generate(Script(b"wxyz"), Letters(), "hi", max_new_tokens=2)) == "wx"
    # 62 + 2 tokens are all that the context holds.
    assert "".join(generate(Script(b"wxyz"), Letters(), "h" * 62, max_new_tokens=9)) == "wx"


def test_wrong_requests_are_refused_before_the_first_piece() -> None:
    for prompt, options, message in (
        ("", {}, "no tokens"), ("h" * 64, {}, "context 64"), ("hi", {"max_new_tokens": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            generate(Script(b"w"), Letters(), prompt, **options)


def test_draws_follow_the_seed_and_greedy_equals_transformers(toy_llama: LlamaForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7]])

    def draw(seed: int = 0, temperature: float = 0.0) -> list[int | None]:
        wish = Wish((5, 6, 7), 10, Sampling(temperature=temperature, seed=seed))
        return [piece.token for piece in continuation(ModuleDecoder(toy_llama), Letters(), wish)][1:]

    greedy = draw()
    theirs = toy_llama.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert theirs[0, 3:].tolist() == greedy
    first, again, other = (draw(seed, 1.0) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert draw(1, 1e-4) == greedy


def test_bytes_per_token_and_the_share_of_the_bandwidth(toy_llama: LlamaForCausalLM) -> None:
    model = copy.deepcopy(toy_llama)
    row = 64 * 4
    everything = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    table = model.model.embed_tokens.weight.nbytes
    assert bytes_per_token(model) == everything - table + row
    head = model.lm_head.weight
    weight = QuantizedTensor((parse("int4 g32").quantize(head.detach()),))
    model.lm_head = QuantLinear.from_quantized(weight)
    packed = bytes_per_token(model)
    assert packed == everything - table + row - head.nbytes + weight.storage_bits() // 8
    model.lm_head.cache_weights = True
    assert bytes_per_token(model) == everything - table + row
    model.lm_head.cache_weights = False
    model.model.embed_tokens = QuantEmbedding.from_quantized(
        QuantizedTensor((parse("int4 g32").quantize(model.model.embed_tokens.weight.detach()),))
    )
    assert bytes_per_token(model) == packed - row + weight.storage_bits() // 8 // 128
    tied = copy.deepcopy(toy_llama)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert bytes_per_token(tied) == everything - table
    result = bench(model, prompt=4, new_tokens=2, repeats=1, bandwidth=1e9, native=False)
    share = result["tokens_per_second"] * result["bytes_per_token"] / 1e9
    assert result["bandwidth_share"] == pytest.approx(share)
    assert result["kernels"] == ["embedding/reference", "linear/reference" if unavailable() else "linear/native"]
    assert result["threads"] == torch.get_num_threads()
    assert (result["decoder"], result["decoder_error"]) == ("modules", None)
    compiled = bench(model, prompt=4, new_tokens=2, repeats=1, bandwidth=1e9)
    if unavailable() is None:
        assert (compiled["decoder"], compiled["decoder_reason"]) == ("native", None)
        assert compiled["kernels"] == ["dense/fp32", "embedding/native", "linear/native"]
        assert compiled["decoder_error"] < 1e-5
    with pytest.raises(InputError, match="vocabulary"):
        bench(nn.Linear(2, 2))
