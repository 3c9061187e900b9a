"""Discovery finds blocks, sites, norms, pairs and the residual stream of very different networks by experiment.

What it claims is checked here by other means than its own proofs: the edits are made on a copy of the whole model.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from bitwright.models.calling import call_module, example_inputs
from bitwright.models.discover import condensed, discover
from bitwright.models.edits import scale_gain, scale_inputs, scale_outputs, turn_inputs, turn_outputs
from bitwright.models.model import open_model
from bitwright.models.pairs import spread_heads
from bitwright.models.residual import stream_edits
from bitwright.models.stream import logits_of
from bitwright.models.structure import Pair, Structure
from tests.unit.models_toys import orthogonal, randomised, toy_model

DECODERS = ["llama", "llama-tied", "qwen2", "mistral", "gpt2", "opt", "gpt-neox", "phi", "phi3", "falcon", "gemma"]
OTHERS = ["gemma2", "olmo2", "mixtral", "bert", "bert-masked", "vit"]


@functools.cache
def _found(name: str) -> Structure:
    return discover(open_model(toy_model(name)))


def _logits(module: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(call_module(module, example_inputs(module, seed=7)))


def _pairs(name: str, kind: str, block: int | None = 1) -> dict[str, Pair]:
    """Pairs of one block by the last part of the source's name."""
    return {p.source.rpartition(".")[2]: p for p in _found(name).pairs if p.kind == kind and p.block == block}


@pytest.mark.parametrize("name", DECODERS + OTHERS)
def test_three_blocks_in_order_and_every_matrix_a_site(name: str) -> None:
    found = _found(name)
    assert len(found.blocks) == 3
    assert [path.rpartition(".")[2] for path in found.blocks] == ["0", "1", "2"]
    assert found.chain_error == 0.0
    module = toy_model(name)
    fused = {n for n, p in module.named_parameters() if p.dim() == 3}  # experts, and the tables of ViT
    assert {name for name, _ in found.exceptions} == fused
    assert found.unaccounted == ()
    for site in found.sites:
        assert site.seen
        weight = module.get_parameter(site.name)
        expected = tuple(reversed(weight.shape)) if site.transposed else (weight.shape[0], weight[0].numel())
        assert site.shape == expected
        assert (site.block is not None) == (site.role in {"block", "router"})


@pytest.mark.parametrize(
    ("name", "head", "embeddings"),
    [
        ("llama", ["lm_head"], ["model.embed_tokens"]),
        ("gpt2", ["lm_head"], ["transformer.wte", "transformer.wpe"]),
        (
            "bert",
            [],
            ["embeddings.word_embeddings", "embeddings.token_type_embeddings", "embeddings.position_embeddings"],
        ),
        ("bert-masked", ["cls.predictions.decoder"], None),
        ("vit", ["classifier"], []),
    ],
)
def test_roles_outside_the_blocks(name: str, head: list[str], embeddings: list[str] | None) -> None:
    sites = _found(name).sites
    assert [site.path for site in sites if site.role == "head"] == head
    if embeddings is not None:
        assert [site.path for site in sites if site.role == "embedding"] == embeddings


def test_ties_are_named_on_the_site_and_on_the_structure() -> None:
    found = _found("llama-tied")
    head = next(site for site in found.sites if site.role == "head")
    assert head.tied_to == "model.embed_tokens.weight"
    assert found.ties == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert _found("llama").ties == ()


def test_shared_inputs_have_one_number() -> None:
    inputs = {s.path.removeprefix("model.layers.1."): s.shared_input for s in _found("llama").sites if s.block == 1}
    assert len({inputs[f"self_attn.{x}_proj"] for x in "qkv"}) == 1
    assert inputs["mlp.gate_proj"] == inputs["mlp.up_proj"]
    assert len(set(inputs.values())) == 4
    parallel = {s.path.rpartition(".")[2]: s.shared_input for s in _found("phi").sites if s.block == 1}
    assert parallel["fc1"] == parallel["q_proj"]


