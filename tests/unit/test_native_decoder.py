"""The compiled decoding step against the model's own modules, for tiny random networks of several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.native import instruction_sets, unavailable
from bitwright.runtime import QuantEmbedding, QuantLinear
from bitwright.runtime.cache import attach_cache, cache_factory
from bitwright.runtime.decoder import ModuleDecoder
from bitwright.runtime.load import configure
from bitwright.runtime.native_decoder import NativeDecoder, NativeNetwork, NotServedError, find_decoders, native_network
from bitwright.runtime.native_decoder.cache import CacheForm
from bitwright.runtime.native_decoder.trace import distance
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.solve import quantize_weight

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

BASE: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 67, "max_position_embeddings": 600, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama with scaled angles": ("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 20}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 4}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma": ("GemmaConfig", {"head_dim": 24, "num_key_value_heads": 1}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "attn_logit_softcapping": 20.0, "sliding_window": 8}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "phi3": ("Phi3Config", {}),
    "glm": ("GlmConfig", {"head_dim": 16}),
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.2, "logits_scaling": 3.0, "attention_multiplier": 0.3},
    ),
    "starcoder2": ("Starcoder2Config", {}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 2}, "one linear layer"),
    "olmo2": ("Olmo2Config", {}, "norms read the stream"),
    "cohere": ("CohereConfig", {}, "one after the other"),
    "gpt2": ("GPT2Config", {"n_embd": 48, "n_layer": 1, "n_head": 4}, "more than the tokens' embedding"),
}


def tiny(config: str, **changes: Any) -> nn.Module:
    """A random network whose norms, biases and attention are far from their starting values."""
    torch.manual_seed(0)
    settings = {name: value for name, value in (BASE | changes).items() if config != "GPT2Config" or "num_" not in name}
    made: nn.Module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)
    return made


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, BASE["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def quantized(model: nn.Module, text: str, embedding: str | None = None) -> nn.Module:
    """The model with all linear layers (and the embedding) on packed weights."""
    for path, module in tuple(model.named_modules()):
        if isinstance(module, nn.Linear):
            weight = quantize_weight(module.weight.detach(), Quantizer(parse(text)))
            bias = None if module.bias is None else module.bias.detach()
            model.set_submodule(path, QuantLinear.from_quantized(weight, bias))
        elif isinstance(module, nn.Embedding) and embedding:
            table = quantize_weight(module.weight.detach(), Quantizer(parse(embedding)))
            model.set_submodule(path, QuantEmbedding.from_quantized(table))
    return model


def agree(model: nn.Module, network: NativeNetwork, count: int = 21, limit: float = 1e-5) -> None:
    own, other = NativeDecoder(network), ModuleDecoder(model)
    text = ids(count)
    assert distance(own.start(text[:-4]), other.start(text[:-4])) < limit
    for token in text[-4:]:
        assert distance(own.step(token), other.step(token)) < limit


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_the_modules_do(family: str) -> None:
    config, changes = FAMILIES[family]
    model = tiny(config, **changes)
    network, error = native_network(model)
    assert error < 1e-5
    agree(model, network)


@pytest.mark.parametrize("family", REFUSED)
def test_what_it_cannot_express_falls_back_and_is_said(family: str, caplog: pytest.LogCaptureFixture) -> None:
    config, changes, reason = REFUSED[family]
    model = tiny(config, **changes)
    found = find_decoders(model)
    assert not found.native
    assert reason in str(found.reason)
    assert reason in caplog.text
    assert found.decoders().start([1, 2, 3]).shape == (BASE["vocab_size"],)


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("text", ["int4 g16", "int3 channel", "int8 g32 asym", "nf4 b16", "ternary channel"])
def test_packed_weights_of_every_instruction_set(name: str, text: str) -> None:
    model = quantized(tiny("LlamaConfig", attention_bias=True), text, "int8 channel")
    network, error = native_network(model, name)
    assert error < 1e-5
    assert network.exact
    assert network.kernels["model.embed_tokens"] == "embedding/native"


@pytest.mark.parametrize("name", instruction_sets())
def test_rounded_activations_as_the_modules_round_them(name: str) -> None:
    model = configure(quantized(tiny("LlamaConfig"), "int4 g16"), exact=False)
    network, error = native_network(model, name)
    assert not network.exact
    assert error < 2e-2
    assert set(network.kernels.values()) == {"linear/native-int8", "dense/fp32"}


@pytest.mark.parametrize("text", ["nf4 b16", "ternary channel", "fp4-bnb b32"])
def test_every_way_of_multiplying_rounded_activations(text: str) -> None:
    # On the instruction set that the kernels were chosen for.
    model = configure(quantized(tiny("LlamaConfig", attention_bias=True), text), exact=False)
    network, error = native_network(model)
    assert not network.exact
    assert error < 2e-2
    assert all("native" in kernel or "dense" in kernel for kernel in network.kernels.values())


def test_the_number_of_threads_changes_nothing() -> None:
    model = configure(quantized(tiny("Qwen3Config", head_dim=16), "int4 g16"), exact=False)
    network, _ = native_network(model)
    text = ids(40)
    results = []
    for threads in (1, 2, 5):
        decoder = NativeDecoder(network, threads=threads)
        results.append([decoder.start(text[:30]), *(decoder.step(token) for token in text[30:])])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_pieces_crops_and_long_prompts() -> None:
    model = tiny("MistralConfig", sliding_window=37)
    network, _ = native_network(model)
    text = ids(590)
    whole = NativeDecoder(network).start(text)
    assert distance(whole, ModuleDecoder(model).start(text)) < 1e-5
    parts = NativeDecoder(network)
    parts.start(text[:3])
    parts.extend(text[3:300])
    assert parts.extend(text[300:]).sub(whole).abs().max() < 1e-4
    assert parts.bytes() > 0
    assert parts.crop(280) == 280
    assert parts.tokens == 280
    assert distance(parts.extend(text[280:]), whole) < 1e-5
    assert parts.crop(0) == 0
    assert parts.bytes() == 0
    for token in text[:280]:
        step = parts.step(token)
    assert distance(step, ModuleDecoder(model).start(text[:280])) < 1e-5


@pytest.mark.parametrize("cache", [torch.float16, torch.bfloat16])
def test_shorter_caches(cache: torch.dtype) -> None:
    network, _ = native_network(tiny("LlamaConfig"))
    text = ids(50)
    full, short = NativeDecoder(network).start(text), NativeDecoder(network, CacheForm(cache)).start(text)
    assert 0 < distance(short, full) < (2e-3 if cache == torch.float16 else 2e-2)


CACHES: dict[str, dict[str, Any]] = {
    "8 bits": {"key": {"format": "int8 token"}, "value": {"format": "int8 g16 asym"}},
    "4 bits": {"key": {"format": "int4 g16 asym"}, "value": {"format": "int4 token asym"}},
    "3 bits, floats of zero points": {"key": {"format": "int3 token asym zero=fp16"}, "value": {"format": "int5 g32"}},
    "keys alone": {"key": {"format": "int8 token narrow"}},
    "channels of keys": {"key": {"format": "int2 g16 axis=0 asym"}, "value": {"format": "int2 g16 asym"}, "window": 5},
    "channels of both": {"key": {"format": "int4 g32 axis=0"}, "value": {"format": "int4 g16 axis=0 asym scale=fp32"}},
    "late": {"key": {"format": "int8 token"}, "value": {"format": "int4 g16 asym"}, "window": 21},
}


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("cache", CACHES)
def test_coded_caches_give_the_numbers_of_the_modules(cache: str, name: str) -> None:
    """A prompt at once, then steps past the places where groups are coded. A value between two codes may fall to either
    side, where it was computed with another rounding; a wrong scale or place would be a hundred times as far away."""
    model = tiny("LlamaConfig", head_dim=32)
    attach_cache(model, cache_factory(CACHES[cache], model.config))
    network, error = native_network(model, name)
    assert error < 1e-3
    own, other = NativeDecoder(network), ModuleDecoder(model)
    text = ids(330)
    assert own.piece == other.piece
    assert distance(own.start(text[:270]), other.start(text[:270])) < 2e-3
    for token in text[270:]:
        last = own.step(token), other.step(token)
    assert distance(*last) < 2e-3
    for decoder in (own, other):
        assert decoder.crop(200) == (200 if own.piece else 0)


def test_a_coded_cache_is_smaller_and_what_it_cannot_code_is_said() -> None:
    model = tiny("LlamaConfig", head_dim=32)
    floats, _ = native_network(model)
    attach_cache(model, cache_factory(CACHES["4 bits"], model.config))
    coded, _ = native_network(model)
    sizes = []
    for network in (floats, coded):
        decoder = NativeDecoder(network)
        decoder.start(ids(513))
        whole = decoder.bytes()
        decoder.crop(512)
        sizes.append(whole)
    assert sizes[1] < 0.9 * sizes[0]
    for wrong, message in (("int4 g8 axis=0", "tokens are coded together"), ("e4m3 token", "not served")):
        model = tiny("LlamaConfig", head_dim=32)
        attach_cache(model, cache_factory({"key": {"format": wrong}}, model.config))
        with pytest.raises(NotServedError, match=message):
            native_network(model)


def test_wrong_tokens_are_errors() -> None:
    network, _ = native_network(tiny("LlamaConfig", max_position_embeddings=64))
    decoder = NativeDecoder(network)
    for wrong, message in (([], "at least one"), ([67], "vocabulary"), ([-1], "vocabulary"), ([1] * 65, "context")):
        with pytest.raises(InputError, match=message):
            decoder.start(wrong)
    decoder.start([1] * 64)
    with pytest.raises(InputError, match="context"):
        decoder.step(1)


def test_caps_that_small_scores_and_logits_do_not_show() -> None:
    model = tiny("Gemma2Config", head_dim=16, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25 if parameter.dim() == 2 else 0.05)
    network, _ = native_network(model)
    assert network.plan.logit_cap == pytest.approx(30, rel=1e-3)
    assert [layer.attention.cap for layer in network.plan.layers] == pytest.approx([50, 50], rel=1e-3)


def test_a_network_that_is_not_equal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof compares logits: whatever was misread, it does not pass."""
    from bitwright.runtime.native_decoder import attention

    monkeypatch.setattr(attention, "_scale", lambda *parts: (0.01, 0.0))
    with pytest.raises(NotServedError, match="large scores"):
        native_network(tiny("LlamaConfig"))
