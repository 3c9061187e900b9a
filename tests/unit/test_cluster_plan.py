"""The simulated cluster: what more machines change, and what they do not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bitwright.cli.main import run as command_line
from bitwright.errors import InputError
from bitwright.jobs import Job
from bitwright.jobs.cluster_plan import ClusterPlan, Nodes, Rates, parse_nodes, plan_cluster, simulate
from bitwright.jobs.opening import open_job
from bitwright.jobs.request import build_recipe
from tests.unit.jobs_toys import save_ids, save_model, tiny_llama, token_ids

RATES = Rates(products=1e6, solve=1e6, handling=1e9, merging=1e12, task=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "toy", tiny_llama())


def _plan(checkpoint: Path, count: int, recipe: str = "gptq", network: float = 1e15, memory: int = 0) -> ClusterPlan:
    job = Job(checkpoint, build_recipe(recipe, (), ""), [{"input_ids": token_ids()}] * 4)
    return simulate(job, open_job(job), Nodes(count, memory, 1, network), RATES, 1)


def test_text_of_nodes() -> None:
    assert parse_nodes("nodes=8,mem=512GB,cpus=64,net=25Gb") == Nodes(8, 512 * 10**9, 64, 25e9 / 8)
    assert parse_nodes("nodes=2").memory == 0
    for wrong in ("node=8", "nodes=0", "nodes=x", "net=fast", "8"):
        with pytest.raises(InputError, match="nodes"):
            parse_nodes(wrong)


def test_one_ideal_machine_is_one_process_without_replay(checkpoint: Path) -> None:
    """A recipe that makes no sweep twice takes the same time; GPTQ runs the front of its blocks again."""
    awq = _plan(checkpoint, 1, "awq")
    assert awq.seconds == pytest.approx(awq.seconds_alone, rel=1e-6)
    gptq = _plan(checkpoint, 1)
    assert gptq.seconds_alone < gptq.seconds < 3 * gptq.seconds_alone


def test_more_machines_shorten_what_is_spread_and_nothing_else(checkpoint: Path) -> None:
    plans = [_plan(checkpoint, count) for count in (1, 2, 4, 100)]
    seconds = [p.seconds for p in plans]
    assert seconds[0] > seconds[1] > seconds[2] > 0.99 * seconds[3], "more machines than batches do not help"
    assert seconds[1] < 0.75 * seconds[0]
    assert len({p.serial_seconds for p in plans}) == len({p.seconds_alone for p in plans}) == 1
    assert seconds[-1] > plans[-1].serial_seconds


def test_a_slow_network_costs_and_is_counted(checkpoint: Path) -> None:
    fast, slow = (_plan(checkpoint, 2, network=speed) for speed in (1e15, 1e6))
    assert slow.seconds > fast.seconds
    assert slow.sent_bytes == fast.sent_bytes > 0


def test_memory_of_the_machines_is_judged(checkpoint: Path) -> None:
    roomy = _plan(checkpoint, 2, memory=10**12)
    assert roomy.fits
    assert roomy.node_bytes > 0
    assert not _plan(checkpoint, 2, memory=10**3).fits
    assert dataclasses.replace(roomy, fits=False) == _plan(checkpoint, 2, memory=10**3)


def test_more_threads_than_a_machine_has_are_refused(checkpoint: Path) -> None:
    job = Job(checkpoint, build_recipe("rtn", (), ""))
    with pytest.raises(InputError, match="lower --threads"):
        simulate(job, open_job(job), Nodes(2, 0, 1, 1e9), RATES, 2)


def test_command_shows_the_simulation(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = save_ids(tmp_path / "ids.safetensors", 4, 64)
    nodes = f"nodes=3,mem=1GB,cpus={torch.get_num_threads()}"
    assert (
        command_line(["plan", str(checkpoint), "--data", str(ids), "--sequences", "4", "--cluster", nodes, "--json"])
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["cluster"]["nodes"] == shown["cluster"]["tasks_at_a_time"] == 3
    assert shown["cluster"]["fits"]
    assert plan_cluster(Job(checkpoint, build_recipe("rtn", (), "")), parse_nodes(nodes), RATES).sent_bytes > 0
