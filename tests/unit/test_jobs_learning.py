"""Learning inside a job: what it spills to disk goes with the unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright.jobs import Job
from bitwright.jobs.engine import Engine
from bitwright.jobs.opening import open_job
from bitwright.jobs.request import build_recipe
from tests.unit.jobs_toys import tiny_llama, token_ids

BATCHES = [{"input_ids": token_ids()[:2]}, {"input_ids": token_ids()[2:]}]


@pytest.mark.parametrize("name", ["brecq", "adaround"])
def test_targets_and_inputs_on_disk_are_removed_after_use(name: str, tmp_path: Path) -> None:
    recipe = build_recipe(name, (("steps", "2"),) + ((("loss", "mse"),) if name == "brecq" else ()), "int4 channel")
    opened = open_job(Job(tiny_llama(), recipe, BATCHES))
    engine = Engine(
        recipe, opened.model, opened.structure, opened.batches, twin=opened.twin, spill=tmp_path, window_bytes=0
    )
    kept = []
    for unit in engine.units:
        engine.work(unit)
        kept.append(len(list(tmp_path.iterdir())))
    # Between two units only the two streams lie on disk, one file per batch each.
    assert max(kept) == 2 * len(BATCHES), kept
