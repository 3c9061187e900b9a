"""Smoothing, activation-aware scaling and rotations leave the float logits where they are."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.formats import parse
from bitwright.jobs import Job
from bitwright.jobs.engine import Engine
from bitwright.jobs.opening import open_job
from bitwright.jobs.transforming import transform_unit
from bitwright.jobs.view import UnitView
from bitwright.models import open_model
from bitwright.recipes import Recipe
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.online import run_online
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.site import rule
from bitwright.stages.transforms import Transform
from bitwright.stages.transforms.activation_aware import ActivationAwareScaling
from bitwright.stages.transforms.base import PairView
from bitwright.stages.transforms.exponent_shift import ExponentShift
from bitwright.stages.transforms.hadamard import hadamard_matrix
from bitwright.stages.transforms.pair import scale_pair, shared_scale, source_rows
from bitwright.stages.transforms.rotation import KeyRotation, OnlineRotation, ResidualRotation, ValueRotation
from bitwright.stages.transforms.smoothing import Smoothing
from bitwright.statistics import AbsMax
from tests.unit.jobs_toys import tiny_llama, token_ids
from tests.unit.models_toys import toy_images, toy_model

_NORMS = ("norm_linear",)
ROTATIONS = (ResidualRotation(), ValueRotation(), OnlineRotation(), KeyRotation())


def _engine(module: nn.Module, ids: Tensor | dict[str, Tensor], transforms: tuple[Transform, ...]) -> Engine:
    recipe = Recipe(
        transforms=transforms, weights=(rule("linear", Quantizer(parse("int3 channel asym"))),), name="transforms"
    )
    opened = open_job(Job(module, recipe, [{"input_ids": ids} if isinstance(ids, Tensor) else ids]))
    return Engine(recipe, opened.model, opened.structure, opened.batches)


def _transform(module: nn.Module, ids: Tensor | dict[str, Tensor], *transforms: Transform) -> dict[str, UnitView]:
    """Apply transforms to a module in place, weights stay float; online operations run as hooks."""
    engine = _engine(module, ids, transforms)
    views = {}
    for unit in engine.units:
        view = views[unit.name] = engine._view(unit)
        transform_unit(engine, unit, view, Events())
        engine._advance(unit, engine._float_outputs(unit))
    return views


def _logits(module: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return module(ids).logits  # type: ignore[no-any-return]


def _assert_same_function(module: nn.Module, reference: nn.Module, ids: Tensor) -> None:
    expected = _logits(reference, ids)
    assert float((_logits(module, ids) - expected).abs().max()) < 2e-5 * float(expected.abs().max())


def _changed(module: nn.Module, reference: nn.Module, path: str) -> bool:
    return not torch.equal(module.get_parameter(path), reference.get_parameter(path))


CASES = {
    "smoothing": (Smoothing(),),
    "smoothing of every pair": (Smoothing(kinds=("norm_linear", "linear_linear")),),
    "activation-aware scaling": (ActivationAwareScaling(points=4),),
    "residual rotation": (ResidualRotation(),),
    "value rotation": (ValueRotation(),),
    "online rotation": (OnlineRotation(),),
    "all rotations": ROTATIONS,
    "rotations, then smoothing": (*ROTATIONS, Smoothing()),
}


@pytest.mark.parametrize("case", CASES)
def test_float_logits_do_not_move(case: str, toy_llama: LlamaForCausalLM, toy_tokens: Tensor) -> None:
    module = copy.deepcopy(toy_llama)
    _transform(module, toy_tokens, *CASES[case])
    _assert_same_function(module, toy_llama, toy_tokens)
    assert any(_changed(module, toy_llama, name) for name, _ in toy_llama.named_parameters())


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma", "phi3", "gpt2", "falcon"])
def test_other_decoders_keep_their_function_too(name: str) -> None:
    """Biases, norms that add one to their gain, fused projections: whatever is offered must be exact."""
    reference = toy_model(name)
    ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    for transforms in ((Smoothing(),), ROTATIONS):
        module = copy.deepcopy(reference)
        _transform(module, ids, *transforms)
        _assert_same_function(module, reference, ids)


@pytest.mark.parametrize("case", ["smoothing of every pair", "activation-aware scaling", "all rotations"])
def test_a_trained_model_keeps_its_logits(case: str, assets: Path) -> None:
    folder = assets / "lm-stories260k"
    if not folder.is_dir():
        pytest.skip("lm-stories260k is not there")
    reference = open_model(folder).module
    module = open_model(folder).module
    for parameter in module.parameters():  # stored dtypes must not round what is tested here
        parameter.data = parameter.data.float()
    ids = torch.randint(3, int(reference.config.vocab_size), (2, 24), generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, arg-type]
    _transform(module, ids, *CASES[case])
    _assert_same_function(module, reference, ids)


def test_smoothing_balances_activations_and_weights() -> None:
    """With alpha = 1/2 the maxima of an input channel and of its weights become equal (the paper's point)."""
    reference, ids = tiny_llama(), token_ids()
    module = copy.deepcopy(reference)
    _transform(module, ids, Smoothing(0.5))
    norm, sinks = "model.layers.0.input_layernorm", ("q_proj", "k_proj", "v_proj")
    seen: list[Tensor] = []
    module.get_submodule(norm).register_forward_hook(lambda _, args, y: seen.append(y.flatten(0, -2).abs().amax(0)))
    _logits(module, ids)
    paths = [f"model.layers.0.self_attn.{sink}.weight" for sink in sinks]
    weights = torch.stack([module.get_parameter(path).abs().amax(0) for path in paths]).amax(0)
    torch.testing.assert_close(seen[0], weights, rtol=1e-4, atol=1e-5)


def test_smoothing_extremes() -> None:
    """alpha = 1 moves all of the range into the weights: every activation channel then reaches 1."""
    module, ids = tiny_llama(), token_ids()
    _transform(module, ids, Smoothing(1.0))
    seen: list[Tensor] = []
    norm = module.get_submodule("model.layers.0.post_attention_layernorm")
    norm.register_forward_hook(lambda _, args, y: seen.append(y.flatten(0, -2).abs().amax(0)))
    _logits(module, ids)
    torch.testing.assert_close(seen[0], torch.ones_like(seen[0]), rtol=1e-4, atol=1e-5)


def test_scaling_never_loses_to_no_scaling() -> None:
    """alpha = 0 is among the candidates, so the chosen error is at most that of plain rounding."""
    reference, ids = tiny_llama(), token_ids()
    errors = []
    engine = _engine(copy.deepcopy(reference), ids, (ActivationAwareScaling(points=6),))
    for unit in engine.units:
        view = engine._view(unit)
        for report in transform_unit(engine, unit, view, Events()):
            errors += [values["error_ratio"] for _, values in report.places]
            assert all(0 <= values["alpha"] < 1 for _, values in report.places)
        engine._advance(unit, engine._float_outputs(unit))
    assert len(errors) >= 4
    assert all(ratio <= 1 for ratio in errors)
    assert min(errors) < 0.999


def test_a_part_is_the_smallest_module_that_holds_the_sinks() -> None:
    """Its runs with exchanged weights are what the module answers inside the block with these weights."""
    network, ids = tiny_llama(), token_ids()
    engine = _engine(network, ids, (Smoothing(),))
    engine._advance(engine.units[0], engine._float_outputs(engine.units[0]))
    view, root = engine._view(engine.units[1]), "model.layers.0"
    parts = {
        "self_attn": ("q_proj", "k_proj", "v_proj"),
        "self_attn.o_proj": ("o_proj",),
        "": ("q_proj", "mlp.up_proj"),
    }
    for module, names in parts.items():
        paths = [f"{root}.{name if '.' in name else 'self_attn.' + name}" for name in names]
        run, changed = view.part(paths), {path: view.weight(path) * 1.5 for path in paths}
        found = [*run({}), *run(changed)]
        seen: list[Tensor] = []
        target = network.get_submodule(f"{root}.{module}".rstrip("."))
        handle = target.register_forward_hook(
            lambda _, args, y, seen=seen: seen.append(y if isinstance(y, Tensor) else y[0])
        )
        view.outputs({})
        view.outputs(changed)
        handle.remove()
        assert not torch.equal(found[0], found[1])
        for value, reference in zip(found, seen, strict=True):
            torch.testing.assert_close(value, reference)


def test_grouped_queries_scale_whole_groups_of_heads() -> None:
    """Four query heads read two value heads: one value row feeds a channel of two heads."""
    pair = PairView("linear_linear", "v", ("o",), repeat=2, head_dim=8)
    rows = source_rows(pair, 32)
    expected = [h // 2 * 8 + c for h in range(4) for c in range(8)]
    assert rows.tolist() == expected
    s = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.5
    shared = shared_scale(pair, s)
    for h in (0, 2):
        torch.testing.assert_close(shared[8 * h : 8 * h + 8], shared[8 * h + 8 : 8 * h + 16])
        geometric = (s[8 * h : 8 * h + 8] * s[8 * h + 8 : 8 * h + 16]).sqrt()
        torch.testing.assert_close(shared[8 * h : 8 * h + 8], geometric)
    alone = PairView("norm_linear", "n", ("o",))
    assert torch.equal(shared_scale(alone, s), s)


def test_a_scale_moves_through_the_value_heads_of_a_real_block() -> None:
    reference, ids = tiny_llama(), token_ids()
    module = copy.deepcopy(reference)
    engine = _engine(module, ids, (Smoothing(),))
    unit = engine.units[1]
    view = engine._view(unit)
    pair = next(p for p in view.pairs if p.source.endswith("v_proj"))
    assert (pair.repeat, pair.head_dim) == (2, 8)
    s = shared_scale(pair, torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.5)
    scale_pair(view, pair, s)
    _assert_same_function(module, reference, ids)
    assert _changed(module, reference, "model.layers.0.self_attn.v_proj.weight")


def test_rotations_flatten_a_planted_outlier() -> None:
    """One channel of the stream is fifty times as large; behind the rotation no channel stands out."""
    module, ids = tiny_llama(), token_ids()
    with torch.no_grad():
        module.get_parameter("model.embed_tokens.weight")[:, 5] *= 50
    reference = copy.deepcopy(module)
    _transform(module, ids, ResidualRotation())

    def spread(network: nn.Module) -> float:
        with torch.no_grad():
            x = network.get_submodule("model.embed_tokens")(ids).flatten(0, -2)
        return float(x.abs().amax(0).max() / x.abs().mean())

    assert spread(module) < spread(reference) / 4
    _assert_same_function(module, reference, ids)


def test_rotation_leaves_norm_gains_of_one() -> None:
    module = tiny_llama()
    _transform(module, token_ids(), ResidualRotation())
    for name, parameter in module.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name


def test_online_rotations_belong_to_the_projections_behind_products() -> None:
    views = _transform(tiny_llama(), token_ids(), *ROTATIONS)
    for block in range(2):
        view = views[f"model.layers.{block}"]
        assert set(view.online) == {f"model.layers.{block}.{p}" for p in ("self_attn.o_proj", "mlp.down_proj")}
        assert set(view.cache_online) == {"key"}


def test_values_and_output_projection_share_one_matrix_of_all_channels() -> None:
    """Within heads it is folded, across heads it is online: a product of Kronecker factors, as in the paper."""
    view = _transform(tiny_llama(), token_ids(), ValueRotation(), OnlineRotation())["model.layers.0"]
    path = "model.layers.0.self_attn.o_proj"
    across = run_online(torch.eye(32), view.online[path], TABLE)
    four, eight = hadamard_matrix(4), hadamard_matrix(8)
    assert four is not None
    assert eight is not None
    torch.testing.assert_close(across, torch.kron(four / 2, torch.eye(8)))
    folded = torch.kron(torch.eye(4), eight / 8**0.5)
    reference = tiny_llama().get_parameter("model.layers.0.self_attn.o_proj.weight")
    torch.testing.assert_close(view.weight(path), reference @ folded @ across, rtol=1e-4, atol=1e-5)
    (down,) = view.online["model.layers.0.mlp.down_proj"]
    assert dict(down.options)["seed"] >= 0


LAYER_NORM_MODELS = ["gpt2", "opt", "gpt-neox", "phi", "falcon", "vit"]


@pytest.mark.parametrize("name", LAYER_NORM_MODELS)
def test_a_layer_norm_stream_is_rotated_around_the_ones(name: str) -> None:
    """Stored transposes, positions, parallel branches, heads without a bias, tables that no layer owns: all exact."""
    reference = toy_model(name)
    batch = {"pixel_values": toy_images()} if name == "vit" else {"input_ids": torch.randint(3, 96, (2, 12))}
    module = copy.deepcopy(reference)
    stream = _transform(module, batch, ResidualRotation())["suffix"].residual
    assert stream is not None
    assert stream.kind == "layer"
    expected, found = reference(**batch).logits, module(**batch).logits
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    for touch in (*stream.writes, *stream.reads):
        owner, before = module.get_submodule(touch.path), reference.get_submodule(touch.path)
        assert not torch.equal(getattr(owner, touch.parameter), getattr(before, touch.parameter)), touch
    for norm in {touch.norm for touch in stream.reads}:
        readers = [module.get_submodule(touch.path) for touch in stream.reads if touch.norm == norm]
        shift = module.get_parameter(f"{norm}.bias")
        assert torch.equal(module.get_parameter(f"{norm}.weight"), torch.ones_like(shift))
        assert bool((shift == 0).all()) == all(reader.bias is not None for reader in readers)


def test_a_post_norm_encoder_is_refused() -> None:
    ids = torch.randint(3, 96, (2, 12))
    with pytest.raises(InputError, match="cannot be rotated: none was proved"):
        _transform(toy_model("bert"), ids, ResidualRotation())


def test_a_shift_without_gain_has_no_place_behind_the_norm() -> None:
    shift, gain = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2.0, 0.0, -1.0])
    assert ResidualRotation._behind("norm", shift, gain).tolist() == [0.5, 0.0, -2.0]
    with pytest.raises(InputError, match="shift where its gain is zero"):
        ResidualRotation._behind("norm", shift, gain * torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize("transform", [Smoothing(), ExponentShift(kinds=_NORMS), ActivationAwareScaling(kinds=_NORMS)])
def test_a_transform_that_finds_nothing_says_so(transform: Transform) -> None:
    """A post-norm encoder adds what its norms write to the stream: no scale can move there."""
    ids = torch.randint(3, 96, (2, 12))
    engine = _engine(toy_model("bert"), ids, (transform,))
    events = Events()
    for unit in engine.units:
        report = transform.apply(engine._view(unit), {}, 0, events)
        assert report.places == ()
    found = [(e.kind.rpartition(" ")[0], e.where) for e in events.entries]
    assert found == [("nothing to", f"encoder.layer.{block}") for block in range(3)]


def test_keys_of_unknown_heads_stay_and_say_so() -> None:
    engine = _engine(toy_model("gpt2"), torch.randint(3, 96, (2, 12)), (KeyRotation(),))
    events = Events()
    view = engine._view(engine.units[1])
    view.pairs = tuple(replace(pair, head_dim=0, turns=False) for pair in view.pairs)
    KeyRotation().apply(view, {}, 0, events)
    assert view.cache_online == {}
    assert [(e.kind, e.where) for e in events.entries] == [("not rotated", "transformer.h.0: keys and values")]


def test_heads_without_groups_are_rotated_too() -> None:
    """Plain attention: every value head is turned, and the keys before they are coded."""
    reference = toy_model("gpt2")
    module = copy.deepcopy(reference)
    ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    view = _transform(module, ids, ValueRotation(), KeyRotation())["transformer.h.0"]
    assert _changed(module, reference, "transformer.h.0.attn.c_attn.weight")
    assert [o.option("size") for o in view.cache_online["key"]] == [8]
    _assert_same_function(module, reference, ids)


def test_heads_behind_a_gate_stay_and_say_so() -> None:
    engine = _engine(toy_model("gpt2"), torch.randint(3, 96, (2, 12)), (ValueRotation(),))
    events = Events()
    view = engine._view(engine.units[1])
    view.pairs = tuple(replace(pair, turns=False) for pair in view.pairs)
    assert ValueRotation().apply(view, {}, 0, events).places == ()
    assert [(e.kind, e.where) for e in events.entries] == [("not rotated", "transformer.h.0.attn.c_attn")]


def test_silent_channels_are_left_alone() -> None:
    from bitwright.stages.transforms.smoothing import smoothing_scale

    s = smoothing_scale(torch.tensor([4.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0]), 0.5)
    assert s.tolist() == [2.0, 1.0, 1.0]


def test_smoothing_says_what_it_could_not_see() -> None:
    """A layer that no batch reached keeps its weights, as an event."""
    module = tiny_llama()
    engine = _engine(module, token_ids(), (Smoothing(),))
    view = engine._view(engine.units[1])
    events = Events()
    seen = {path: {AbsMax("float"): torch.ones(32)} for path in view.linears if "self_attn" in path}
    report = Smoothing().apply(view, seen, 0, events)
    assert [place for place, _ in report.places] == ["model.layers.0.input_layernorm"]
    assert [e.kind for e in events.entries] == ["no calibration signal"]
