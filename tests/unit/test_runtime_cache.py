"""The coded key-value cache: what it keeps, what attention sees, what it costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, T5Config

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.runtime import UnsupportedError
from bitwright.runtime.cache import QuantizedCache, QuantizedLayer, attach_cache, cache_factory
from bitwright.stages.transforms.hadamard import apply_hadamard

TOKEN = {"key": {"format": "int4 token"}, "value": {"format": "int4 token"}, "window": 0}
KIVI = {"key": {"format": "int2 g8 axis=0 asym"}, "value": {"format": "int2 g16 asym"}, "window": 5}
ROTATE = [{"kind": "hadamard", "options": {"size": 32, "seed": 7}}]


def states(tokens: int, dim: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, tokens, dim, generator=generator), torch.randn(2, 3, tokens, dim, generator=generator)


def filled(
    manifest: dict[str, Any], k: Tensor, v: Tensor, steps: tuple[int, ...]
) -> tuple[QuantizedCache, Tensor, Tensor]:
    cache = cache_factory(manifest)()
    keys = values = torch.empty(0)
    for ks, vs in zip(k.split(steps, 2), v.split(steps, 2), strict=True):
        keys, values = cache.update(ks, vs, 0)
    return cache, keys, values


@pytest.mark.parametrize(
    "text",
    ["int4 token", "int8 channel", "int3 g16 asym", "mxfp4", "nvfp4", "e4m3 token", "nf4 g16", "int4 g32 narrow"],
)
def test_tokens_are_rounded_as_the_format_says(text: str) -> None:
    k, v = states(9)
    manifest = {"key": {"format": text}, "value": None, "window": 0}
    _, keys, values = filled(manifest, k, v, (9,))
    assert torch.equal(values, v)
    fmt = parse(text)
    if fmt.scale.outer is None:
        expected = fmt.quantize(k.reshape(-1, 32)).dequantize().view_as(k)
        assert torch.equal(keys, expected)
    else:
        assert float((keys - k).abs().max()) < 0.6
    single, again, _ = filled(manifest, k, v, (1,) * 9)
    assert torch.equal(again, keys)
    assert single.get_seq_length() == 9


def test_keys_are_coded_per_channel_over_groups_of_tokens() -> None:
    k, v = states(21)
    fmt = parse(KIVI["key"]["format"])
    cache, keys, values = filled(KIVI, k, v, (21,))
    # 21 tokens, the last 5 float: two groups of 8 keys are due, 16 values.
    for b in range(2):
        for h in range(3):
            expected = fmt.quantize(k[b, h, :16]).dequantize()
            assert torch.equal(keys[b, h, :16], expected)
    assert torch.equal(keys[:, :, 16:], k[:, :, 16:])
    assert torch.equal(values[:, :, 16:], v[:, :, 16:])
    assert not torch.equal(values[:, :, 15], v[:, :, 15])
    for steps in ((21,), (8, 8, 5), (1,) * 21, (7, 13, 1)):
        other, other_keys, other_values = filled(KIVI, k, v, steps)
        assert torch.equal(other_keys, keys), steps
        assert torch.equal(other_values, values), steps
        assert other.bytes() == cache.bytes()


def test_bytes_count_what_is_stored() -> None:
    k, v = states(16)
    cache, _, _ = filled(TOKEN, k, v, (16,))
    rows = 2 * 2 * 3 * 16
    assert cache.bytes() == rows * (32 // 2 + 4)
    kivi, _, _ = filled({**KIVI, "window": 0}, k, v, (16,))
    keys, values = 2 * 3 * 2 * 32 * (2 + 2 + 1), 2 * 3 * 16 * (8 + 2 * (2 + 1))
    assert kivi.bytes() == keys + values
    assert filled({"key": None, "value": None}, k, v, (16,))[0].bytes() == k.nbytes + v.nbytes


def test_rotation_surrounds_the_coding() -> None:
    k, v = states(6)
    k[..., 3] *= 40
    plain = filled(TOKEN, k, v, (6,))[1]
    turned = filled({**TOKEN, "key": {"format": "int4 token", "online": ROTATE}}, k, v, (6,))[1]
    others = torch.arange(32) != 3
    assert float((turned - k)[..., others].square().mean()) < float((plain - k)[..., others].square().mean()) / 2
    rotated = apply_hadamard(k, 32, 7)
    expected = apply_hadamard(parse("int4 token").quantize(rotated.reshape(-1, 32)).dequantize(), 32, 7, inverse=True)
    torch.testing.assert_close(turned, expected.view_as(k))


@pytest.mark.parametrize("manifest", [TOKEN, KIVI])
def test_rolling_back_and_choosing_beams(manifest: dict[str, Any]) -> None:
    k, v = states(21)
    cache, keys, _ = filled(manifest, k, v, (21,))
    cache.crop(0)
    cache.crop(-6)
    assert cache.get_seq_length() == 15
    assert cache.get_mask_sizes(1, 0) == (16, 0)
    more_k, more_v = states(1, seed=1)
    after, _ = cache.update(more_k, more_v, 0)
    coded = 15 if manifest is TOKEN else 8
    assert torch.equal(after[:, :, :coded], keys[:, :, :coded])
    assert after.shape[2] == 16
    assert cache.is_croppable == (manifest is TOKEN)
    cache.reorder_cache(torch.tensor([1, 1]))
    swapped, _ = cache.update(more_k, more_v, 0)
    assert torch.equal(swapped[0, :, :16], after[1])
    assert torch.equal(swapped[1, :, :16], after[1])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([True, False, True, False]))
    same, _ = cache.update(more_k, more_v, 0)
    assert torch.equal(same[:, :, :16], swapped[:, :, :16])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(cache.update(k, v, 0)[0], keys)


def test_results_keep_the_dtype() -> None:
    k, v = states(5)
    keys, values = filled(TOKEN, k.bfloat16(), v.bfloat16(), (4, 1))[1:]
    assert keys.dtype == values.dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["int8 tensor", "nf4 b64", "nf4 b64 scale=double", "int4 block4x4", "lut4 channel"])
def test_formats_that_need_all_tokens_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="token by token"):
        cache_factory({"key": {"format": text}, "value": None, "window": 0})


def test_manifests_are_checked() -> None:
    with pytest.raises(InputError, match="window"):
        cache_factory({**TOKEN, "windw": 3})
    with pytest.raises(InputError, match="number of tokens"):
        cache_factory({**TOKEN, "window": -1})
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        cache_factory(TOKEN, T5Config())
    with pytest.raises(UnsupportedError, match="linear_attention"):
        cache_factory(TOKEN, LlamaConfig(num_hidden_layers=1, layer_types=["linear_attention"]))


def prompt() -> Tensor:
    return torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(3))


def test_a_whole_window_and_token_by_token_agree(toy_llama: LlamaForCausalLM) -> None:
    factory = cache_factory(TOKEN, toy_llama.config)
    ids = prompt()
    # In fp32 the order of sums would turn a few roundings, and these the rest.
    toy_llama = copy.deepcopy(toy_llama).double()
    with torch.no_grad():
        whole = toy_llama(ids, past_key_values=factory(), use_cache=True).logits
        plain = toy_llama(ids, use_cache=False).logits
        cache, parts = factory(), []
        for token in ids.split(1, dim=1):
            parts.append(toy_llama(token, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert float((whole - plain).abs().max()) > 1e-2


def test_an_attached_cache_serves_forward_and_generate(toy_llama: LlamaForCausalLM) -> None:
    model = copy.deepcopy(toy_llama)
    factory = cache_factory(TOKEN, model.config)
    attach_cache(model, factory)
    ids = prompt()
    with torch.no_grad():
        output = model(ids)
        assert isinstance(output.past_key_values, QuantizedCache)
        assert torch.equal(output.logits, toy_llama(ids, past_key_values=factory(), use_cache=True).logits)
        assert torch.equal(model(ids, use_cache=False).logits, toy_llama(ids, use_cache=False).logits)
        mine = DynamicCache()
        toy_llama(ids[:, :4], past_key_values=mine, use_cache=True)
        assert model(ids[:, 4:], past_key_values=mine).past_key_values is mine
    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
    }
    for beams in (1, 2):
        out = model.generate(ids, num_beams=beams, **options)
        assert isinstance(out.past_key_values, QuantizedCache)
        given = toy_llama.generate(ids, num_beams=beams, past_key_values=factory(), **options)
        assert torch.equal(out.sequences, given.sequences)
    assert isinstance(copy.deepcopy(model)(ids).past_key_values, QuantizedCache)


def test_layers_with_a_sliding_window_keep_all_tokens() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, max_position_embeddings=64,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    ids = prompt()
    fine = cache_factory({"key": {"format": "e5m2 token"}, "value": None, "window": 64}, config)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        cache, parts = fine(), []
        for piece in ids.split(5, dim=1):
            parts.append(model(piece, past_key_values=cache, use_cache=True).logits)
    assert all(isinstance(layer, QuantizedLayer) for layer in cache.layers)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
