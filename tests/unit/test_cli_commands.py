"""The commands in process: their JSON keys are an interface, slots combine, reports are self-contained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli.main import run
from tests.unit.jobs_toys import save_ids, save_model, tiny_llama

QUANTIZE_KEYS = {"out", "recipe", "bits_per_weight", "bytes", "seconds", "peak_memory_bytes", "events", "verified"}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("commands")
    return {
        "model": str(save_model(place / "model", tiny_llama())),
        "ids": str(save_ids(place / "ids.safetensors", sequences=8)),
    }


@pytest.fixture(scope="session")
def quantized(toy: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("quantized") / "out")
    command = ["quantize", toy["model"], "--recipe", "rtn", "--weights", "int4 g16 asym", "--out", out]
    assert run(command) == 0
    return out


def _json(capsys: pytest.CaptureFixture[str], command: list[str]) -> Any:
    """Run a command with ``--json``: exit code 0 and exactly one JSON value on standard output."""
    capsys.readouterr()
    assert run([*command, "--json"]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert len(text.strip().splitlines()) == 1
    return json.loads(text)


def _quantize(toy: dict[str, str], out: Path, *options: str) -> list[str]:
    data = ["--data", toy["ids"], "--sequences", "8", "--length", "16"]
    return ["quantize", toy["model"], "--out", str(out), *data, *options]


def test_quantize_keys(toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    found = _json(capsys, _quantize(toy, out, "--recipe", "gptq", "--weights", "int4 g16 asym"))
    assert found.keys() >= {*QUANTIZE_KEYS, "format_version"}
    assert found["out"] == str(out)
    assert found["recipe"] == "gptq"
    # Groups of 16 with an fp16 scale and a 4-bit zero point, and rows of 32 and 48 columns that they divide.
    assert found["bits_per_weight"] == pytest.approx(4 + (16 + 4) / 16)
    assert found["bytes"] == sum(p.stat().st_size for p in out.glob("*.safetensors"))
    assert found["seconds"] > 0
    assert found["events"] == []
    assert isinstance(found["verified"], str)
    assert "every tensor is finite and accounted for" in found["verified"]


def test_no_verify_says_so(toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = _quantize(toy, tmp_path / "out", "--recipe", "rtn", "--no-verify")
    assert _json(capsys, command)["verified"] is False


def test_slots_combine_on_the_command_line(
    toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--recipe", "gptq", "--set", "transforms=quarot", "--weights", "nf4 b64")
    found = _json(capsys, _quantize(toy, out, *options))
    assert found["recipe"] == "gptq+transforms=quarot"
    assert found["verified"]
    manifest = json.loads((out / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    module = manifest["modules"]["model.layers.0.mlp.down_proj"]
    assert [operation["kind"] for operation in module["online"]] == ["hadamard"]
    assert module["input"] is None
    assert "nf4 b64" in json.dumps(module["weight"])
    inspected = _json(capsys, ["inspect", str(out)])
    assert {m["format"] for m in inspected["modules"]} == {"nf4 b64"}


def test_parameters_reach_the_recipe(toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        _json(capsys, _quantize(toy, tmp_path / text, "--recipe", "gptq", "--set", f"weights={text}"))
        for text in ("int3 channel", "int8 channel")
    ]
    assert found[0]["bits_per_weight"] < 4 < 8 < found[1]["bits_per_weight"]


def test_bits_is_short_for_a_format(toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _json(capsys, _quantize(toy, tmp_path / "out", "--recipe", "rtn", "--bits", "3"))
    found = _json(capsys, ["inspect", str(tmp_path / "out")])
    assert {m["format"] for m in found["modules"]} == {"int3 g128 asym"}


def test_out_has_a_name_when_none_is_given(
    toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = _json(capsys, ["quantize", toy["model"], "--recipe", "rtn", "--weights", "int4 g16"])
    assert (tmp_path / found["out"] / "config.json").is_file()
    assert "rtn" in found["out"]


def test_plan_keys_agree_with_the_result(
    toy: dict[str, str], quantized: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, ["plan", toy["model"], "--recipe", "rtn", "--weights", "int4 g16 asym"])
    assert found.keys() >= {"bytes", "bits_per_weight", "peak_memory_bytes", "seconds", "legal", "tensors"}
    assert found["legal"] is True
    rows = {row["path"]: row for row in found["tensors"]}
    assert rows["model.layers.1.mlp.up_proj"]["format"] == "int4 g16 asym"
    assert rows["lm_head"]["format"] == ""
    assert rows["lm_head"]["reason"]
    inspected = _json(capsys, ["inspect", quantized])
    assert found["bytes"] == inspected["bytes"]
    for module in inspected["modules"]:
        assert rows[module["path"]]["bits_per_weight"] == pytest.approx(module["bits_per_weight"])


def test_inspect_keys(toy: dict[str, str], quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, ["inspect", quantized])
    assert found.keys() >= {"model", "recipe", "modules", "tensors", "bytes", "float_bytes"}
    assert len(found["modules"]) == 14
    assert found["modules"][0].keys() >= {"path", "format", "bits_per_weight", "kernel"}
    plain = _json(capsys, ["inspect", toy["model"]])
    assert plain["modules"] == []
    assert plain["recipe"] == "float"
    assert plain["float_bytes"] == plain["bytes"]


def test_inspect_structure(toy: dict[str, str], quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, ["inspect", toy["model"], "--structure"])
    assert list(found["blocks"]) == ["model.layers.0", "model.layers.1"]
    assert found.keys() >= {"sites", "pairs", "residual"}
    assert run(["inspect", quantized, "--structure"]) == 2
    assert "is quantized" in capsys.readouterr().err


def test_eval_keys(toy: dict[str, str], quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, ["eval", quantized, "--data", toy["ids"]])
    assert found.keys() >= {"model", "task", "metric", "value", "protocol", "bits_per_weight", "bytes"}
    assert found["metric"] == "perplexity"
    assert found["value"] > 1
    assert "ids.safetensors" in found["protocol"]
    against = _json(capsys, ["eval", quantized, "--data", toy["ids"], "--against", toy["model"]])
    assert against.keys() >= {"kl", "top1_agreement"}
    assert against["value"] == pytest.approx(found["value"])
    assert against["kl"] > 0
    assert 0 <= against["top1_agreement"] <= 1
    same = _json(capsys, ["eval", toy["model"], "--data", toy["ids"], "--against", toy["model"], "--task", "kl"])
    assert same["value"] == pytest.approx(0, abs=1e-6)
    assert same["top1_agreement"] == 1


def test_compare_keys(toy: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "compare.html"
    command = [
        "compare", toy["model"], "--recipes", "rtn,gptq", "--weights", "int8 g16,int3 g16", "--data", toy["ids"],
        "--sequences", "8", "--length", "16", "--on", toy["ids"], "--report", str(page),
    ]  # fmt: skip
    found = _json(capsys, command)
    rows = found["rows"]
    assert [(r["recipe"], r["format"]) for r in rows] == [
        ("float", ""), ("rtn", "int8 g16"), ("rtn", "int3 g16"), ("gptq", "int8 g16"), ("gptq", "int3 g16"),
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= {
            "recipe", "format", "bits_per_weight", "perplexity", "kl", "top1_agreement", "seconds",
        }  # fmt: skip
    kl = {(r["recipe"], r["format"]): r["kl"] for r in rows}
    assert kl["rtn", "int8 g16"] < kl["rtn", "int3 g16"]
    assert kl["gptq", "int3 g16"] < kl["rtn", "int3 g16"]
    _assert_self_contained(page)


def _assert_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # Names of XML namespaces look like addresses but nothing loads them; nor does RDF metadata.
    loaded = re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#|data:)[^"']*""", text)
    assert loaded == []
    assert "<script" not in text
    assert "@import" not in text
    assert "<svg" in text


