"""What engines ask of a plan, and the nearest plan that they serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.interop.engines import ENGINES, Layer, engine
from bitwright.interop.engines.base import shard
from bitwright.jobs import Job, run
from bitwright.jobs.legality import check_engine
from bitwright.jobs.opening import open_job
from bitwright.jobs.plan import plan
from bitwright.jobs.request import build_recipe


def _layer(weight: str = "int4 g128 sym", shape: tuple[int, int] = (512, 512), **options: object) -> Layer:
    return replace(Layer("a", "linear", shape, parse(weight)), **options)  # type: ignore[arg-type]


def _why(name: str, layer: Layer, parallel: int = 1) -> str:
    return "; ".join(o.why for o in engine(name).object_to([layer], parallel))


@pytest.mark.parametrize("name", [e.name for e in ENGINES])
def test_every_candidate_is_served_on_friendly_shapes(name: str) -> None:
    for text in engine(name).candidates:
        assert _why(name, _layer(text, (1024, 1024))) == "", text


@pytest.mark.parametrize(
    ("weight", "shape", "parallel", "split", "word"),
    [
        ("int4 g128 sym", (512, 512), 4, "columns", ""),
        ("int4 g128 sym", (512, 512), 8, "columns", "tiles"),
        ("int4 g128 sym", (512, 640), 2, "columns", "tiles"),
        ("int4 g128 sym", (512, 1536), 8, "columns", "tiles"),
        ("int4 g64 sym", (512, 1024), 8, "rows", ""),
        ("int4 g64 sym", (256, 1024), 8, "rows", "tiles"),
        ("int3 g128 sym", (512, 512), 1, "none", "4 and 8 bits"),
        ("int4 g256 sym", (512, 512), 1, "none", "groups of 32, 64 and 128"),
        ("nvfp4", (512, 528), 1, "none", ""),
        ("nvfp4", (512, 528), 2, "columns", "multiples of 16"),
        ("mxfp4", (512, 512), 8, "columns", ""),
        ("e4m3 block128x128", (512, 512), 4, "columns", ""),
        ("e4m3 block128x128", (512, 512), 8, "columns", "blocks of 128 x 128"),
        ("nf4 b64", (512, 512), 1, "none", "not integers"),
    ],
)
def test_vllm_limits(weight: str, shape: tuple[int, int], parallel: int, split: str, word: str) -> None:
    why = _why("vllm", _layer(weight, shape, split=split), parallel)
    assert (why == "") if not word else word in why


def test_heads_are_cut_whole_and_copied_where_they_are_few() -> None:
    query, key = _layer(shape=(8 * 64, 512), split="rows", head_dim=64), _layer(shape=(128, 512), split="rows")
    assert shard(query, 8) == (64, 512)
    assert shard(replace(key, head_dim=64), 8) == (64, 512)
    assert "heads" in str(shard(replace(query, shape=(6 * 64, 512)), 4))
    assert "heads" in str(shard(replace(query, shape=(3 * 64, 512)), 8))


def test_joined_layers_have_one_format() -> None:
    a, b = _layer(joined="x"), replace(_layer("int8 channel sym", joined="x"), path="b")
    found = engine("vllm").object_to([a, b], 1)
    assert [o.path for o in found] == ["b"]
    assert "joined" in found[0].why
    assert not engine("vllm").object_to([a, replace(b, joined="y")], 1)
    assert "float" in engine("vllm").object_to([a, replace(a, path="b", weight=None)], 1)[0].why


@pytest.mark.parametrize(
    ("name", "weight", "shape", "word"),
    [
        ("llama.cpp", "int4 g128 sym", (64, 256), "no block"),
        ("llama.cpp", "int4 g32 sym", (64, 48), "multiple of 32"),
        ("llama.cpp", "nvfp4", (64, 96), "multiple of 64"),
        ("onnxruntime", "int3 g32 asym", (64, 64), "2, 4 and 8"),
        ("onnxruntime", "int4 g48 asym", (64, 96), "power of two"),
        ("onnxruntime", "e4m3 channel", (64, 64), "integers"),
        ("transformers", "int4 g48 sym", (64, 64), "do not divide"),
    ],
)
def test_limits_of_the_others(name: str, weight: str, shape: tuple[int, int], word: str) -> None:
    assert word in _why(name, _layer(weight, shape))


def test_what_only_our_runtime_serves() -> None:
    for name in ("vllm", "llama.cpp", "transformers", "onnxruntime"):
        assert "sparse" in _why(name, _layer("int4 g32 sym", terms=("sparse",)))
        assert "run with the model" in _why(name, _layer("int4 g32 sym", online=True))
    with pytest.raises(InputError, match="vllm"):
        engine("vlm")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("legal") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _legality(folder: Path, weights: str, name: str, parallel: int = 1, recipe: str = "rtn"):  # type: ignore[no-untyped-def]
    job = Job(folder, build_recipe(recipe, (), weights), engine=name, parallel=parallel)
    return check_engine(job, open_job(job))


def test_the_nearest_legal_plan_is_legal(checkpoint: Path) -> None:
    assert _legality(checkpoint, "int4 g128 sym", "vllm").legal
    two = _legality(checkpoint, "int4 g128 sym", "vllm", 2)
    assert two.legal, two.text
    four = _legality(checkpoint, "int4 g128 sym", "vllm", 4)
    assert not four.legal
    assert four.fewer == 2
    assert four.nearest
    again = _legality(checkpoint, four.nearest, "vllm", 4)
    assert {o.path for o in again.objections} == set(four.floating)
    odd = _legality(checkpoint, "int3 g100 asym", "transformers")
    assert not odd.legal
    assert _legality(checkpoint, odd.nearest, "transformers").legal
    assert odd.nearest == "int3 g128 asym", "as many bits and the nearest group"


def test_an_illegal_job_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    job = Job(checkpoint, build_recipe("rtn", (), "int3 g128 sym"), out=tmp_path / "out", engine="vllm")
    with pytest.raises(InputError, match="nearest legal: --weights"):
        run(job)
    assert not list(tmp_path.iterdir())
    assert not plan(job).as_json()["legal"]
    with pytest.raises(InputError, match="1 to 8"):
        plan(replace(job, parallel=9))


def test_online_rotations_are_served_by_our_runtime_only(checkpoint: Path) -> None:
    job = Job(checkpoint, build_recipe("rtn", (("transforms", "quarot"),), "int4 g128 sym"), engine="vllm")
    found = check_engine(job, open_job(job))
    assert not found.legal
    assert "run with the model" in found.text


def test_a_cache_of_codes_is_served_by_our_runtime_only(checkpoint: Path) -> None:
    found = _legality(checkpoint, "", "vllm", recipe="kv-int")
    assert not found.legal
    assert "cache" in found.text