def test_orientation_and_bias() -> None:
    site = next(site for site in _found("gpt2").sites if site.path.endswith("1.attn.c_attn"))
    assert site.transposed
    assert site.shape == (96, 32)
    assert site.bias == "transformer.h.1.attn.c_attn.bias"
    assert all(not site.transposed for site in _found("falcon").sites)
    assert next(s for s in _found("qwen2").sites if s.path.endswith("1.self_attn.q_proj")).bias is not None
    assert next(s for s in _found("qwen2").sites if s.path.endswith("1.mlp.up_proj")).bias is None


@pytest.mark.parametrize(
    ("name", "kind", "offset", "count"),
    [("llama", "rms", 0.0, 7), ("gpt2", "layer", 0.0, 7), ("gemma", "rms", 1.0, 7), ("gemma2", "rms", 1.0, 13),
     ("bert", "layer", 0.0, 7), ("olmo2", "rms", 0.0, 13)],
)  # fmt: skip
def test_norms_are_recognised_by_what_they_compute(name: str, kind: str, offset: float, count: int) -> None:
    norms = _found(name).norms
    assert len(norms) == count
    assert {norm.kind for norm in norms} == {kind}
    assert {norm.offset for norm in norms} == {offset}
    assert {norm.bias for norm in norms} == ({"bias"} if kind == "layer" else {None})


@pytest.mark.parametrize(
    ("name", "norm_linear", "linear_linear"),
    [
        ("llama", {"input_layernorm": 3, "post_attention_layernorm": 2}, {"v_proj", "up_proj"}),
        ("qwen2", {"input_layernorm": 3, "post_attention_layernorm": 2}, {"v_proj", "up_proj"}),
        ("gpt2", {"ln_1": 1, "ln_2": 1}, {"c_attn"}),
        ("opt", {"self_attn_layer_norm": 3, "final_layer_norm": 1}, {"v_proj", "fc1"}),
        ("gpt-neox", {"input_layernorm": 1, "post_attention_layernorm": 1}, {"query_key_value"}),
        ("phi", {"input_layernorm": 4}, {"v_proj"}),
        ("phi3", {"input_layernorm": 1, "post_attention_layernorm": 1}, {"qkv_proj", "gate_up_proj"}),
        ("falcon", {"input_layernorm": 2}, set()),
        ("gemma2", {"input_layernorm": 3, "pre_feedforward_layernorm": 2}, {"v_proj", "up_proj"}),
        ("olmo2", {}, {"v_proj", "up_proj"}),
        ("mixtral", {"input_layernorm": 3}, {"v_proj"}),
        ("bert", {}, {"value"}),
        ("vit", {"layernorm_before": 3, "layernorm_after": 1}, {"v_proj"}),
    ],
)
def test_pairs_of_a_block(name: str, norm_linear: dict[str, int], linear_linear: set[str]) -> None:
    assert {source: len(p.sinks) for source, p in _pairs(name, "norm_linear").items()} == norm_linear
    assert set(_pairs(name, "linear_linear")) == linear_linear
    assert all(pair.error < 1e-6 for pair in _found(name).pairs)


def test_grouped_queries_and_fused_rows() -> None:
    value = _pairs("llama", "linear_linear")["v_proj"]
    assert (value.repeat, value.head_dim, value.rows) == (2, 8, None)
    assert _pairs("gpt2", "linear_linear")["c_attn"].rows == tuple(range(64, 96))
    interleaved = _pairs("gpt-neox", "linear_linear")["query_key_value"].rows
    assert interleaved == tuple(head * 24 + 16 + i for head in range(4) for i in range(8))
    fused = _pairs("phi3", "linear_linear")
    assert (fused["qkv_proj"].rows, fused["qkv_proj"].repeat) == (tuple(range(48, 64)), 2)
    assert fused["gate_up_proj"].rows == tuple(range(48, 96))


