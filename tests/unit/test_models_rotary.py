"""Rotary position embeddings are found by turning queries and keys, whatever way a network writes them down."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers
from torch import nn

from bitwright.models import Structure, discover, open_model
from bitwright.models.calling import call_module, example_inputs
from bitwright.models.edits import turn_outputs
from bitwright.models.stream import logits_of
from bitwright.models.structure import RotaryPair
from tests.unit.models_toys import randomised, toy_model

_SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}


def _gptj() -> nn.Module:
    config = transformers.GPTJConfig(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    return randomised(transformers.GPTJForCausalLM(config))


def _qwen3() -> nn.Module:
    config = transformers.Qwen3Config(**_SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    return randomised(transformers.Qwen3ForCausalLM(config))


def _deepseek() -> nn.Module:
    config = transformers.DeepseekV3Config(
        **_SMALL, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, first_k_dense_replace=2,
    )  # fmt: skip
    return randomised(transformers.DeepseekV3ForCausalLM(config))


_BUILDERS = {"gptj": _gptj, "qwen3": _qwen3, "deepseek": _deepseek}


def _module(name: str) -> nn.Module:
    return _BUILDERS[name]() if name in _BUILDERS else toy_model(name)


@functools.cache
def _found(name: str) -> Structure:
    torch.manual_seed(0)
    return discover(open_model(_module(name)))


@pytest.mark.parametrize(
    ("name", "query", "key", "layout", "size", "head"),
    [
        ("llama", "q_proj", "k_proj", "half", 8, 8),
        ("phi", "q_proj", "k_proj", "half", 4, 8),
        ("gpt-neox", "query_key_value", "query_key_value", "half", 2, 8),
        ("phi3", "qkv_proj", "qkv_proj", "half", 8, 8),
        ("olmo2", "q_proj", "k_proj", "half", 8, 8),
        ("qwen3", "q_proj", "k_proj", "half", 8, 8),
        ("gptj", "q_proj", "k_proj", "interleaved", 4, 8),
        ("deepseek", "q_b_proj", "kv_a_proj_with_mqa", "interleaved", 4, 4),
    ],
)
def test_layouts(name: str, query: str, key: str, layout: str, size: int, head: int) -> None:
    pairs = _found(name).rotary
    assert len(pairs) == len(_found(name).blocks)
    for pair in pairs:
        assert (pair.query.rpartition(".")[2], pair.key.rpartition(".")[2]) == (query, key)
        assert (pair.layout, pair.size, pair.head_dim) == (layout, size, head)
        assert pair.error < 1e-5
        assert f"the first {size} of {head} channels" in pair.allowed
        assert (", where the gains" in pair.allowed) == (name in ("olmo2", "qwen3"))


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "vit"])
def test_positions_that_are_added_are_no_rotary_ones(name: str) -> None:
    assert _found(name).rotary == ()


def test_rows_of_a_fused_projection() -> None:
    pair = _found("gpt-neox").rotary[0]
    assert pair.query_rows == tuple(head * 24 + i for head in range(4) for i in range(8))
    assert pair.key_rows == tuple(head * 24 + 8 + i for head in range(4) for i in range(8))


def _turned(name: str, pair: RotaryPair, matrix: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    module = _module(name)
    sites = {site.path: site for site in _found(name).sites}
    with torch.no_grad():
        for path, rows in ((pair.query, pair.query_rows), (pair.key, pair.key_rows)):
            site = sites[path]
            for parameter in filter(None, (site.name, site.bias)):
                value = module.get_parameter(parameter)
                value.copy_(turn_outputs(value, site, matrix, torch.tensor(rows)))
        return logits_of(call_module(module, example_inputs(module, seed=7)))


@pytest.mark.parametrize("name", ["phi", "gpt-neox", "gptj"])
def test_what_is_allowed_keeps_the_whole_model_and_the_rest_does_not(name: str) -> None:
    pair = _found(name).rotary[-1]
    expected = _turned(name, pair, torch.eye(pair.head_dim))
    angle, first = torch.tensor(0.7), 0
    second = first + (pair.size // 2 if pair.layout == "half" else 1)
    matrix = torch.eye(pair.head_dim)
    matrix[first, first] = matrix[second, second] = angle.cos()
    matrix[first, second], matrix[second, first] = -angle.sin(), angle.sin()
    torch.testing.assert_close(_turned(name, pair, matrix), expected, rtol=1e-4, atol=1e-4)
    across = torch.roll(torch.eye(pair.head_dim), 3, 0)
    assert not torch.allclose(_turned(name, pair, across), expected, atol=1e-3)
