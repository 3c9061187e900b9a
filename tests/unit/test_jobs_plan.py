"""The plan against what jobs then did: bytes, disk, and that a cap of memory is kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.jobs.memory import WorkingLaw, working_law
from bitwright.jobs.opening import Job
from bitwright.jobs.plan import plan
from bitwright.jobs.request import build_recipe
from bitwright.jobs.run import run
from bitwright.jobs.sampling import SolveLaw, timed_law, working_bytes
from bitwright.models import Checkpoint
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.rounding.second_order import SecondOrder
from tests.unit.expert_toys import expert_model
from tests.unit.jobs_toys import save_model, tiny_llama, token_ids

BATCHES = [{"input_ids": token_ids()}]


def stored_bytes(folder: Path) -> int:
    return sum(info.bytes for info in Checkpoint.open(folder).tensors.values())


def files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("recipe", "weights", "settings", "tied"),
    [
        ("rtn", "int4 g16 asym", {}, False),
        ("rtn", "int3 g16", {"select": "linear,head,embedding"}, True),
        ("rtn", "nvfp4", {}, False),
        ("gptq", "int4 g16 asym", {}, True),
        ("lorc", "int4 g16", {"rank": "4"}, False),
        ("squeezellm", "lut3 channel", {"sensitive": "0"}, False),
        ("quarot", "", {}, True),
    ],
)  # fmt: skip
def test_planned_bytes_are_those_of_the_result(
    recipe: str, weights: str, settings: Mapping[str, str], tied: bool, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", tiny_llama(1, tied=tied))
    job = Job(
        model, build_recipe(recipe, tuple(settings.items()), weights), BATCHES, out=tmp_path / "out", verify=False
    )
    planned = plan(job)
    assert planned.bytes_exact
    run(job)
    assert planned.bytes == stored_bytes(tmp_path / "out")
    assert files_bytes(tmp_path / "out") <= planned.disk_bytes


def test_planned_bytes_of_experts_and_an_estimate_that_says_so(tmp_path: Path) -> None:
    model = expert_model("Qwen3Moe")
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    job = Job(folder, build_recipe("rtn", (), "int4 g16"), out=tmp_path / "out", verify=False)
    planned = plan(job)
    run(job)
    assert planned.bytes == stored_bytes(tmp_path / "out")
    sparse = Job(folder, build_recipe("squeezellm", (("select", "head"),), "lut3 channel"), BATCHES)
    assert not plan(sparse).bytes_exact


def test_a_full_disk_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model", tiny_llama(1))
    job = Job(folder, build_recipe("rtn", (), "int4 g16"), out=tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"needs about 1 MB and the disk of .*out has 0 MB free"):
        run(job)
    assert not list(tmp_path.glob("out*"))


def test_what_a_solver_holds_is_counted() -> None:
    nearest = Quantizer(parse("int4 g128"))
    shape = (256, 1024)
    # Codes and the float value that they are compared with; at most two more floats per weight.
    assert 5 * 256 * 1024 <= working_bytes(nearest, shape) <= 13 * 256 * 1024
    assert working_bytes(nearest, (1024, 4096)) == 16 * working_bytes(nearest, shape)
    second = Quantizer(parse("int4 g128"), rounding=SecondOrder())
    more = working_bytes(second, shape) - working_bytes(nearest, shape)
    assert more >= 4 * 1024**2, "the factor of the Hessian"
    law = working_law(second, [(256, 1024), (1024, 256)])
    assert law.bytes(shape) == pytest.approx(working_bytes(second, shape), rel=0.1)
    assert WorkingLaw(2.0, 8.0).bytes((10, 100)) == 2 * 1000 + 8 * 10_000


def test_the_probe_times_the_rounding_and_extrapolates() -> None:
    law = timed_law(Quantizer(parse("int4 g128")), 256, 1e9, 1e-11)
    assert law is not None
    assert law.c == law.d == 0 or law.d >= 0
    assert law.seconds((1000, 256)) > law.seconds((10, 256)) > 0
    assert SolveLaw(1.0, 2.0, 3.0, 4.0).seconds((5, 2)) == 2 + 24 + 5 * (4 + 16)


def test_time_without_a_probe_depends_on_the_job_alone(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tiny_llama(1))
    job = Job(folder, build_recipe("gptq", (), "int4 g16"), BATCHES)
    first, second = plan(job), plan(job)
    assert first == second
    assert "no probe" in first.time_basis
    probed = plan(job, probe=True)
    assert "a probe" in probed.time_basis
    assert probed.peak_memory_bytes == first.peak_memory_bytes
