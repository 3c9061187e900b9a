"""Which kernel will serve: what ``inspect`` says of a folder and the plan of a job, against what then runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.cli.main import run
from bitwright.jobs.opened_model import open_runnable
from bitwright.jobs.overview import inspect_model
from bitwright.jobs.report import REPORT
from bitwright.native import unavailable
from bitwright.runtime import QuantModule
from bitwright.runtime.kernels.linear import native
from bitwright.runtime.overview import float_arrays
from tests.unit.expert_toys import expert_model
from tests.unit.jobs_toys import save_ids, save_model, tiny_llama

COMPILED = unavailable() is None


def quantize(place: Path, *options: str, tied: bool = False) -> str:
    model = save_model(place / "model", tiny_llama(1, tied=tied))
    ids = save_ids(place / "ids.safetensors", sequences=8, length=64)
    out = str(place / "out")
    data = ["--data", str(ids), "--sequences", "8", "--length", "64"]
    assert run(["quantize", str(model), "--out", out, *data, "--no-verify", *options]) == 0
    return out


def planned(capsys: pytest.CaptureFixture[str], place: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    data = ["--data", str(place / "ids.safetensors"), "--sequences", "8"]
    assert run(["plan", str(place / "model"), *data, "--no-probe", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("--recipe", "rtn", "--weights", "int4 g16 asym"),
        ("--recipe", "rtn", "--weights", "int4 g24"),
        ("--recipe", "rtn", "--weights", "nf4 b32"),
        ("--recipe", "lorc", "--weights", "int4 g32", "--set", "rank=4"),
        ("--recipe", "squeezellm", "--weights", "lut3 channel"),
        ("--recipe", "smoothquant",),
        ("--recipe", "rtn", "--weights", "int8 channel"),
        ("--recipe", "rtn", "--weights", "e4m3 channel"),
        ("--recipe", "rtn", "--weights", "ternary g32"),
    ],
    ids=["int4", "no kernel", "table", "low rank", "sparse codebook", "coded input", "int8", "float8", "ternary"],
)  # fmt: skip
def test_plan_names_the_kernels_that_then_serve(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = quantize(tmp_path, *options)
    plan = planned(capsys, tmp_path, *options)
    rows = {row["path"]: row for row in plan["tensors"]}
    found = inspect_model(out)
    assert found["modules"]
    if COMPILED:
        assert plan["decoder"]["decoder"] == found["decoder"]["decoder"], found["decoder"]["reason"]
    for module in found["modules"]:
        row = rows[module["path"]]
        assert (row["kernel"], row["kernel_exact"]) == (module["kernel"], module["kernel_exact"]), module["path"]
    for exact, key in ((False, "kernel"), (True, "kernel_exact")):
        opened = open_runnable(out, cache_weights=False, exact=exact)
        kernels = {p: m for p, m in opened.module.named_modules() if isinstance(m, QuantModule)}
        for module in found["modules"]:
            assert kernels[module["path"]].served(rows=1).kernel.name == module[key]


@pytest.mark.skipif(not COMPILED, reason="compiled kernels are not there")
def test_exact_and_rounded_kernels_differ(tmp_path: Path) -> None:
    found = inspect_model(quantize(tmp_path, "--recipe", "rtn", "--weights", "int4 g16 asym"))
    assert {m["kernel"] for m in found["modules"]} == {native.ROUNDED.name}
    assert {m["kernel_exact"] for m in found["modules"]} == {native.KERNEL.name}
    assert found["decoder"]["decoder"] == "native"
    assert found["decoder"]["reason"] is None
    assert found["decoder"]["kernels"].items() >= {m["path"]: m["kernel"] for m in found["modules"]}.items()
    assert found["attention"] == {
        "kernel": "attention/native", "key": None, "value": None, "window": 0,
        "why": "reads keys and values as they are kept",
    }  # fmt: skip


def test_definitions_say_what_stopped_better_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = quantize(tmp_path, "--recipe", "rtn", "--weights", "int4 g24")
    found = inspect_model(out, native=False)
    assert {m["kernel"] for m in found["modules"]} == {"linear/reference"}
    assert {name for name, _ in found["modules"][0]["passed_over"]} >= {"linear/native-int8", "linear/native"}
    assert found["decoder"]["decoder"] == "modules"
    assert found["decoder"]["reason"] == "it was not asked for"
    capsys.readouterr()
    assert run(["inspect", out]) == 0
    text = capsys.readouterr().out
    assert "not taken: linear/native" in text
    assert "compiled decoding step: does not serve" in text


def test_every_float_is_listed_once_with_a_reason(tmp_path: Path) -> None:
    out = quantize(tmp_path, "--recipe", "rtn", "--weights", "int4 g16 asym", tied=True)
    found = inspect_model(out)
    floats = {row["name"]: row for row in found["floats"]}
    table = floats["model.embed_tokens.weight"]
    assert table["reason"] == "no rule selects the embedding"
    assert (table["kind"], table["kernel"], table["shared"]) == ("embedding", "torch (float32)", ["lm_head.weight"])
    norms = {name for name in floats if "norm" in name}
    assert len(norms) == 3
    assert {floats[name]["kind"] for name in norms} == {"vector"}
    assert len(floats) == 4
    coded = {m["path"] for m in found["modules"]}
    assert coded.isdisjoint(name.rpartition(".")[0] for name in floats)
    (Path(out) / REPORT).write_text("{", encoding="utf-8")  # the weights are sound without it
    again = {row["name"]: row["reason"] for row in inspect_model(out, native=False)["floats"]}
    assert again["model.embed_tokens.weight"] == "no rule took it"


def test_a_rule_that_keeps_a_layer_float_and_a_router_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = quantize(tmp_path, "--recipe", "rtn", "--set", "select=*.mlp.*", "--weights", "int4 g16")
    reasons = {row["name"]: row["reason"] for row in inspect_model(out, native=False)["floats"]}
    assert reasons["model.layers.0.self_attn.q_proj.weight"] == "no rule selects the block linear"
    expert_model("Qwen3Moe").save_pretrained(tmp_path / "experts")
    capsys.readouterr()
    assert run(["plan", str(tmp_path / "experts"), "--recipe", "rtn", "--no-probe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    router = next(row for row in found["tensors"] if row["role"] == "router")
    assert router["reason"].startswith("a router")
    assert router["kernel"] == router["kernel_exact"] == "torch (float32)"
    assert found["decoder"]["decoder"] == "modules"
    assert "mixture of experts" in found["decoder"]["reason"] or not COMPILED


def test_online_operations_and_a_coded_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--recipe", "quarot")
    out = quantize(tmp_path, *options)
    found = inspect_model(out)
    turned = [m for m in found["modules"] if m["online"]]
    assert turned
    assert all(len(m["online_kernels"]) == len(m["online"]) for m in turned)
    assert {name for m in turned for name in m["online_kernels"]} == {"hadamard/reference"}
    assert found["attention"]["key"] is not None
    assert found["attention"]["kernel"] == "torch (float32)"
    assert "decodes keys and values" in found["attention"]["why"]
    plan = planned(capsys, tmp_path, *options)
    assert plan["attention"] == found["attention"]
    assert "OnlineRotation" in plan["online"]
    assert (plan["decoder"]["decoder"], found["decoder"]["decoder"]) == ("modules", "modules")


@pytest.mark.skipif(not COMPILED, reason="compiled kernels are not there")
@pytest.mark.parametrize(
    ("formats", "native"), [("int8 token", True), ("int4 g16 axis=0 asym", True), ("nf4 token", False)]
)
def test_plan_foresees_whether_a_coded_cache_is_read_directly(
    formats: str, native: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--recipe", "kv-int", "--set", f"keys={formats}", "--set", f"values={formats}", "--set", "window=0")
    out = quantize(tmp_path, *options)
    found, plan = inspect_model(out), planned(capsys, tmp_path, *options)
    assert plan["attention"] == found["attention"]
    assert found["attention"]["key"] == formats
    assert plan["decoder"]["decoder"] == found["decoder"]["decoder"]
    if COMPILED:
        assert found["decoder"]["decoder"] == ("native" if native else "modules")
        assert plan["decoder"]["reason"] == found["decoder"]["reason"]


def test_a_network_without_a_vocabulary_has_no_decoder() -> None:
    found = inspect_model("zoo:digits")
    assert found["decoder"] is None
    assert found["attention"] is None
    assert {row["kind"] for row in found["floats"]} == {"conv", "linear", "vector"}
    assert {row["reason"] for row in found["floats"]} == {"the model is not quantized"}


def test_arrays_of_a_plain_module() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.stack = nn.Parameter(torch.zeros(2, 3, 3, dtype=torch.bfloat16))
            self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
            self.register_buffer("passing", torch.zeros(3), persistent=False)

    found = {row.name: row for row in float_arrays(Odd())}
    assert found.keys() == {"stack", "first.weight", "second.bias"}
    assert found["first.weight"].shared == ("second.weight",)
    assert (found["stack"].kind, found["stack"].kernel) == ("array", "torch (bfloat16)")
    assert found["second.bias"].kind == "vector"
