"""Attention of transformers' models over a cache that stays coded: when it is taken, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from bitwright.runtime.cache import attach_cache, cache_factory
from bitwright.runtime.direct_attention import CodedStates, attend, direct_kernel, refusal, use_direct_attention
from bitwright.runtime.dispatch import Kernel, Table, UnsupportedError
from bitwright.runtime.kernels.attention import reference
from bitwright.runtime.kernels.table import TABLE

MANIFESTS: dict[str, dict[str, Any]] = {
    "token": {"key": {"format": "int8 token"}, "value": {"format": "int4 g16 asym"}},
    "groups of tokens": {"key": {"format": "int4 g16 axis=0 asym"}, "value": {"format": "int4 g16"}, "window": 4},
    "values only": {"value": {"format": "int8 token"}},
}
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A table, and the numbers of new tokens of the calls that its attention kernel got."""

    table: Table
    calls: list[int] = field(default_factory=list)


def watched(kernel: Kernel) -> Watched:
    calls: list[int] = []

    def run(q: Tensor, *arguments: Any) -> Tensor:
        calls.append(q.shape[2])
        made: Tensor = kernel.run(q, *arguments)
        return made

    return Watched(TABLE.with_kernels(replace(kernel, run=run)), calls)


def plain() -> Watched:
    """The definition as if it were a kernel that reads codes."""
    return watched(replace(reference.KERNEL, name="attention/here", priority=10))


def coded(manifest: Mapping[str, Any], table: Table, model: nn.Module | None = None) -> Any:
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
            for parameter in model.parameters():
                parameter.requires_grad_(False).mul_(3 if parameter.dim() == 2 else 1)
    attach_cache(model, cache_factory(manifest, model.config, table))  # type: ignore[arg-type]
    return model


def logits(model: Any, device: torch.device, padding: int = 0, steps: int = 4) -> Tensor:
    """Logits of a prompt of 20 tokens and of some steps behind it, ``[1 + steps, batch, vocabulary]``."""
    ids = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(1)).to(device)
    mask = torch.ones(2, 20, dtype=torch.int64, device=device)
    mask[0, :padding] = 0
    found, cache = [], None
    with torch.no_grad():
        for step in range(1 + steps):
            output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits[:, -1].cpu())
            ids = torch.full((2, 1), 7 + step, device=device)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return torch.stack(found)


def compare(
    manifest: Mapping[str, Any], table: Watched, device: torch.device, tolerance: float, padding: int = 0
) -> None:
    wanted = logits(coded(manifest, TABLE), torch.device("cpu"), padding)
    found = logits(coded(manifest, table.table).to(device), device, padding)
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", MANIFESTS)
def test_steps_read_the_codes_and_prompts_the_decoded_cache(name: str, padding: int) -> None:
    table = plain()
    compare(MANIFESTS[name], table, torch.device("cpu"), 1e-5, padding)
    assert table.calls == [1] * 8  # two layers, four steps; the prompt of 20 tokens went the usual way


def test_windows_of_attention_come_through_the_mask() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)).eval()
    table = plain()
    wanted = logits(coded(MANIFESTS["token"], TABLE, copy.deepcopy(model)), torch.device("cpu"))
    found = logits(coded(MANIFESTS["token"], table.table, model), torch.device("cpu"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert table.calls == [1] * 8


def test_without_a_kernel_nothing_is_changed() -> None:
    model = coded(MANIFESTS["token"], TABLE)
    logits(model, torch.device("cpu"), steps=1)
    assert model.config._attn_implementation == "sdpa"
    assert direct_kernel(TABLE, torch.device("cpu"), torch.float32) is None


def test_another_attention_keeps_its_decoded_cache_and_says_why() -> None:
    table = plain()
    model = coded(MANIFESTS["token"], table.table)
    model.set_attn_implementation("eager")
    wanted = logits(coded(MANIFESTS["token"], TABLE), torch.device("cpu"))
    torch.testing.assert_close(logits(model, torch.device("cpu")), wanted, rtol=1e-3, atol=2e-4)
    assert table.calls == []
    reason = use_direct_attention(model)
    assert reason is not None
    assert "eager" in reason
    assert use_direct_attention(coded(MANIFESTS["token"], TABLE)) is None
    assert use_direct_attention(nn.Linear(2, 2)) is not None


def test_a_kernel_that_refuses_leaves_the_call_to_the_usual_attention() -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise UnsupportedError("heads of 16 channels")

    table = watched(replace(reference.KERNEL, name="attention/here", priority=10, run=refuse))
    compare(MANIFESTS["token"], table, torch.device("cpu"), 1e-5)
    assert table.calls == [1] * 8


def test_what_is_not_served_is_named() -> None:
    cache = cache_factory(MANIFESTS["token"], LlamaConfig(**SIZES), plain().table)()
    cache.read_directly()
    states = [torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    key, value = cache.layers[0].update(*states)
    query = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(3))
    module = nn.Module().eval()
    assert refusal(module, query, key, value, {"dropout": 0.0, "softcap": None}) is None
    for change, words in (
        ({"softcap": 30.0}, "softcap"), ({"s_aux": query}, "s_aux"), ({"dropout": 0.1}, "dropout"),
    ):  # fmt: skip
        assert words in str(refusal(module, query, key, value, change))
    assert "prompt" in str(refusal(module, query.expand(1, 4, 9, 16), key, value, {}))
    assert "trained" in str(refusal(nn.Module().train(), query, key, value, {}))
    assert "floats" in str(refusal(module, query, key, states[1], {}))
    made, weights = attend(module, query, key, value, None, scaling=0.25)
    assert weights is None
    assert made.shape == (1, 1, 4, 16)


def test_coded_states_are_numbers_to_everybody_else() -> None:
    cache = cache_factory(MANIFESTS["token"], LlamaConfig(**SIZES), plain().table)()
    given = torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(1))
    cache.read_directly()
    key, _ = cache.layers[0].update(given, given)
    assert isinstance(key, CodedStates)
    assert key.shape == given.shape
    assert (key.dtype, key.device) == (given.dtype, given.device)
    numbers = cache.layers[0].key_states.values(torch.float32)
    assert torch.equal(key.repeat_interleave(2, 1), numbers.repeat_interleave(2, 1))
    assert torch.equal(key.transpose(2, 3) @ key, numbers.transpose(2, 3) @ numbers)
    assert type(key + 0) is Tensor
