"""Mixtures of experts through whole jobs: every recipe, written, read back, accounted for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

import bitwright.transformers  # noqa: F401
from bitwright.errors import BitwrightError, InputError
from bitwright.formats import parse
from bitwright.jobs import page
from bitwright.jobs.engine import Engine
from bitwright.jobs.experts import steadied, tokens_of, waves
from bitwright.jobs.exporting import export
from bitwright.jobs.opening import Job
from bitwright.jobs.plan import plan
from bitwright.jobs.request import build_recipe
from bitwright.jobs.run import JobResult, run
from bitwright.jobs.view import UnitView
from bitwright.models import Checkpoint, WeightSite
from bitwright.recipes import Recipe
from bitwright.runtime.load import load
from bitwright.runtime.manifest import read_manifest
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.site import rule
from bitwright.statistics import Hessian, TokenCount
from bitwright.statistics.hessian import SecondMoment
from tests.unit.expert_toys import NAMES, SeparateModel, expert_model, token_batches

BATCHES = token_batches(1)
NEW = token_batches(1, seed=9)[0]
NEAREST = Quantizer(parse("int4 g16"))


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are half of a tiny job's time."""
    monkeypatch.setattr(page, "job_page", lambda values: "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A checkpoint of every family, as transformers writes it, in bf16."""
    root = tmp_path_factory.mktemp("experts")
    found = {}
    for name in NAMES:
        expert_model(name).to(torch.bfloat16).save_pretrained(root / name)
        found[name] = root / name
    idle = {"num_experts_per_tok": 1}
    expert_model("Qwen3Moe", **idle).save_pretrained(root / "idle")
    found["idle"] = root / "idle"
    yield found
    shutil.rmtree(root)


def _run(model: Path | nn.Module, recipe: str | Recipe, out: Path | None, batches: Any = None, **job: Any) -> JobResult:
    built = build_recipe(recipe, job.pop("settings", ()), "") if isinstance(recipe, str) else recipe
    return run(Job(model, built, BATCHES if batches is None else batches, out=out, **job))


def _logits(model: nn.Module, batch: dict[str, torch.Tensor] = NEW) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def _all_finite(folder: Path) -> bool:
    checkpoint = Checkpoint.open(folder)
    return all(bool(torch.isfinite(checkpoint.load(n).float()).all()) for n in checkpoint.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_coded_written_and_read_back(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    job = Job(folders[name], build_recipe("rtn", (), ""), None, out=tmp_path / "out")
    planned = plan(job)
    result = run(job)
    assert result.verification is not None
    assert result.verification["ok"]
    assert result.verification["reload_difference"] <= 1e-6
    written = Checkpoint.open(tmp_path / "out")
    assert sum(info.bytes for info in written.tensors.values()) == planned.bytes
    stacks = {path for path in result.coded if ".experts." in path}
    assert len(stacks) == (12 if name == "Dbrx" else 8)
    assert not any("router" in path or path.endswith(".gate") for path in result.coded)
    source = Checkpoint.open(folders[name])
    kept = [key for key in source.tensors if key in written.tensors]
    assert all(bytes(source.raw(key)) == bytes(written.raw(key)) for key in kept)
    assert any("router" in key or key.endswith("gate.weight") for key in kept)


@pytest.mark.parametrize(
    ("name", "recipe", "settings"),
    [
        ("Mixtral", "gptq", ()),
        ("GptOss", "gptaq", ()),
        ("Qwen3Moe", "hqq", ()),
        ("DeepseekV3", "awq", ()),
        ("Qwen2Moe", "smoothquant", ()),
        ("Olmoe", "squeezellm", ()),
        ("GptOss", "lorc", (("rank", "4"),)),
        ("Mixtral", "mx", ()),
        ("Qwen3Moe", "quarot", ()),
        ("GptOss", "brecq", (("steps", "4"),)),
        ("Olmoe", "adaround", (("steps", "4"),)),
        ("GraniteMoe", "llm-fp4", ()),
        ("Llama4", "quantease", ()),
    ],
)
def test_every_recipe_reaches_experts(
    name: str, recipe: str, settings: tuple[tuple[str, str], ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    result = _run(folders[name], recipe, tmp_path / "out", settings=settings)
    assert result.verification is not None
    assert result.verification["reload_difference"] <= 1e-6
    assert sum(".experts." in path for path in result.coded) == 8
    assert _all_finite(tmp_path / "out")


@pytest.mark.parametrize("recipe", ["gptq", "awq", "smoothquant", "squeezellm"])
def test_experts_without_tokens_get_finite_weights(recipe: str, folders: dict[str, Path], tmp_path: Path) -> None:
    result = _run(folders["idle"], recipe, tmp_path / "out", token_batches(1, rows=1, tokens=2))
    assert _all_finite(tmp_path / "out")
    assert bool(torch.isfinite(_logits(load(tmp_path / "out"))).all())
    report = json.loads((tmp_path / "out" / "bitwright-report.json").read_text(encoding="utf-8"))
    for family in report["experts"]:
        assert sum(family["tokens"]) == 2
        assert 0 in family["tokens"]
    if recipe != "smoothquant":  # whose ranges are the weights' own where no token came
        assert "no calibration signal" in {event.kind for event in result.events}


def test_transforms_reach_experts_without_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    fine = build_recipe("quarot", (), "int8 channel")
    fine = Recipe(**{**fine.__dict__, "activations": (), "kv_cache": ()})
    few = token_batches(1, rows=1, tokens=2)
    _run(folders["idle"], fine, tmp_path / "out", few)
    expected = _logits(AutoModelForCausalLM.from_pretrained(folders["idle"], dtype=torch.float32))
    found = _logits(load(tmp_path / "out"))
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_tokens_are_counted_and_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    result = _run(folders["Mixtral"], "gptq", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "bitwright-report.json").read_text(encoding="utf-8"))
    assert len(report["experts"]) == 2
    for family in report["experts"]:
        assert len(family["tokens"]) == 4
        assert sum(family["tokens"]) == 2 * BATCHES[0]["input_ids"].numel()  # two experts a token
    assert "few tokens" in {event.kind for event in result.events}


def test_transformers_writes_the_experts_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    _run(folders["Mixtral"], "rtn", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(_logits(again), _logits(loaded))
    with pytest.raises(InputError, match="experts are coded one by one"):
        export(tmp_path / "out", "compressed-tensors", tmp_path / "exported")


def test_a_strict_job_stops_at_experts_without_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match=r"few tokens|no calibration signal"):
        _run(folders["idle"], "gptq", tmp_path / "out", token_batches(1, rows=1, tokens=2), strict=True)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_one_expert_may_stay_float(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = Recipe(weights=(rule("linear", NEAREST), rule("*.down_proj.2", None)))
    _run(folders[name], recipe, tmp_path / "out")
    kept = "model.layers.0.mlp.experts.down_proj.2.weight"
    source = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.bfloat16)
    stored = Checkpoint.open(tmp_path / "out").load(kept)
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored, source.get_parameter("model.layers.0.mlp.experts.down_proj")[2])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(_logits(loaded), _logits(load(tmp_path / "out")))


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_experts_that_no_rule_selects_are_copied_as_stored(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    _run(folders[name], Recipe(weights=(rule("*.self_attn.*", NEAREST),)), tmp_path / "out")
    source, written = Checkpoint.open(folders[name]), Checkpoint.open(tmp_path / "out")
    experts = [key for key in source.tensors if ".experts." in key]
    assert experts
    assert all(bytes(source.raw(key)) == bytes(written.raw(key)) for key in experts)
    assert "experts" not in written.config["quantization_config"]
    _logits(load(tmp_path / "out"))


def test_a_resumed_job_writes_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(folders["GptOss"], "gptq", tmp_path / "whole")
    work = Engine.work

    def cut(engine: Engine, unit: Any) -> Any:
        if unit.kind == "suffix":
            raise KeyboardInterrupt
        return work(engine, unit)

    monkeypatch.setattr(Engine, "work", cut)
    with pytest.raises(KeyboardInterrupt):
        _run(folders["GptOss"], "gptq", tmp_path / "resumed")
    monkeypatch.setattr(Engine, "work", work)
    assert _run(folders["GptOss"], "gptq", tmp_path / "resumed").resumed == 2
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes(), path.name


def test_a_module_in_memory_is_opened_in_place(tmp_path: Path) -> None:
    model = expert_model("Qwen3Moe")
    skeleton = expert_model("Qwen3Moe", seed=1)
    _run(model, "rtn", tmp_path / "out")
    assert torch.allclose(_logits(load(tmp_path / "out", skeleton)), _logits(model), atol=1e-5)


@pytest.mark.parametrize("recipe", ["rtn", "gptq", "adaround"])
def test_experts_in_a_list(recipe: str, tmp_path: Path) -> None:
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))
    settings = (("steps", "4"),) if recipe == "adaround" else ()
    model = SeparateModel()
    result = _run(model, recipe, tmp_path / "out", [{"x": x[:1, :3]}, {"x": x}], settings=settings)
    assert result.verification is not None
    assert result.verification["ok"]
    assert sum(".experts." in path for path in result.coded) == 12
    assert not any(path.endswith("gate") for path in result.coded)


def test_few_tokens_are_drawn_towards_the_identity() -> None:
    h = torch.diag(torch.tensor([4.0, 0.0]))
    found = steadied({Hessian(): SecondMoment(h, 2), TokenCount(): 2}, 2)
    assert torch.equal(found[Hessian()].matrix, torch.diag(torch.tensor([3.0, 1.0])))  # half of it, half of 2 * I
    assert tokens_of(found) == 2
    many = SecondMoment(h, 8)
    assert steadied({Hessian(): many}, 2)[Hessian()] is many


def _site(path: str, family: str = "") -> WeightSite:
    return WeightSite(path, "weight", "linear", "block", 0, (2, 2), 0, family=family, expert=0 if family else None)


def test_experts_share_a_sweep_as_far_as_memory_allows() -> None:
    groups = [[_site("q")], *([_site(f"{p}.{e}", f"{p}.*")] for e in range(3) for p in ("up", "down")), [_site("last")]]
    sizes = {group[0].path: 10 for group in groups}

    def paths(most: int) -> list[list[str]]:
        return [[group[0].path for group in wave] for wave in waves(groups, sizes, most)]

    assert paths(100) == [["q"], ["up.0", "up.1", "up.2"], ["down.0", "down.1", "down.2"], ["last"]]
    assert paths(20) == [["q"], ["up.0", "up.1"], ["up.2"], ["down.0", "down.1"], ["down.2"], ["last"]]
    assert paths(1) == [["q"], ["up.0"], ["up.1"], ["up.2"], ["down.0"], ["down.1"], ["down.2"], ["last"]]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"experts": 4, "shape": [2, 2], "transpose": True}, "transposed"),
        ({"experts": 0, "shape": [2, 2]}, "damaged"),
        ({"experts": 4, "shape": 2}, "damaged"),
        ([], "no object"),
    ],
)
def test_a_wrong_entry_of_a_stack_is_refused(entry: Any, message: str) -> None:
    raw = {"quant_method": "bitwright", "format_version": 1, "modules": {}, "experts": {"a.b": entry}}
    with pytest.raises(InputError, match=message):
        read_manifest(raw)


