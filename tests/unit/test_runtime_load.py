"""Native checkpoints load through transformers and by our own loader, with the logits of the rounded weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import bitwright.transformers
from bitwright.errors import InputError
from bitwright.runtime import REFERENCE, QuantEmbedding, QuantLinear, QuantModule, describe
from bitwright.runtime.cache import QuantizedCache
from bitwright.runtime.load import configure, load
from tests.unit.native_writer import dequantized_twin, write_native

IDS = torch.tensor([[1, 17, 33, 99, 5, 2, 64], [9, 8, 7, 6, 5, 4, 3]])


def block_linears(model: nn.Module) -> list[str]:
    return [path for path, m in model.named_modules() if isinstance(m, nn.Linear) and path != "lm_head"]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits.float()


def config_of(model: nn.Module) -> dict[str, object]:
    found: dict[str, object] = model.config.to_dict()
    return {**found, "architectures": [type(model).__name__], "dtype": "float32"}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("text", ["int4 g32 asym", "nf4 b64", "nvfp4"])
def test_transformers_and_we_load_the_same_model(
    toy_llama: LlamaForCausalLM, tmp_path: Path, text: str, shards: int
) -> None:
    model = copy.deepcopy(toy_llama)
    weights = dict.fromkeys(block_linears(model), text)
    write_native(tmp_path, model, weights, config=config_of(model), shards=shards)
    expected = logits(dequantized_twin(model, weights, torch.float32))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(theirs.get_submodule("model.layers.1.mlp.down_proj"), QuantLinear)
    ours = load(tmp_path, cache_weights=True)
    assert torch.equal(logits(ours), expected)
    assert {served.kernel for served in describe(ours)} == {"linear/dense"}
    assert torch.equal(logits(configure(theirs, table=REFERENCE)), expected)
    assert {served.kernel for served in describe(theirs)} == {"linear/reference"}


def test_a_checkpoint_in_bf16_keeps_its_scales(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = copy.deepcopy(toy_llama)
    weights = dict.fromkeys(block_linears(model), "int4 g32 asym")
    inputs = {"model.layers.0.mlp.down_proj": "int8 tensor asym"}
    extra = {
        "model.layers.0.mlp.down_proj.input_scale": torch.tensor([0.0311]),
        "model.layers.0.mlp.down_proj.input_zero": torch.tensor([130], dtype=torch.uint8),
    }
    config = {**config_of(model), "dtype": "bfloat16"}
    write_native(tmp_path, model, weights, inputs=inputs, config=config, dtype=torch.bfloat16, extra=extra)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    stored = load_file(tmp_path / "model.safetensors")
    for name, value in loaded.state_dict().items():
        if "weight_" in name or "input_" in name:
            assert value.dtype == stored[name].dtype, name
            assert torch.equal(value, stored[name]), name
    full = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    difference = float((logits(full) - logits(loaded)).abs().max())
    assert 0 < difference < 0.2


def test_a_head_that_shared_the_embedding(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    options = {**toy_llama.config.to_dict(), "tie_word_embeddings": True}
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(**options)).eval()
    state = tied.state_dict()
    own_head = {"lm_head.weight": state["model.embed_tokens.weight"]}
    for name, weights, drop, extra in (
        ("kept", dict.fromkeys(block_linears(tied), "int4 g32"), ("lm_head.weight",), {}),
        ("head", {"lm_head": "int4 g32"}, (), {}),
        ("embedding", {"model.embed_tokens": "int4 g32"}, (), own_head),
        ("both", {"model.embed_tokens": "int8 channel", "lm_head": "int4 g32"}, (), {}),
    ):
        folder = tmp_path / name
        kinds = {"model.embed_tokens": "embedding"}
        write_native(folder, tied, weights, kinds=kinds, config=config_of(tied), drop=drop, extra=extra)
        twin = copy.deepcopy(tied)
        if name != "kept":
            twin.lm_head.weight = nn.Parameter(twin.lm_head.weight.detach().clone())
        expected = logits(dequantized_twin(twin, weights, torch.float32))
        loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"], name
        assert not info["unexpected_keys"], name
        assert torch.equal(logits(configure(loaded, table=REFERENCE)), expected), name
        shared = loaded.get_output_embeddings()
        if name == "kept":
            assert shared.weight is loaded.get_input_embeddings().weight
        if "model.embed_tokens" in weights:
            assert isinstance(loaded.get_input_embeddings(), QuantEmbedding)


def test_transposed_modules_with_biases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).eval()
    weights = {path: "int4 g16 asym" for path, module in model.named_modules() if type(module).__name__ == "Conv1D"}
    assert len(weights) == 8
    write_native(tmp_path, model, weights, config=config_of(model), drop=("lm_head.weight",))
    expected = logits(dequantized_twin(copy.deepcopy(model), weights, torch.float32))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    assert loaded.get_submodule("transformer.h.0.attn.c_attn").meta()["transposed"]


def test_new_biases_online_operations_and_dynamic_inputs(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = copy.deepcopy(toy_llama)
    path = "model.layers.0.self_attn.o_proj"
    rotate = [{"kind": "hadamard", "options": {"size": 64, "seed": 5}}]
    write_native(
        tmp_path, model, {path: "int8 channel"}, inputs={path: "int8 token dynamic"}, online={path: rotate},
        config=config_of(model), extra={f"{path}.bias": torch.ones(64)},
    )  # fmt: skip
    manifest = json.loads((tmp_path / "config.json").read_text())
    manifest["quantization_config"]["modules"][path]["bias"] = True
    (tmp_path / "config.json").write_text(json.dumps(manifest))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    layer = loaded.get_submodule(path)
    assert isinstance(layer, QuantModule)
    assert layer.bias is not None
    assert torch.equal(layer.bias, torch.ones(64))
    assert layer.meta() == manifest["quantization_config"]["modules"][path]
    assert torch.isfinite(logits(loaded)).all()


def test_the_model_without_its_head_loads_from_the_same_folder(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = copy.deepcopy(toy_llama)
    weights = dict.fromkeys([*block_linears(model), "lm_head"], "int4 g32")
    write_native(tmp_path / "head", model, weights, config=config_of(model))
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "head", dtype=torch.float32)
    base = AutoModel.from_pretrained(tmp_path / "head", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, full.model(IDS).last_hidden_state)
    inner = model.model
    write_native(
        tmp_path / "base", inner, dict.fromkeys(block_linears(inner), "int4 g32"),
        config={**config_of(model), "architectures": ["LlamaModel"]},
    )  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again.model(IDS).last_hidden_state, full.model(IDS).last_hidden_state)


def test_a_quantized_cache_comes_with_the_checkpoint(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = copy.deepcopy(toy_llama)
    kv = {"key": {"format": "int4 token", "online": []}, "value": {"format": "int4 token"}, "window": 0}
    write_native(
        tmp_path, model, dict.fromkeys(block_linears(model), "int8 channel"), config=config_of(model), kv_cache=kv
    )
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), load(tmp_path)):
        with torch.no_grad():
            output = loaded(IDS)
        assert isinstance(output.past_key_values, QuantizedCache)
        assert not torch.equal(output.logits, logits(loaded))
        factory = loaded.bitwright_cache_factory
        assert 0 < float((output.logits - logits(loaded)).abs().max()) < 2
        assert isinstance(factory(), QuantizedCache)


def test_save_pretrained_writes_a_native_checkpoint_again(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = copy.deepcopy(toy_llama)
    write_native(tmp_path / "a", model, dict.fromkeys(block_linears(model), "nf4 b64"), config=config_of(model))
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    first.save_pretrained(tmp_path / "b")
    second = load(tmp_path / "b")
    assert torch.equal(logits(first), logits(second))
    before = load_file(tmp_path / "a" / "model.safetensors")
    after = load_file(tmp_path / "b" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    ).eval()


def test_plain_modules_load_into_a_copy(tmp_path: Path) -> None:
    model = plain_network()
    weights = {"0": "int8 channel", "4": "int4 g32"}
    write_native(tmp_path, model, weights, kinds={"0": "conv"}, removed=["1"])
    skeleton = plain_network()
    before = copy.deepcopy(skeleton.state_dict())
    loaded = load(tmp_path, skeleton)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    twin = dequantized_twin(model, weights, torch.float32)
    twin[1] = nn.Identity()
    torch.testing.assert_close(loaded(x), twin(x), rtol=1e-5, atol=1e-5)
    assert isinstance(loaded[1], nn.Identity)
    assert all(torch.equal(before[name], value) for name, value in skeleton.state_dict().items())
    on_meta = load(tmp_path, plain_network().to("meta"))
    assert torch.equal(on_meta(x), loaded(x))
    with pytest.raises(InputError, match="plain module"):
        load(tmp_path)


def test_tied_parameters_of_plain_modules(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)
            self.middle = nn.Linear(8, 8)
            self.head = nn.Linear(8, 16, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.table(ids)))

    torch.manual_seed(0)
    model = Tied()
    write_native(tmp_path, model, {"middle": "int8 channel"}, drop=("head.weight",))
    loaded = load(tmp_path, Tied(), table=REFERENCE)
    twin = dequantized_twin(model, {"middle": "int8 channel"}, torch.float32)
    assert torch.equal(loaded(torch.arange(16)), twin(torch.arange(16)))


def test_damaged_checkpoints_are_refused(toy_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    model = copy.deepcopy(toy_llama)
    path = "model.layers.0.mlp.up_proj"
    weights, config = {path: "int4 g32"}, config_of(model)

    def write(name: str, **changes: object) -> Path:
        write_native(tmp_path / name, model, weights, config=config, **changes)
        return tmp_path / name

    with pytest.raises(InputError, match="weight_codes"):
        load(write("codes", drop=(f"{path}.weight_codes",)))
    with pytest.raises(InputError, match=r"norm\.weight"):
        load(write("norm", drop=("model.norm.weight",)))
    with pytest.raises(InputError, match="input_scale"):
        load(write("input", inputs={path: "int8 tensor"}))
    for name, key, value, message in (
        ("kind", "kind", "linaer", "linear"),
        ("key", "weigth", None, "weight"),
        ("online", "online", [{"kind": "hadamard", "options": {"size": 8}}], "lacks seed"),
    ):
        folder = write(name)
        raw = json.loads((folder / "config.json").read_text())
        raw["quantization_config"]["modules"][path][key] = value
        (folder / "config.json").write_text(json.dumps(raw))
        with pytest.raises(InputError, match=message):
            load(folder)
    toy_llama.save_pretrained(tmp_path / "float")
    with pytest.raises(InputError, match="quantization_config"):
        load(tmp_path / "float")
    folder = write("path")
    text = (folder / "config.json").read_text().replace(f'"{path}"', '"model.layers.7.mlp.up_proj"')
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="no module"):
        load(folder)


def test_registration_happens_once() -> None:
    bitwright.transformers.register()
    bitwright.transformers.register()
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    assert AUTO_QUANTIZER_MAPPING["bitwright"] is bitwright.transformers.BitwrightQuantizer
