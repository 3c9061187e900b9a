"""Wrong input or a bad place: exit code 2, one sentence that says how to mend it, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.cli.main import run
from bitwright.models.writer import ShardWriter
from tests.unit.jobs_toys import change_tensor, digests, save_ids, save_model, tiny_llama

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", tiny_llama())


@pytest.fixture(scope="session")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ids(tmp_path_factory.mktemp("ids") / "ids.safetensors")


def _quantize(model: Path | str, out: Path, *options: str) -> int:
    chosen = options if "--recipe" in options else ("--recipe", "rtn", *options)
    words = [] if "--weights" in options else ["--weights", "int4 g16 asym"]
    return run(["quantize", str(model), "--out", str(out), *chosen, *words])


def _refused(capsys: pytest.CaptureFixture[str], out: Path, code: int, *words: str) -> str:
    """Check the exit code, the one sentence on standard error, and that nothing was left behind."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    for word in words:
        assert word in lines[0]
    left = [p.name for p in out.parent.iterdir() if p.name.startswith(out.name)] if out.parent.is_dir() else []
    assert left == []
    return lines[0]


def test_missing_shard(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    code = _quantize(model, tmp_path / "out")
    _refused(capsys, tmp_path / "out", code, "model-00002-of-00002.safetensors", "missing", "download")


def test_truncated_shard(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    code = _quantize(model, tmp_path / "out")
    _refused(capsys, tmp_path / "out", code, "model-00001-of-00002.safetensors", "download")


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(capsys, tmp_path / "out", _quantize(tmp_path / "nowhere", tmp_path / "out"), "nowhere", "config.json")


@pytest.mark.parametrize("recipe", ["rtn", "gptq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_do_not_block_the_mended_model(
    recipe: str, value: float, model: Path, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    shutil.copytree(model, good)

    def spoil(w: torch.Tensor) -> torch.Tensor:
        w[3, 5] = value
        return w

    change_tensor(model, WEIGHT, spoil)
    options = ("--recipe", recipe, "--data", str(ids), "--sequences", "4", "--length", "16")
    code = _quantize(model, tmp_path / "out", *options)
    _refused(capsys, tmp_path / "out", code, WEIGHT.removesuffix(".weight"))
    if recipe == "rtn":
        shutil.rmtree(model)
        good.rename(model)
        assert _quantize(model, tmp_path / "out", *options) == 0


@pytest.mark.parametrize("options", [(), ("--no-verify",)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_float_tensor_that_is_not_finite_fails(
    value: float, options: tuple[str, ...], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors that no stage touches are looked at too, whether the result is verified or not."""
    change_tensor(model, "model.norm.weight", lambda w: w * value)
    code = _quantize(model, tmp_path / "out", *options)
    _refused(capsys, tmp_path / "out", code, "model.norm.weight", "NaN", "again")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "gptk"), ("unknown recipe 'gptk'", "did you mean 'gptq'?")),
        (("--set", "transform=quarot"), ("'transform'", "did you mean 'transforms'?")),
        (("--set", "dampning=0.1", "--recipe", "gptq"), ("'dampning'", "did you mean 'damping'?")),
        (("--set", "damping=much", "--recipe", "gptq"), ("damping", "float", "'much'")),
        (("--set", "transforms=quarott"), ("unknown recipe 'quarott'", "did you mean 'quarot'?")),
        (("--set", "transforms=rtn"), ("'rtn'", "empty", "choose")),
        (("--set", "transforms"), ("key=value",)),
        (("--weights", "imt4 g128"), ("imt4", "int4")),
        (("--weights", "int4 g128 asim"), ("asim", "asym")),
        (("--max-memory", "lots"), ("'lots'", "2GB")),
        (("--max-memory", "1KB"), ("--max-memory", "allow more")),
    ],
    ids=lambda value: value[-1] if len(value) == 2 else None,
)
def test_unknown_words_name_the_nearest(
    options: tuple[str, ...], words: tuple[str, ...], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(capsys, tmp_path / "out", _quantize(model, tmp_path / "out", *options), *words)


def test_unknown_option_and_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(capsys, tmp_path / "out", _quantize(model, tmp_path / "out", "--recip", "rtn"), "--recip")
    _refused(capsys, tmp_path / "out", run(["quantise", str(model)]), "'quantise'", "did you mean 'quantize'?")


def test_order_of_a_recipe_is_checked_before_the_work(
    model: Path, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--recipe", "gptq", "--set", "order=actvation", "--data", str(ids), "--length", "16")
    code = _quantize(model, tmp_path / "out", *options)
    _refused(capsys, tmp_path / "out", code, "actvation", "activation")


def _with_tokenizer(model: Path) -> Path:
    from bitwright.zoo import lm_path

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(lm_path() / name, model / name)
    return model


def test_empty_calibration_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("")
    code = _quantize(_with_tokenizer(model), tmp_path / "out", "--recipe", "gptq", "--data", str(text))
    _refused(capsys, tmp_path / "out", code, "empty.txt")


def test_text_shorter_than_the_context(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("def f(): return 1\n")
    code = _quantize(_with_tokenizer(model), tmp_path / "out", "--recipe", "gptq", "--data", str(text))
    _refused(capsys, tmp_path / "out", code, "short.txt", "length")


def test_missing_calibration_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none.txt", "none.safetensors"):
        code = _quantize(_with_tokenizer(model), tmp_path / "out", "--recipe", "gptq", "--data", str(tmp_path / name))
        _refused(capsys, tmp_path / "out", code, name)


def test_ids_outside_the_vocabulary(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file({"ids": torch.full((4, 16), 64)}, tmp_path / "ids.safetensors")
    options = ("--recipe", "gptq", "--data", str(tmp_path / "ids.safetensors"), "--length", "16")
    _refused(capsys, tmp_path / "out", _quantize(model, tmp_path / "out", *options), "64", "vocabulary")


def test_missing_tokenizer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 200)
    code = _quantize(model, tmp_path / "out", "--recipe", "gptq", "--data", str(text))
    _refused(capsys, tmp_path / "out", code, "tokenizer")


def test_data_are_asked_for(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = _quantize(model, tmp_path / "out", "--recipe", "gptq", "--data", "none")
    _refused(capsys, tmp_path / "out", code, "'gptq' reads activations", "--data")


def test_read_only_place(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "read-only"
    original = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if str(path).startswith(str(place)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *args, **kwargs)

    place.mkdir()
    monkeypatch.setattr(os, "open", refuse)  # the tests may run as root, whom permissions do not stop
    code = _quantize(model, place / "out")
    _refused(capsys, place / "out", code, "out", "choose another --out")


def test_place_below_a_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "out"
    _refused(capsys, out, _quantize(model, out), "file", "choose another --out")


def test_full_disk_then_the_same_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished stays, the half-written shard goes, and the same command continues."""
    original = ShardWriter.write
    written = 0

    def full(self: ShardWriter, name: str, data: Any) -> None:
        nonlocal written
        written += 1
        if written < 15:
            original(self, name, data)
            return

        def pieces() -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield b""

        original(self, name, pieces())

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", full)
        code = _quantize(model, tmp_path / "out")
    error = capsys.readouterr().err
    assert code == 2
    assert "the disk is full; free some space and run the same command again" in error
    work = tmp_path / "out.partial"
    assert not list(work.glob("*.safetensors.partial"))
    assert run(["quantize", str(model), "--recipe", "rtn", "--weights", "int4 g16 asym",
                "--out", str(tmp_path / "out"), "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["resumed_units"] > 0
    assert _quantize(model, tmp_path / "whole") == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_refused_change_leaves_the_interrupted_job_and_its_request(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.jobs.journal import Journal

    original = Journal.add

    def add(self: Journal, entry: Any) -> None:
        original(self, entry)
        if len(self.entries) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        assert _quantize(model, tmp_path / "out") == 130
    assert "the same command continues" in capsys.readouterr().err
    before = digests(tmp_path / "out.partial")
    assert _quantize(model, tmp_path / "out", "--weights", "int3 g16") == 2
    assert "another recipe" in capsys.readouterr().err
    assert digests(tmp_path / "out.partial") == before
    assert run(["resume", str(tmp_path / "out.partial")]) == 0
    manifest = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert "int4 g16 asym" in json.dumps(manifest)


def test_resume_without_a_job(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(capsys, tmp_path / "out", run(["resume", str(tmp_path / "out")]), "no interrupted job", "--out")
    assert _quantize(model, tmp_path / "done", "--no-verify") == 0
    capsys.readouterr()
    assert run(["resume", str(tmp_path / "done")]) == 2
    assert "the job is finished" in capsys.readouterr().err


def test_strict_turns_an_event_into_a_failed_check(
    model: Path, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four stored sequences where eight were asked for: an event of the report, an error under --strict."""
    options = ("--recipe", "gptq", "--data", str(ids), "--sequences", "8", "--length", "16")
    assert _quantize(model, tmp_path / "out", *options, "--strict") == 1
    assert "--strict" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert _quantize(model, tmp_path / "out", *options) == 0
    report = json.loads((tmp_path / "out" / "bitwright-report.json").read_text(encoding="utf-8"))
    assert [e["kind"] for e in report["events"]] == ["calibration-short"]
    assert "only 4 of 8" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