def test_a_stack_that_the_network_does_not_have_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    _run(folders["Mixtral"], "rtn", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"]["experts"]["model.layers.0.mlp.experts.down_proj"]["experts"] = 3
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="no parameter"):
        load(tmp_path / "out")


def test_a_stack_that_transformers_turns_at_loading_is_read_and_kept_apart(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    text = {**sizes, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": []}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    model = Qwen3VLMoeForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "float")
    stored = Checkpoint.open(tmp_path / "float")
    assert any(len(info.shape) == 3 and ".experts." in name for name, info in stored.tensors.items())
    result = _run(tmp_path / "float", "rtn", tmp_path / "out")
    assert sum(".experts." in path for path in result.coded) == 16
    assert result.verification is not None
    assert result.verification["reload_difference"] <= 1e-6


def test_one_run_serves_the_searches_of_all_experts(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    outputs = UnitView.outputs

    def counted(view: UnitView, overrides: Any, batches: int | None = None) -> Any:
        runs.append(view.name)
        return outputs(view, overrides, batches)

    monkeypatch.setattr(UnitView, "outputs", counted)
    _run(folders["Qwen3Moe"], "awq", tmp_path / "shared")
    shared = len(runs)
    monkeypatch.setattr(UnitView, "_calls", lambda view, path, batches: view._captured([path], batches)[path])
    _run(folders["Qwen3Moe"], "awq", tmp_path / "single")
    assert len(runs) - shared == shared + 3  # one run for each of four experts
    for path in (tmp_path / "shared").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "single" / path.name).read_bytes()
