"""Hostile files are refused with one sentence, before anything is allocated, and nothing of them runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import jinja2  # noqa: F401  (imported before the forks, so that no child pays for it)
import pytest
import transformers

from bitwright.cli.main import run
from bitwright.errors import InputError
from tests.fault import hostile
from tests.fault.hostile_cases import CONFIGS, DATA, HEADERS, MANIFESTS, PLACES
from tests.unit.jobs_toys import save_ids, save_model, tiny_llama


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("float") / "toy", tiny_llama())


@pytest.fixture(scope="module")
def native(float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "toy"
    words = ["--recipe", "rtn", "--weights", "int4 g16 asym", "--no-verify"]
    assert run(["quantize", str(float_model), *words, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def _imported(native: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run every command once here, so that no child pays for its imports."""
    out = str(tmp_path_factory.mktemp("exported") / "toy")
    for command in (["inspect", str(native)], ["export", str(native), "--to", "compressed-tensors", "--out", out]):
        assert run(command) == 0
    assert run(["resume", out]) == 2
    data = save_ids(tmp_path_factory.mktemp("ids") / "ids.safetensors")
    assert run(["quantize", out, "--recipe", "gptq", "--data", str(data), "--length", "16", "--out", out + "-2"]) == 2


@pytest.fixture
def model(float_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(float_model, tmp_path / "model"))


def _refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, word: str, *arguments: str | Path) -> None:
    """A command ends with code 2 and one short sentence, under a memory limit, and leaves nothing behind."""
    capfd.readouterr()
    code = hostile.bounded(lambda: run([str(word) for word in arguments]))
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2, said[-3000:]
    assert len(lines) == 1, said[-3000:]
    assert "Traceback" not in said
    assert any(part in said.replace("\n", " ") for part in word.split("|")), said
    assert len(said) < 2000
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("case", [*HEADERS, *PLACES])
def test_a_checkpoint_is_refused(case: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, word = {**HEADERS, **PLACES}[case]
    change(model)
    out = ("--recipe", "rtn", "--weights", "int4 g16", "--out", tmp_path / "out")
    _refused(capfd, tmp_path, word, "quantize", model, *out)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_is_refused(case: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, word = CONFIGS[case]
    change(model)
    out = ("--recipe", "rtn", "--weights", "int4 g16", "--out", tmp_path / "out")
    _refused(capfd, tmp_path, word, "quantize", model, *out)


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_is_refused(case: str, native: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, word = MANIFESTS[case]
    folder = Path(shutil.copytree(native, tmp_path / "model"))
    change(folder)
    _refused(capfd, tmp_path, word, "inspect", folder)
    _refused(capfd, tmp_path, word, "export", folder, "--to", "compressed-tensors", "--out", tmp_path / "out")


@pytest.mark.parametrize("case", DATA)
def test_data_are_refused(case: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from bitwright.zoo import lm_path

    name, write, word = DATA[case]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(lm_path() / file, model / file)
    write(tmp_path / name)
    options = ("--recipe", "gptq", "--weights", "int4 g16", "--length", "16", "--sequences", "4")
    _refused(capfd, tmp_path, word, "quantize", model, *options, "--data", tmp_path / name, "--out", tmp_path / "out")


def test_a_tokenizer_of_a_gigabyte_is_refused(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("words " * 200, encoding="utf-8")
    out = ("--recipe", "gptq", "--data", tmp_path / "text.txt", "--out", tmp_path / "out")
    for name in ("tokenizer.json", "sentencepiece.bpe.model", "added_tokens.json"):
        hostile.sparse(name, hostile.GIB, b"{")(model)
        _refused(capfd, tmp_path, "larger than", "quantize", model, *out)
        (model / name).unlink()


def test_a_gguf_whose_counts_lie_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It can be inspected, and is no model to quantize."""
    hostile.write_gguf(tmp_path / "model.gguf")
    _refused(capfd, tmp_path, "tensors, which cannot be in the 28 bytes left", "inspect", tmp_path / "model.gguf")
    _refused(capfd, tmp_path, "GGUF", "quantize", tmp_path / "model.gguf", "--recipe", "rtn", "--out", tmp_path / "out")
    _refused(capfd, tmp_path, "GGUF", "eval", tmp_path / "model.gguf", "--data", save_ids(tmp_path / "i.safetensors"))


def test_transformers_gets_the_same_sentence(native: Path, tmp_path: Path) -> None:
    import bitwright.transformers  # noqa: F401

    for case in ("removed a number", "a shape of 10^12", "a format of 10^9 bits", "terms a number"):
        folder = Path(shutil.copytree(native, tmp_path / case))
        MANIFESTS[case][0](folder)
        with pytest.raises(InputError):
            transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    ["a = [" + "[" * 5000, "a = ", "\xff", '"layers.*" = 5', '"layers.*" = {a = 1}', "a = 1\na = 2", "[[a]]\nb = 1"],
)
def test_a_rule_file_is_refused(text: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_bytes(text.encode("latin-1"))
    _refused(capfd, tmp_path, "rule", "inspect", model, "--structure", "--rules", rules)


@pytest.mark.parametrize(
    "setting", ["damping=1e999", "damping=nan", "order=" + "x" * 500, "=5", "a", "weights=int9999"]
)
def test_a_setting_is_refused(setting: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = save_ids(tmp_path / "ids.safetensors")
    options = ("--recipe", "gptq", "--data", data, "--length", "16", "--set", setting)
    _refused(capfd, tmp_path, "", "quantize", model, *options, "--out", tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"modle": "x"}', '{"model": 5}', '{"settings": 5}', "[" * 50_000])
def test_a_request_of_another_is_refused(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "job.partial"
    work.mkdir()
    (work / "job.json").write_text(text, encoding="utf-8")
    (work / "journal.jsonl").write_text('[1]\n{"machine": 5}\n', encoding="utf-8")
    _refused(capfd, tmp_path, "", "resume", work)
