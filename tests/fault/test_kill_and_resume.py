"""A job that is killed at any moment and started again gives the bytes of a job that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jinja2  # noqa: F401  (imported before the forks, so that no child pays for it)
import pytest
import torch

from bitwright.errors import InputError
from bitwright.jobs import Job, page, run
from bitwright.jobs.journal import Journal
from bitwright.jobs.request import build_recipe
from tests.fault.killing import killed_at
from tests.unit.jobs_toys import change_tensor, digests, in_child, save_ids, save_model, tiny_llama, token_ids

pytestmark = pytest.mark.usefixtures("single_thread_without_pictures")
_FIGURE = page._figure
UNITS = 4  # prefix, two blocks, suffix


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "toy", tiny_llama())


def _job(model: Path, out: Path, recipe: str = "gptq", weights: str = "int4 g16 asym", seed: int = 0) -> Job:
    data = [{"input_ids": token_ids()}]
    return Job(model, build_recipe(recipe, (), weights), data, out=out, seed=seed, verify=False)


def _resumed_units(job: Job) -> int:
    return run(job).resumed


@pytest.mark.parametrize("recipe", ["gptq", "awq"])
def test_killed_anywhere_the_bytes_are_the_same(recipe: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole"
    assert in_child(lambda: run(_job(checkpoint, out, recipe))) == 0
    expected = digests(out)
    count, resumed = 3 if recipe == "gptq" else 15, 0
    while True:
        out = tmp_path / f"killed-{count}"
        status = killed_at(_job(checkpoint, out, recipe), count)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert not out.exists()
        assert in_child(lambda out=out: run(_job(checkpoint, out, recipe))) == 0
        assert digests(out) == expected, f"killed at write {count}"
        assert not out.with_name(out.name + ".partial").exists()
        resumed += 1
        count += 14 if recipe == "gptq" else 33
    assert resumed >= 2


def test_finished_units_are_not_worked_on_again(checkpoint: Path, tmp_path: Path) -> None:
    job = _job(checkpoint, tmp_path / "out", "rtn")

    def work() -> None:
        original = Journal.add

        def add(self: Journal, entry: Any) -> None:
            original(self, entry)
            if len(self.entries) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = add  # type: ignore[method-assign]
        run(job)

    assert in_child(work) == -signal.SIGKILL
    assert _resumed_units(job) == 2


def _interrupted(job: Job, monkeypatch: pytest.MonkeyPatch, units: int = 3) -> Path:
    """Stop a job by an exception after ``units`` journal lines and return its working folder."""
    original = Journal.add

    def add(self: Journal, entry: Any) -> None:
        original(self, entry)
        if len(self.entries) == units:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert job.out is not None
    return job.out.with_name(job.out.name + ".partial")


def test_torn_last_line_costs_one_unit(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(_job(checkpoint, tmp_path / "whole", "rtn"))
    job = _job(checkpoint, tmp_path / "out", "rtn")
    journal = _interrupted(job, monkeypatch) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert _resumed_units(job) == 2
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_damaged_shard_is_made_again(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(_job(checkpoint, tmp_path / "whole", "rtn"))
    job = _job(checkpoint, tmp_path / "out", "rtn")
    work = _interrupted(job, monkeypatch)
    shard = work / f"model-00002-of-{UNITS:05d}.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert _resumed_units(job) == 1
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_changed_source_weights_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another training of the same architecture has the same headers; its weights must not be mixed in."""
    model = save_model(tmp_path / "model", tiny_llama())
    job = _job(model, tmp_path / "out", "rtn")
    _interrupted(job, monkeypatch)
    change_tensor(model, "model.layers.0.mlp.up_proj.weight", lambda w: w + 1)
    assert _resumed_units(job) == 1
    run(_job(model, tmp_path / "whole", "rtn"))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_other_inputs_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model", tiny_llama())
    job = _job(model, tmp_path / "out", "rtn")
    work = _interrupted(job, monkeypatch)
    before = digests(work)
    three = save_model(tmp_path / "three", tiny_llama(layers=3))
    others = {
        "recipe": _job(model, tmp_path / "out", "rtn", "int3 g16 asym"),
        "seed": _job(model, tmp_path / "out", "rtn", seed=1),
        "model": _job(three, tmp_path / "out", "rtn"),
        "data": Job(model, job.recipe, [{"input_ids": token_ids().flip(0)}], out=job.out, verify=False),
    }
    for name, other in others.items():
        with pytest.raises(InputError, match=rf"another {name} .*use the same {name}, another --out"):
            run(other)
        assert digests(work) == before, "a refused job must leave the interrupted one alone"
    torch.set_num_threads(2)  # as on another machine: the job goes on and says so
    result = run(job)
    torch.set_num_threads(1)
    assert result.resumed == 3
    moved = [event.message for event in result.events if event.kind == "another machine"]
    assert len(moved) == 1
    assert "threads was 1 and is 2" in moved[0]


def test_two_jobs_do_not_share_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    job = _job(checkpoint, tmp_path / "out", "rtn")
    seen: list[str] = []

    def second(unit: str, done: int, total: int, share: float) -> None:
        if not seen:
            seen.append(unit)
            with pytest.raises(InputError, match="another job is writing"):
                run(job)

    run(job, second)
    assert seen
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_existing_output_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(InputError, match="exists already; choose another --out"):
        run(_job(checkpoint, out, "rtn"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "precious").read_text() == "x"


def test_real_process_killed_three_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console command dies by SIGKILL three times, each time a unit later; ``resume`` finishes it.

    It takes the killed command's number of threads by itself: nothing of the result may depend on who resumes.
    """
    model = save_model(tmp_path / "model", tiny_llama(layers=4))
    ids = save_ids(tmp_path / "ids.safetensors", sequences=64, length=32)
    options = [
        "--recipe", "gptq", "--weights", "int4 g16 asym", "--data", str(ids), "--sequences", "64", "--length", "32",
        "--threads", "1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "bitwright.cli.main", "quantize", str(model), *options, "--out", "out"]
    journal = tmp_path / "out.partial" / "journal.jsonl"
    for lines in (2, 3, 4):  # the header is one
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if journal.is_file() and journal.read_bytes().count(b"\n") >= lines:
                process.kill()
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL, "the job was over before it could be killed"

    from bitwright.cli.main import run as run_command

    monkeypatch.setattr(page, "_figure", _FIGURE)
    torch.set_num_threads(2)
    capsys.readouterr()
    assert run_command(["resume", str(tmp_path / "out"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert torch.get_num_threads() == 1
    assert summary["resumed_units"] >= 3
    assert summary["events"] == []
    assert not journal.parent.exists()
    assert in_child(lambda: run_command(["quantize", str(model), *options, "--out", str(tmp_path / "whole")])) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    manifest = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert manifest["recipe"] == "gptq"