@pytest.mark.parametrize(
    ("name", "source", "repeat"),
    [("llama", "v_proj", 2), ("phi", "v_proj", 1), ("gpt2", "c_attn", 1), ("gpt-neox", "query_key_value", 1),
     ("opt", "v_proj", 1), ("bert", "value", 1), ("vit", "v_proj", 1), ("phi3", "qkv_proj", 2)],
)  # fmt: skip
def test_heads_are_known_and_may_be_turned(name: str, source: str, repeat: int) -> None:
    pair = _pairs(name, "linear_linear")[source]
    assert (pair.repeat, pair.head_dim, pair.turns) == (repeat, 8, True)
    sites = {site.path: site for site in _found(name).sites}
    module = toy_model(name)
    expected = _logits(module, name)
    matrix = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    site, sink = sites[pair.source], sites[pair.sinks[0]]
    rows = torch.tensor(pair.rows or range(site.shape[0]))
    with torch.no_grad():
        weight, reader = module.get_parameter(site.name), module.get_parameter(sink.name)
        weight.copy_(turn_outputs(weight, site, matrix, rows))
        if site.bias is not None:
            bias = module.get_parameter(site.bias)
            bias.copy_(turn_outputs(bias, site, matrix, rows))
        assert not torch.allclose(_logits(module, name), expected, atol=1e-3)
        reader.copy_(turn_inputs(reader, sink, matrix))
    torch.testing.assert_close(_logits(module, name), expected, rtol=1e-4, atol=1e-4)


def test_channels_of_a_multilayer_perceptron_are_not_turned() -> None:
    up = _pairs("llama", "linear_linear")["up_proj"]
    assert (up.head_dim, up.turns) == (0, False)


