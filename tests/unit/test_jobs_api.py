"""The short Python interface on plain modules and on folders."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.runtime import QuantModule
from tests.unit.jobs_toys import save_ids, save_model, tiny_llama, token_ids
from tests.unit.models_toys import MobileNet, ResNet, seeded


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def _inputs(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("recipe", ["rtn", "gptq"])
def test_an_mlp_is_quantized_in_place(recipe: str) -> None:
    module = seeded(_mlp)
    batches = _inputs(32, 16)
    reference = copy.deepcopy(module)
    result = bw.quantize(module, recipe, batches, weights="int8 channel")
    assert [isinstance(m, QuantModule) for m in module] == [True, False, True, False, False]
    assert set(result.coded) == {"0", "2"}, "the last layer is the head, which stays float"
    # One fp16 scale per row of 16 and of 32 columns.
    assert result.bits_per_weight == pytest.approx(8 + (32 * 16 + 32 * 16) / (32 * 16 + 32 * 32))
    x = batches[0]
    with torch.no_grad():
        error = (module(x) - reference(x)).norm() / reference(x).norm()
    assert 0 < error < 0.02


def test_gptq_is_nearer_to_the_float_mlp_than_rounding() -> None:
    batches = _inputs(64, 16)
    errors = {}
    for recipe in ("rtn", "gptq"):
        module = seeded(_mlp)
        reference = copy.deepcopy(module)
        bw.quantize(module, recipe, batches, weights="int3 channel")
        with torch.no_grad():
            errors[recipe] = float((module(batches[0]) - reference(batches[0])).norm())
    assert errors["gptq"] < errors["rtn"]


def test_batches_may_be_dicts_of_the_arguments() -> None:
    one, two = seeded(_mlp), seeded(_mlp)
    batches = _inputs(8, 16)
    bw.quantize(one, "gptq", batches, weights="int4 channel")
    bw.quantize(two, "gptq", [{"input": x} for x in batches], weights="int4 channel")
    with torch.no_grad():
        assert torch.equal(one(batches[0]), two(batches[0]))


@pytest.mark.parametrize("build", [ResNet, MobileNet])
def test_a_small_cnn_is_quantized_in_place(build: type[nn.Module]) -> None:
    module = seeded(build)
    batches = _inputs(2, 3, 16, 16)
    with torch.no_grad():
        expected = module(batches[0])
    result = bw.quantize(module, "rtn", batches, weights="int8 channel")
    convolutions = [n for n, m in copy.deepcopy(module).named_modules() if isinstance(m, QuantModule)]
    assert len(convolutions) == len(result.coded) > 5
    with torch.no_grad():
        error = (module(batches[0]) - expected).norm() / expected.norm()
    assert error < 0.05


def test_modules_need_a_batch_where_data_are_read() -> None:
    with pytest.raises(InputError, match="give a small example batch"):
        bw.quantize(seeded(_mlp), "gptq")


def test_unknown_words_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'gptq'"):
        bw.quantize(seeded(_mlp), "gptk", _inputs(8, 16))
    with pytest.raises(InputError, match="did you mean 'damping'"):
        bw.quantize(seeded(_mlp), "gptq", _inputs(8, 16), settings={"dampng": "0.1"})


def test_plan_run_load(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", tiny_llama())
    ids = save_ids(tmp_path / "ids.safetensors")
    planned = bw.plan(model, "rtn", weights="int8 g16")
    assert planned.plan.bits_per_weight == pytest.approx(9)
    finished = planned.run(tmp_path / "out")
    assert finished.result.bits_per_weight == pytest.approx(9)
    loaded = finished.load()
    with torch.no_grad():
        expected, found = tiny_llama()(token_ids()).logits, loaded(token_ids()).logits
    assert float((found - expected).norm() / expected.norm()) < 0.03
    again = bw.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(token_ids()).logits, found)
    with pytest.raises(InputError, match="exists already"):
        planned.run(tmp_path / "out")
    assert ids.is_file()


def test_plan_with_batches(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", tiny_llama())
    planned = bw.plan(model, "gptq", weights="int4 g16 asym", data=[{"input_ids": token_ids()}])
    assert any("sweep" in text for text in planned.plan.sweeps)
    assert len(planned.run(tmp_path / "out").result.coded) == 14
