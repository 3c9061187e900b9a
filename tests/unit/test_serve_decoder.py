"""A decoder reads a sequence in any pieces, goes back, and says where it cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from bitwright.errors import InputError
from bitwright.runtime.cache import attach_cache, cache_factory
from bitwright.runtime.decoder import ModuleDecoder, module_decoders

IDS = [5, 6, 7, 8, 9, 10, 11, 12]


def _last(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


def _with_cache(model: LlamaForCausalLM, manifest: dict[str, object]) -> LlamaForCausalLM:
    model = copy.deepcopy(model)
    attach_cache(model, cache_factory(manifest, model.config))
    return model


def test_pieces_steps_and_crops_give_the_logits_of_one_pass(toy_llama: LlamaForCausalLM) -> None:
    decoder = ModuleDecoder(toy_llama)
    torch.testing.assert_close(decoder.start(IDS), _last(toy_llama, IDS))
    assert decoder.tokens == len(IDS)
    assert decoder.bytes() > 0
    assert decoder.crop(3) == 3
    decoder.extend([20, 21])
    torch.testing.assert_close(decoder.step(22), _last(toy_llama, [5, 6, 7, 20, 21, 22]))
    assert decoder.crop(9) == 6
    assert decoder.crop(0) == decoder.tokens == decoder.bytes() == 0
    torch.testing.assert_close(decoder.extend([4]), _last(toy_llama, [4]))
    torch.testing.assert_close(decoder.start(IDS[:2]), _last(toy_llama, IDS[:2]))


def test_two_decoders_of_a_model_do_not_meet(toy_llama: LlamaForCausalLM) -> None:
    make = module_decoders(toy_llama)
    first, second = make(), make()
    first.start(IDS[:4])
    second.start(IDS[4:])
    torch.testing.assert_close(first.step(3), _last(toy_llama, [*IDS[:4], 3]))
    torch.testing.assert_close(second.step(3), _last(toy_llama, [*IDS[4:], 3]))


def test_a_cache_of_coded_tokens_goes_back_where_it_codes_token_by_token(toy_llama: LlamaForCausalLM) -> None:
    side = {"format": "int8 token asym", "online": []}
    model = _with_cache(toy_llama, {"key": side, "value": side, "window": 0})
    decoder, fresh = ModuleDecoder(model), ModuleDecoder(model)
    decoder.start(IDS)
    assert decoder.piece is not None
    assert decoder.crop(5) == 5
    torch.testing.assert_close(decoder.step(30), fresh.start([*IDS[:5], 30]))
    grouped = _with_cache(toy_llama, {"key": side, "value": side, "window": 4})
    decoder = ModuleDecoder(grouped)
    decoder.start(IDS)
    assert decoder.piece is None
    assert decoder.crop(len(IDS)) == decoder.tokens == 0


def test_sliding_windows_go_back_until_they_have_moved() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=6, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    decoder = ModuleDecoder(model)
    decoder.start(IDS[:5])
    assert decoder.crop(2) == 2
    torch.testing.assert_close(decoder.extend([40, 41]), _last(model, [5, 6, 40, 41]))
    decoder.start(IDS)
    assert decoder.crop(4) == decoder.tokens == 0


def test_recurrent_states_are_read_at_once_and_never_taken_back() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    torch.manual_seed(0)
    model = MambaForCausalLM(config).eval()
    decoder = ModuleDecoder(model)
    assert decoder.piece is None
    assert decoder.context is None
    decoder.start(IDS)
    torch.testing.assert_close(decoder.step(3), _last(model, [*IDS, 3]), atol=1e-5, rtol=1e-4)
    assert decoder.crop(4) == 0


def test_what_does_not_fit_is_refused(toy_llama: LlamaForCausalLM) -> None:
    decoder = ModuleDecoder(toy_llama)
    with pytest.raises(InputError, match="no tokens"):
        decoder.start([])
    decoder.start([3] * 128)
    with pytest.raises(InputError, match="129 tokens do not fit"):
        decoder.step(3)
    bert = BertConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(InputError, match="causal"):
        module_decoders(BertModel(bert))