class _GatedAttention(nn.Module):
    """Values pass a gate, channel by channel, on their way to the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = (nn.Linear(16, 16, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.value(x).view(*x.shape[:2], 4, 4).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads.detach() * 0 + 1, heads)
        read: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2) * self.gate(x).sigmoid())
        return x + read


def test_a_gate_behind_the_heads_forbids_to_turn_them() -> None:
    module = randomised(nn.Sequential(_GatedAttention(), _GatedAttention()))
    found = discover(open_model(module), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)))
    for pair in found.pairs:
        assert (pair.kind, pair.turns) == ("linear_linear", False)


@pytest.mark.parametrize("name", DECODERS + OTHERS)
def test_every_pair_holds_on_the_whole_model(name: str) -> None:
    found, module = _found(name), toy_model(name)
    expected = _logits(module, name)
    sites = {site.path: site for site in found.sites}
    norms = {norm.path: norm for norm in found.norms}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in found.pairs:
            if pair.kind == "norm_linear":
                norm = norms[pair.source]
                scale = spread = torch.rand(norm.dim, generator=generator) + 0.5
                gain = module.get_parameter(f"{norm.path}.{norm.weight}")
                gain.copy_(scale_gain(gain, norm, scale))
                if norm.bias is not None:
                    module.get_parameter(f"{norm.path}.{norm.bias}").mul_(scale)
            else:
                source = sites[pair.source]
                rows = pair.rows or tuple(range(source.shape[0]))
                scale = torch.rand(len(rows), generator=generator) + 0.5
                spread = spread_heads(scale, pair.repeat, pair.head_dim)
                full = torch.ones(source.shape[0])
                full[list(rows)] = scale
                weight = module.get_parameter(source.name)
                weight.copy_(scale_outputs(weight, source, full))
                if source.bias is not None:
                    module.get_parameter(source.bias).mul_(full)
            for path in pair.sinks:
                weight = module.get_parameter(sites[path].name)
                weight.copy_(scale_inputs(weight, sites[path], 1 / spread))
    assert len(found.pairs) >= 3
    torch.testing.assert_close(_logits(module, name), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*DECODERS, "vit"])
def test_the_residual_stream_rotates_the_whole_model(name: str) -> None:
    module = toy_model(name)
    model = open_model(module)
    stream = _found(name).residual
    assert stream is not None
    assert stream.error < 1e-5
    rotation = orthogonal(stream.dim, keep_ones=stream.norm_kind == "layer")
    edits = stream_edits(model, _found(name).norms, stream, lambda vectors: vectors @ rotation.T.float())
    turned = copy.deepcopy(module)
    for parameter, value in edits.items():
        path, _, leaf = parameter.rpartition(".")
        setattr(turned.get_submodule(path), leaf, nn.Parameter(value))
    assert not torch.equal(turned.get_parameter(stream.writes[0].name), module.get_parameter(stream.writes[0].name))
    torch.testing.assert_close(_logits(turned, name), _logits(module, name), rtol=1e-4, atol=2e-4)


def test_the_stream_names_its_parts() -> None:
    stream = _found("llama").residual
    assert stream is not None
    assert (stream.dim, stream.norm_kind, stream.head) == (32, "rms", "lm_head")
    assert stream.embeddings == ("model.embed_tokens",)
    assert len(stream.norms) == 7
    assert len(stream.readers) == 3 * 5 + 1
    assert stream.writers == tuple(
        f"model.layers.{i}.{w}" for i in range(3) for w in ("self_attn.o_proj", "mlp.down_proj")
    )
    pictures = _found("vit").residual
    assert pictures is not None
    names = {item.name for item in pictures.writes}
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} <= names


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("gemma2", "writes into the residual stream"),
        ("olmo2", "writes into the residual stream"),
        ("bert", "post-norm"),
        ("mixtral", "no linear layer wrote"),
    ],
)
def test_what_cannot_be_rotated_has_a_reason(name: str, word: str) -> None:
    found = _found(name)
    assert found.residual is None
    assert any(reason.startswith("residual rotation:") and word in reason for reason in found.reasons)


def test_reasons_for_pairs_that_are_not_offered() -> None:
    assert any("tied" in reason for reason in _found("llama-tied").reasons)
    assert any("experts also reads it" in reason for reason in _found("mixtral").reasons)
    assert any("also reads it (add) (and" in reason for reason in _found("bert").reasons)
    assert _found("llama").reasons == ()


def test_reasons_that_differ_in_numbers_are_said_once() -> None:
    assert condensed(["a.0 is b", "a.17 is b", "c"]) == ("a.0 is b (and 1 more alike)", "c")


def test_the_module_is_left_as_it_was() -> None:
    module = toy_model("gemma2")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    discover(open_model(module))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all("forward" not in part.__dict__ and not part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("name", ["llama-tied", "falcon", "mixtral", "bert"])
def test_a_streamed_model_has_the_same_structure(tmp_path: Path, name: str) -> None:
    toy_model(name).save_pretrained(tmp_path, max_shard_size="20KB")
    model = open_model(tmp_path, stream=True)
    assert discover(model) == _found(name)
    assert all(parameter.is_meta for parameter in model.module.parameters())


@pytest.mark.parametrize("name", [*DECODERS, "gemma2", "bert-masked", "vit"])
def test_shapes_alone_give_blocks_and_sites(tmp_path: Path, name: str) -> None:
    toy_model(name).save_pretrained(tmp_path)
    model = open_model(tmp_path, stream=True)
    model.read_parameter = None  # type: ignore[assignment, method-assign]
    model.load_unit = None  # type: ignore[assignment, method-assign]
    outline, found = discover(model, proofs=False), _found(name)
    assert outline.blocks == found.blocks
    assert outline.ties == found.ties
    assert outline.returns == found.returns
    assert [dataclasses.replace(s, shared_input=0) for s in outline.sites] == [
        dataclasses.replace(s, shared_input=0) for s in found.sites
    ]
    assert _sharing(outline) == _sharing(found)
    assert outline.pairs == ()


def _sharing(structure: Structure) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for site in structure.sites:
        groups.setdefault(site.shared_input, set()).add(site.path)
    return {frozenset(group) for group in groups.values()}


def test_values_that_decide_the_flow_are_run_in_full() -> None:
    outline = discover(open_model(toy_model("mixtral")), proofs=False)
    assert outline.blocks == _found("mixtral").blocks


def test_a_module_in_half_precision_keeps_its_pairs_and_says_what_it_loses() -> None:
    found = discover(open_model(toy_model("llama").bfloat16()))
    assert found.blocks == _found("llama").blocks
    assert found.norms == _found("llama").norms
    assert [(p.source, p.sinks) for p in found.pairs] == [(p.source, p.sinks) for p in _found("llama").pairs]
    assert found.residual is None
    assert any("in bfloat16; open the model in float32" in reason for reason in found.reasons)
