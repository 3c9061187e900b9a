"""Tasks give the same bits in this process and on a Ray cluster, also when machines are lost."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.claims.run import run_claims
from bitwright.errors import CheckError, InputError
from bitwright.jobs import Job, run
from bitwright.jobs.evaluate import compare
from bitwright.jobs.request import Request, build_recipe
from bitwright.jobs.sharding import sweep_shards
from bitwright.jobs.workers import HERE, Here, Noted, Workers, open_workers
from bitwright.statistics import AbsMax, ChannelMeans, CrossHessian, Hessian, Range, TokenCount
from bitwright.statistics.blocks import BlockHessian
from bitwright.statistics.hessian import _Products
from tests.unit.expert_toys import expert_model
from tests.unit.jobs_toys import digests, save_ids, save_model, tiny_llama, token_ids

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install 'bitwright[cluster]'"
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Workers]:
    """One Ray cluster on this machine for all tests of the file."""
    with open_workers("local", 1) as workers:
        yield workers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "toy", tiny_llama())


def _job(model: Any, out: Path | None, recipe: str, workers: Workers = HERE) -> Job:
    data = [{"input_ids": token_ids()}, {"input_ids": token_ids(2, 12)}]
    recipe_value = build_recipe(recipe, (), "int4 g16 asym" if recipe in ("rtn", "gptq", "awq") else "")
    return Job(model, recipe_value, data, out=out, verify=False, workers=workers)


def _double(x: int) -> int:
    return 2 * x


def _refuse(x: int) -> int:
    raise CheckError(f"{x} is refused")


def _die_once(marker: Path) -> int:
    """Kill the process of the task the first time it runs."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


def test_here_runs_one_task_when_its_result_is_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for x in (1, 2, 3):
            taken.append(x)
            yield x

    results = HERE.map(_double, items())
    assert next(results) == 2
    assert taken == [1]
    assert list(results) == [4, 6]
    value = object()
    assert HERE.share(value).get() is value


def test_no_cluster_is_this_process() -> None:
    with open_workers("", 4) as workers:
        assert workers is HERE


def test_noted_events_are_kept_and_never_raised() -> None:
    noted = Noted(strict=True)
    noted.record("kind", "where", "message")
    assert [e.kind for e in noted.entries] == ["kind"]


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'bitwright\[cluster\]'"), open_workers("local", 1):
        pass


@needs_ray
@pytest.mark.cluster
def test_ray_answers_in_order_raises_what_tasks_raise_and_starts_lost_ones_again(
    cluster: Workers, tmp_path: Path
) -> None:
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()
    assert list(cluster.map(_double, range(9))) == [2 * x for x in range(9)]
    with pytest.raises(CheckError, match="3 is refused"):
        list(cluster.map(_refuse, [3]))
    assert list(cluster.map(_die_once, [tmp_path / "died"])) == [7]
    assert (tmp_path / "died").exists()
    assert cluster.strangers() == ()


@needs_ray
@pytest.mark.cluster
@pytest.mark.parametrize("recipe", ["gptq", "awq", "squeezellm"])
def test_a_cluster_writes_the_bytes_of_one_process(
    cluster: Workers, checkpoint: Path, tmp_path: Path, recipe: str
) -> None:
    run(_job(checkpoint, tmp_path / "here", recipe))
    run(_job(checkpoint, tmp_path / "there", recipe, cluster))
    assert digests(tmp_path / "there") == digests(tmp_path / "here")


def _bits(value: Any) -> Any:
    """A statistic's result as bytes and plain values."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.numpy().tobytes()
    return {k: _bits(v) for k, v in vars(value).items()} if is_dataclass(value) else value


REQUESTS = [
    Hessian(), AbsMax(), ChannelMeans(), Range(), TokenCount(), BlockHessian(4), BlockHessian(0), CrossHessian()
]  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("wide", [False, True])
def test_statistics_that_spread_merge_to_the_same_bits(
    request_: Any, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One collector over all calls, and one per call merged in order; also where second moments are summed in fp32."""
    if wide:
        monkeypatch.setattr(_Products, "WIDE", 4)
    assert request_.spreads
    generator = torch.Generator().manual_seed(0)
    calls = [torch.randn(rows, 24, generator=generator) * 10**scale for scale, rows in enumerate((5, 40, 17, 1))]
    whole, merged = request_.open(24), None
    for x in calls:
        twin = x.cos() if request_.reads_twin else None
        whole.update(x, twin)
        one = request_.open(24)
        one.update(x, twin)
        if merged is None:
            merged = one
        else:
            merged.merge(one)
    assert merged is not None
    assert _bits(merged.result()) == _bits(whole.result())


class Apart(Here):
    """Runs tasks here after a trip through pickle, as a cluster does."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """One by one."""
        return (function(pickle.loads(pickle.dumps(item))) for item in items)


@pytest.mark.parametrize("recipe", ["gptq", "awq", "smoothquant"])
def test_batches_apart_give_the_bits_of_one_process(
    checkpoint: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = []

    def spy(*arguments: Any) -> Any:
        found = sweep_shards(*arguments)
        spread.append(found is not None)
        return found

    here = run(_job(checkpoint, None, recipe))
    monkeypatch.setattr("bitwright.jobs.engine.sweep_shards", spy)
    apart = run(_job(checkpoint, None, recipe, Apart(remote=True)))
    assert any(spread)
    assert here.coded.keys() == apart.coded.keys()
    for path, coded in here.coded.items():
        assert torch.equal(coded.dequantize(), apart.coded[path].dequantize()), path


@needs_ray
@pytest.mark.cluster
def test_a_cluster_rounds_experts_with_the_same_events(cluster: Workers) -> None:
    results = [run(_job(expert_model("Mixtral"), None, "gptq", workers)) for workers in (HERE, cluster)]
    assert results[0].events == results[1].events
    assert results[0].coded.keys() == results[1].coded.keys()
    for path, coded in results[0].coded.items():
        assert torch.equal(coded.dequantize(), results[1].coded[path].dequantize()), path


@needs_ray
@pytest.mark.cluster
def test_compared_rows_and_claims_are_those_of_one_process(cluster: Workers, checkpoint: Path, tmp_path: Path) -> None:
    request = Request(str(checkpoint), data=str(save_ids(tmp_path / "ids.safetensors")), sequences=2, length=16)
    on = str(save_ids(tmp_path / "on.safetensors"))
    tables = [compare(request, ["rtn", "gptq", "awq"], [], on, workers=w) for w in (HERE, cluster)]
    for table in tables:
        for row in table["rows"]:
            del row["seconds"]
    assert tables[0] == tables[1]
    claims = [next(iter(run_claims(["kv-int"], None, True, lambda text: None, w))) for w in (HERE, cluster)]
    assert claims[0].checks == claims[1].checks
    assert claims[0].verdict == "pass"


@needs_ray
def test_what_cannot_be_a_cluster_is_refused() -> None:
    with pytest.raises(InputError, match="HOST:PORT"), open_workers("ray://somewhere:10001", 1):
        pass
