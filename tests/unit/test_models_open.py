"""Opening a model: in memory, streamed, with other names, with ties, and the ways in which it is refused."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.models.calling import call_module, example_inputs
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.materialise import materialised
from bitwright.models.model import Model, open_model
from bitwright.models.naming import match_names, match_suffixes
from bitwright.models.stream import logits_of
from tests.unit.models_toys import ResNet, seeded, toy_model


def _saved(name: str, folder: Path, shard: str = "20KB") -> nn.Module:
    module = toy_model(name)
    module.save_pretrained(folder, max_shard_size=shard)
    return module


def _logits(model: Model) -> torch.Tensor:
    with torch.no_grad(), materialised(model):
        return logits_of(call_module(model.module, example_inputs(model.module)))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "falcon", "gemma2", "mixtral", "bert-masked", "vit"])
def test_streamed_equals_loaded(tmp_path: Path, name: str) -> None:
    module = _saved(name, tmp_path)
    streamed = open_model(tmp_path, stream=True)
    assert all(parameter.is_meta for parameter in streamed.module.parameters())
    assert streamed.missing == ()
    assert streamed.unmatched == ()
    expected = _logits(Model(module))
    assert torch.equal(_logits(streamed), expected)
    assert all(parameter.is_meta for parameter in streamed.module.parameters())
    with streamed.unit("") as whole:
        assert {n: v.shape for n, v in whole.state_dict().items()} == {
            n: v.shape for n, v in module.state_dict().items()
        }
        for key, value in module.state_dict().items():
            assert torch.equal(whole.state_dict()[key], value)


def test_loaded_equals_saved(tmp_path: Path) -> None:
    module = _saved("llama", tmp_path)
    loaded = open_model(tmp_path)
    assert not loaded.streamed
    assert torch.equal(_logits(loaded), _logits(Model(module)))
    loaded.load_unit("model.layers.0")
    loaded.free_unit("model.layers.0")
    assert torch.equal(_logits(loaded), _logits(Model(module)))


def test_units_are_counted_and_ties_stay_one_tensor(tmp_path: Path) -> None:
    _saved("llama-tied", tmp_path)
    model = open_model(tmp_path, stream=True)
    embedding, head = model.module.model.embed_tokens, model.module.lm_head
    model.load_unit("model.embed_tokens")
    model.load_unit("lm_head")
    assert head.weight is embedding.weight
    model.free_unit("model.embed_tokens")
    assert not head.weight.is_meta
    model.free_unit("lm_head")
    assert embedding.weight.is_meta
    assert head.weight is embedding.weight
    assert model.checkpoint_key("lm_head.weight") == "model.embed_tokens.weight"


def test_stored_ties_that_differ_are_separated(tmp_path: Path) -> None:
    module = _saved("llama-tied", tmp_path, "1GB")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with open_model(tmp_path, stream=True).unit("") as whole:
        assert torch.equal(whole.lm_head.weight, module.lm_head.weight + 1)
        assert torch.equal(whole.model.embed_tokens.weight, module.lm_head.weight)


def test_parameters_are_converted_to_the_compute_dtype(tmp_path: Path) -> None:
    toy_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model = open_model(tmp_path, stream=True)
    assert Checkpoint.open(tmp_path).tensors["model.norm.weight"].dtype == "BF16"
    with model.unit("model.layers.1") as block:
        assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
    assert model.read_parameter("model.norm.weight").dtype == torch.float32


def test_a_base_model_file_opens_under_a_head_model(tmp_path: Path) -> None:
    module = _saved("bert-masked", tmp_path, "1GB")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    base = {name.removeprefix("bert."): value for name, value in tensors.items()}
    safetensors.torch.save_file(base, tmp_path / "model.safetensors", {"format": "pt"})
    model = open_model(tmp_path, stream=True)
    assert model.missing == ()
    assert model.checkpoint_key("bert.encoder.layer.0.output.dense.weight") == "encoder.layer.0.output.dense.weight"
    assert torch.equal(_logits(model), _logits(Model(module)))


def test_foreign_tensors_are_listed_not_lost(tmp_path: Path) -> None:
    _saved("llama", tmp_path, "1GB")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    tensors["mtp.layers.0.weight"] = torch.zeros(3, 3)
    missing = tensors.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = open_model(tmp_path, stream=True)
    assert model.unmatched == ("mtp.layers.0.weight",)
    assert model.missing == ("model.layers.1.mlp.up_proj.weight",)
    assert missing.shape == (48, 32)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        model.load_unit("model.layers.1")


def test_batch_norm_statistics_are_read() -> None:
    module = seeded(ResNet)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    names = match_names(module, {f"module.{name}": shape for name, shape in shapes.items()})
    assert names.missing == ()
    assert names.key("layer1.0.bn1.running_var") == "module.layer1.0.bn1.running_var"
    assert names.parameter("module.fc.weight") == "fc.weight"


def test_suffixes_match_by_the_fullest_prefix() -> None:
    wanted = {"a.x.0.w": (2,), "a.x.1.w": (2,), "b.0.w": (2,)}
    stored = {"old.x.0.w": (2,), "old.x.1.w": (2,), "c.0.w": (2,), "d.1.w": (3,)}
    assert match_suffixes(wanted, stored) == {"a.x.0.w": "old.x.0.w", "a.x.1.w": "old.x.1.w", "b.0.w": "c.0.w"}


def test_a_module_is_opened_as_it_is() -> None:
    module = seeded(ResNet).train()
    model = open_model(module)
    assert model.module is module
    assert not module.training
    assert model.checkpoint is None
    assert model.checkpoint_key("fc.weight") == "fc.weight"
    with pytest.raises(InputError, match="tokenizer"):
        model.tokenizer()
    with pytest.raises(InputError, match="example batch"):
        example_inputs(module)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 10**12}, "num_attention_heads"),
        ({"inner": {"n_layer": 10**9}}, "inner.n_layer"),
        ({"model_type": "unheard-of"}, "installed transformers"),
        ({"hidden_size": "wide"}, "config"),
    ],
)
def test_an_absurd_config_is_refused(tmp_path: Path, change: dict[str, object], word: str) -> None:
    _saved("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=word):
        open_model(tmp_path, stream=True)


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"config\.json"):
        open_model(tmp_path)


def test_a_real_model_streams(assets: Path) -> None:
    folder = assets / "lm-stories260k"
    loaded, streamed = open_model(folder), open_model(folder, stream=True)
    ids = loaded.tokenizer()("Once upon a time", return_tensors="pt")["input_ids"]
    with torch.no_grad(), materialised(streamed):
        assert torch.equal(streamed.module(ids).logits, loaded.module(ids).logits)


def test_only_the_rows_that_are_looked_up_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _saved("llama", tmp_path)
    model = open_model(tmp_path, stream=True)
    read: list[str] = []
    plain = Model.read_parameter
    monkeypatch.setattr(Model, "read_parameter", lambda self, name: read.append(name) or plain(self, name))
    assert torch.equal(_logits(model), _logits(Model(module)))
    assert "model.norm.weight" in read
    assert "model.embed_tokens.weight" not in read


def test_units_may_be_loaded_and_freed_while_the_rest_is_read_as_used(tmp_path: Path) -> None:
    module = _saved("llama", tmp_path)
    model = open_model(tmp_path, stream=True)
    with torch.no_grad(), materialised(model):
        with model.unit("model.layers.0"):
            first = model.module(torch.tensor([[5, 6]])).logits
        again = model.module(torch.tensor([[5, 6]])).logits
    assert torch.equal(first, again)
    assert torch.equal(first, module(torch.tensor([[5, 6]])).logits)


def test_quantized_weights_are_not_streamed(tmp_path: Path) -> None:
    _saved("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match=r"already quantized \(gptq\)"):
        open_model(tmp_path, stream=True)


def test_few_parameters_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved("gpt2", tmp_path)
    model = open_model(tmp_path, stream=True)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    plain = Model.read_parameter

    def counted(self: Model, name: str) -> torch.Tensor:
        nonlocal most
        tensor = plain(self, name)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(Model, "read_parameter", counted)
    model.kept_bytes = 0
    _logits(model)
    assert 1 <= most <= 4  # weight and bias of the layer that runs, one kept, one being read


def test_a_name_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "snapshot"
    module = _saved("llama", folder)
    asked: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert not any(pattern.endswith((".bin", ".py")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert torch.equal(_logits(open_model("owner/model", stream=True)), _logits(Model(module)))
    assert asked == ["owner/model"]


@pytest.mark.parametrize("name", ["owner/model", "no such folder", "../up", "/none/at/all"])
def test_a_model_that_is_nowhere_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"no such folder|cannot be fetched from the hub \(offline\)"):
        open_model(name)
