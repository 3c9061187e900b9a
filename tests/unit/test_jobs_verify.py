"""Finished folders are read back: here, in a process of their own, and weight by weight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import CheckError
from bitwright.jobs import Job, run
from bitwright.jobs.fresh import answer_in_fresh_process
from bitwright.jobs.read_back import answer
from bitwright.jobs.request import build_recipe
from bitwright.stages.transforms import TransformReport
from tests.unit.jobs_toys import save_model, tiny_llama, token_ids

BATCHES = [{"input_ids": token_ids()}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    save_model(place / "model", tiny_llama())
    run(Job(place / "model", build_recipe("gptq", (), "int4 g16 asym"), BATCHES, out=place / "out"))
    return place / "out"


@pytest.mark.fresh_process
def test_a_fresh_process_answers_as_this_one_held_and_weight_by_weight(finished: Path) -> None:
    batch = {"input_ids": token_ids()[:1]}
    expected, bad = answer(finished, batch, held=True)
    assert bad == ()
    for held in (True, False):
        found, bad = answer_in_fresh_process(finished, batch, held=held)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert bad == ()


@pytest.mark.parametrize("recipe", ["smoothquant", "quarot", "awq"])
def test_transforms_are_seen_to_leave_the_float_model_as_it_is(recipe: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny_llama())
    verdict = run(Job(tmp_path / "model", build_recipe(recipe), BATCHES, out=tmp_path / "out")).verification
    assert verdict is not None
    assert 0 < verdict["transform_difference"] < 1e-4


def test_a_transform_that_changes_the_function_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.stages.transforms.smoothing import Smoothing

    def broken(self: Smoothing, block: Any, *rest: Any) -> TransformReport:
        for path in block.linears[:1]:
            block.set_weight(path, block.weight(path) * 1.5)
        return TransformReport("broken", ())

    monkeypatch.setattr(Smoothing, "apply", broken)
    save_model(tmp_path / "model", tiny_llama())
    with pytest.raises(CheckError, match="transforms moved the float outputs"):
        run(Job(tmp_path / "model", build_recipe("smoothquant"), BATCHES, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["smoothquant", "quarot", "lorc", "kv-int"])
def test_weight_by_weight_is_the_held_model(recipe: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny_llama())
    run(Job(tmp_path / "model", build_recipe(recipe), BATCHES, out=tmp_path / "out", verify=False))
    batch = {"input_ids": token_ids()[:1]}
    held, mapped = (answer(tmp_path / "out", batch, held=way)[0] for way in (True, False))
    torch.testing.assert_close(mapped, held, rtol=1e-5, atol=1e-6)


def test_the_verdict_compares_with_the_original_and_stands_in_the_report(finished: Path) -> None:
    verdict = json.loads((finished / "bitwright-report.json").read_text())["verification"]
    assert verdict["ok"]
    assert 0 < verdict["kl"] < 1
    assert 0 <= verdict["top1_agreement"] <= 1
    assert verdict["reload_difference"] < 1e-5
    assert "KL" in (finished / "report.html").read_text()


def test_what_does_not_change_the_model_has_no_divergence(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny_llama())
    job = Job(tmp_path / "model", build_recipe("rtn", (), "int8 g16"), BATCHES, out=tmp_path / "out")
    verdict = run(job).verification
    assert verdict is not None
    assert verdict["kl"] < 1e-3
    assert verdict["top1_agreement"] > 0.9


@pytest.mark.fresh_process
def test_a_folder_that_cannot_be_read_back_keeps_its_working_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.jobs import output

    save_model(tmp_path / "model", tiny_llama())
    finish = output.Output.finish

    def spoiled(self: output.Output, manifest: object, leave: object = ()) -> None:
        finish(self, manifest, leave)  # type: ignore[arg-type]
        config = json.loads((self.folder / "config.json").read_text())
        config["quantization_config"]["modules"].popitem()
        (self.folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(output.Output, "finish", spoiled)
    job = Job(tmp_path / "model", build_recipe("rtn"), out=tmp_path / "out", fresh_process=True)
    with pytest.raises(CheckError, match="cannot be read back in a fresh process"):
        run(job)
    assert not (tmp_path / "out").exists()
    assert dataclasses.replace(job).out is not None
