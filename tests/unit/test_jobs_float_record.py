"""One pass of the float model serves all recipes of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitwright.jobs import Job
from bitwright.jobs.engine import Engine
from bitwright.jobs.evaluate import compare
from bitwright.jobs.float_record import FloatRecord, gather_float
from bitwright.jobs.request import Request, build_recipe
from bitwright.jobs.run import run
from bitwright.jobs.runner import Runner
from tests.unit.jobs_toys import tiny_llama, token_ids

BATCHES = [{"input_ids": token_ids()[:2]}, {"input_ids": token_ids()[2:]}]


def _job(name: str) -> Job:
    weights = "lut4 channel" if name == "squeezellm" else "int4 g16 asym"
    return Job(tiny_llama(), build_recipe(name, (), weights), BATCHES)


def _coded(job: Job, record: FloatRecord | None) -> dict[str, Tensor]:
    return {path: q.dequantize() for path, q in run(job, record=record).coded.items()}


@pytest.mark.parametrize("spilled", [False, True])
def test_recipes_give_the_same_codes_with_and_without_the_record(spilled: bool, tmp_path: Path) -> None:
    names = ("gptaq", "squeezellm")
    options = {"window_bytes": 1, "spill": tmp_path} if spilled else {}
    record = gather_float([_job("awq"), *map(_job, names)], **options)
    assert record is not None
    assert bool(list(tmp_path.iterdir())) is spilled
    for name in names:
        alone, shared = _coded(_job(name), None), _coded(_job(name), record)
        assert alone.keys() == shared.keys()
        for path, w in alone.items():
            assert torch.equal(shared[path], w), (name, path)
    record.clear()
    assert not list(tmp_path.iterdir())


def test_smoothing_agrees_up_to_the_rounding_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    record = gather_float([_job("awq"), _job("smoothquant")])
    alone = _coded(_job("smoothquant"), None)
    swept: list[str] = []
    sweep = Engine.sweep

    def spy(self: Engine, unit, requests, stream, **options):  # type: ignore[no-untyped-def]
        count = len(ran)
        found = sweep(self, unit, requests, stream, **options)
        if len(ran) > count:
            swept.append(stream)
        return found

    ran: list[int] = []
    until_stopped = Runner.until_stopped
    monkeypatch.setattr(Runner, "until_stopped", lambda self, *a: ran.append(1) or until_stopped(self, *a))
    monkeypatch.setattr(Engine, "sweep", spy)
    shared = _coded(_job("smoothquant"), record)
    for path, w in alone.items():
        error = float((shared[path] - w).norm() / w.norm())
        assert error < 0.02, path
    assert swept.count("float") == 0, "all that it reads of the float model is in the record"


def test_nothing_is_gathered_for_recipes_that_read_nothing_or_rotate() -> None:
    assert gather_float([_job("rtn"), _job("gptq")]) is None
    assert gather_float([_job("awq"), _job("quarot")]) is None


def test_compare_runs_the_float_model_once_for_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitwright.jobs.evaluate as evaluate_module

    records: list[FloatRecord | None] = []

    def spy(*args: object) -> FloatRecord | None:
        records.append(gather_float(*args))  # type: ignore[arg-type]
        return records[-1]

    monkeypatch.setattr(evaluate_module, "gather_float", spy)
    request = Request("zoo", sequences=1, length=16)
    rows = compare(request, ["smoothquant"], ["int8 channel", "int4 channel"], count=1)["rows"]
    assert [row["format"] for row in rows] == ["", "int8 channel", "int4 channel"]
    assert len(records) == 1
    assert records[0] is not None
