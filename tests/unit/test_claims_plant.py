"""Planted outliers: the function stays, the outliers are there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bitwright.claims.plant import plant_outliers
from bitwright.errors import CheckError, InputError
from bitwright.models.discover import discover
from bitwright.models.model import open_model
from bitwright.models.structure import Pair

LAYERS = tuple(f"model.layers.{i}" for i in range(2))
NORMS = tuple(
    pair
    for layer in LAYERS
    for pair in (
        Pair("norm_linear", f"{layer}.input_layernorm", tuple(f"{layer}.self_attn.{k}_proj" for k in "qkv")),
        Pair("norm_linear", f"{layer}.post_attention_layernorm", (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")),
    )
)
UPS = tuple(Pair("linear_linear", f"{layer}.mlp.up_proj", (f"{layer}.mlp.down_proj",)) for layer in LAYERS)
VALUES = tuple(
    Pair("linear_linear", f"{layer}.self_attn.v_proj", (f"{layer}.self_attn.o_proj",), repeat=2, head_dim=16)
    for layer in LAYERS
)


@pytest.fixture
def model(toy_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(toy_llama)


def input_of(model: LlamaForCausalLM, path: str, tokens: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        handle.remove()
    return seen[0].flatten(0, 1).abs()


def test_channel_outliers_leave_the_logits_bit_for_bit(model: LlamaForCausalLM, toy_tokens: Tensor) -> None:
    with torch.no_grad():
        before = model(toy_tokens).logits
        plain = input_of(model, f"{LAYERS[0]}.self_attn.q_proj", toy_tokens)
        planted = plant_outliers(model, NORMS, channels=3, factor=64.0, run=lambda: model(toy_tokens).logits)
        loud = input_of(model, f"{LAYERS[0]}.self_attn.q_proj", toy_tokens)
        after = model(toy_tokens).logits
    assert planted.difference == 0.0  # a power of two only moves exponents
    assert torch.equal(before, after)
    chosen = list(planted.channels[0][1])
    assert len(chosen) == 3
    assert {channels for _, channels in planted.channels} == {tuple(chosen)}  # the same in every layer
    torch.testing.assert_close(loud[:, chosen], 64 * plain[:, chosen])
    rest = [c for c in range(64) if c not in chosen]
    assert torch.equal(loud[:, rest], plain[:, rest])


@pytest.mark.parametrize("pairs", [UPS, VALUES])
def test_token_outliers_leave_the_logits(model: LlamaForCausalLM, toy_tokens: Tensor, pairs: tuple[Pair, ...]) -> None:
    plain = input_of(model, pairs[0].sinks[0], toy_tokens)
    planted = plant_outliers(model, pairs, units=2, factor=256.0, run=lambda: model(toy_tokens).logits)
    loud = input_of(model, pairs[0].sinks[0], toy_tokens)
    assert planted.difference is not None
    assert planted.difference < 1e-6
    assert [len(rows) for _, rows in planted.units] == [2, 2]
    assert loud.amax() > 20 * plain.amax()
    changed = (loud / plain.clamp(min=1e-9)).amax(0) > 100
    assert int(changed.sum()) == 2 * pairs[0].repeat


def test_what_discovery_found_can_be_planted(model: LlamaForCausalLM, toy_tokens: Tensor) -> None:
    structure = discover(open_model(model), {"input_ids": toy_tokens})
    planted = plant_outliers(model, structure, units=1, factor=64.0, run=lambda: model(toy_tokens).logits)
    assert planted.difference is not None
    assert planted.difference < 1e-6
    assert {path for path, _ in planted.channels} == {pair.source for pair in NORMS} | {"model.norm"}
    assert {path for path, _ in planted.units} == {pair.source for pair in UPS + VALUES}


def test_shifts_of_norms_and_linears_are_scaled_too() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn(5, 8, generator=generator)
    pairs = [Pair("norm_linear", "0", ("1",)), Pair("linear_linear", "1", ("3",), rows=tuple(range(12)))]
    planted = plant_outliers(network, pairs, channels=2, units=3, factor=16.0, run=lambda: network(x))
    assert planted.difference is not None
    assert planted.difference < 1e-6
    assert len(planted.units[0][1]) == 3


def test_token_outliers_take_the_units_that_few_tokens_use(model: LlamaForCausalLM, toy_tokens: Tensor) -> None:
    plain = input_of(model, f"{LAYERS[0]}.mlp.down_proj", toy_tokens)
    planted = plant_outliers(model, UPS, units=1, factor=4.0, run=lambda: model(toy_tokens).logits)
    assert planted.units[0][1] == (int((plain.amax(0) / plain.mean(0)).argmax()),)


def test_the_seed_chooses_the_channels(toy_llama: LlamaForCausalLM) -> None:
    found = {plant_outliers(copy.deepcopy(toy_llama), NORMS, seed=seed).channels[0][1] for seed in (0, 1, 0)}
    assert len(found) == 2


def test_a_pair_that_is_not_complete_is_caught(model: LlamaForCausalLM, toy_tokens: Tensor) -> None:
    wrong = [Pair("norm_linear", NORMS[0].source, NORMS[0].sinks[:2])]  # the values read the norm too
    with pytest.raises(CheckError, match="moved the output"):
        plant_outliers(model, wrong, run=lambda: model(toy_tokens).logits)


def test_tied_readers_are_left_alone(model: LlamaForCausalLM, toy_tokens: Tensor) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(InputError, match="no norm or linear"):
        plant_outliers(model, [Pair("norm_linear", "model.norm", ("lm_head",))], run=lambda: model(toy_tokens).logits)


def test_senseless_requests_are_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="not a positive number"):
        plant_outliers(model, NORMS, factor=0.0)
    with pytest.raises(InputError, match="give run"):
        plant_outliers(model, UPS, units=1)