def test_report_page_is_self_contained(quantized: str) -> None:
    _assert_self_contained(Path(quantized) / "report.html")
    report = json.loads((Path(quantized) / "bitwright-report.json").read_text(encoding="utf-8"))
    assert report["format_version"] == 1
    assert {t["path"] for t in report["tensors"]}.isdisjoint(k["path"] for k in report["kept_float"])
    assert {k["path"] for k in report["kept_float"]} == {"lm_head", "model.embed_tokens"}
    assert all(0 < t["relative_error"] < 0.2 for t in report["tensors"])


def test_output_folder_holds_no_working_file_and_no_path(quantized: str, toy: dict[str, str]) -> None:
    names = {p.name for p in Path(quantized).iterdir()}
    shards = {f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)}
    assert names - shards == {"config.json", "model.safetensors.index.json", "bitwright-report.json", "report.html"}
    for path in Path(quantized).iterdir():
        assert str(Path(toy["model"]).parent).encode() not in path.read_bytes()


def test_recipes_keys(capsys: pytest.CaptureFixture[str]) -> None:
    rows = _json(capsys, ["recipes"])
    assert {"rtn", "gptq", "awq", "quarot"} <= {row["name"] for row in rows}
    for row in rows:
        assert row.keys() >= {"name", "number", "family", "paper", "claim"}
    one = _json(capsys, ["recipes", "gptq"])
    assert one[0]["number"] == 59
    assert one[0]["parameters"]["damping"] == "0.01"
    assert run(["recipes", "gptk"]) == 2
    assert "did you mean 'gptq'?" in capsys.readouterr().err


def test_people_see_tables(toy: dict[str, str], quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        (["inspect", quantized], ("int4 g16 asym", "stays float")),
        (["plan", toy["model"], "--recipe", "rtn"], ("lm_head", "bits per quantized weight")),
        (["recipes"], ("gptq",)),
        (["recipes", "gptq"], ("Frantar", "damping")),
    ):
        capsys.readouterr()
        assert run(command) == 0
        text = capsys.readouterr().out
        for word in words:
            assert word in text


def test_generate_needs_a_tokenizer(quantized: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", quantized, "--prompt", "x"]) == 2
    assert "tokenizer" in capsys.readouterr().err
