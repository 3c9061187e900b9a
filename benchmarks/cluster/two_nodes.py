"""One job in one process, on one and two nodes of a Ray cluster, and on two of which one is killed in the middle.

    python benchmarks/cluster/two_nodes.py --work /tmp/bench

The nodes are two raylets on this machine with one CPU each; the job runs with one thread per task. Writes a small
random Llama once, quantizes it in each way, compares all files of the results, and writes
``benchmarks/results/two_nodes.json``. The times of the one-process run, of an empty task and of a sent tensor give the
rates from which the simulation of ``bitwright plan --cluster`` predicts the other runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bitwright.jobs import Job, run, solving
from bitwright.jobs.cluster_plan import Nodes, Rates, simulate
from bitwright.jobs.engine import Engine
from bitwright.jobs.opening import open_job
from bitwright.jobs.request import build_recipe
from bitwright.jobs.workers import HERE, Workers, open_workers

HIDDEN, MLP, LAYERS, VOCABULARY = 512, 1024, 3, 256
BATCHES, SEQUENCES, LENGTH = 8, 4, 128
KILLED_IN = 2  # unit: the second block
PROTOCOL = (
    f"gptq int4 g128 asym of a random fp32 Llama, hidden {HIDDEN}, MLP {MLP}, {LAYERS} blocks, {BATCHES} batches of "
    f"{SEQUENCES} x {LENGTH} tokens, one thread per task; nodes are raylets of one machine with one CPU each"
)


def write_checkpoint(folder: Path) -> None:
    """A random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def batches() -> list[dict[str, torch.Tensor]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)} for _ in range(BATCHES)
    ]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of the tensors' and the config's files; the report holds times."""
    kept = [*folder.glob("*.safetensors*"), folder / "config.json"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(kept)}


@contextmanager
def nodes(count: int) -> Iterator[Any]:
    """A Ray cluster of ``count`` nodes on this machine, without usage statistics."""
    from ray._common.usage import usage_lib
    from ray.cluster_utils import Cluster

    usage_lib.set_usage_stats_enabled_via_env_var(False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def job(work: Path, out: Path | None = None, workers: Workers = HERE) -> Job:
    """The job that every run does."""
    recipe = build_recipe("gptq", (), "int4 g128 asym")
    return Job(work / "model", recipe, batches(), out=out, verify=False, workers=workers)


@contextmanager
def clocked(owner: Any, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add the seconds that a function takes to ``spent``."""
    original = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


def rates_alone(work: Path, seconds: float, spent: dict[str, float]) -> Rates:
    """What one process reached: counted operations over the seconds of sweeps, of solves and of the rest."""
    none = float("inf")
    opened = open_job(job(work))
    units = [Rates(1.0, none, none), Rates(none, 1.0, none), Rates(none, none, 1.0)]
    counts = [simulate(job(work), opened, Nodes(1, 0, 1, 1e9), rates, 1).seconds_alone for rates in units]
    rest = seconds - spent["sweep"] - spent["solve"]
    return Rates(counts[0] / spent["sweep"], counts[1] / spent["solve"], counts[2] / rest)


def nothing(x: Any) -> int:
    """A task that does nothing, but fetch what it is given."""
    return 0 if isinstance(x, int) else int(x.get().numel())


def cluster_costs(workers: Workers) -> tuple[float, float]:
    """Seconds of an empty task, and bytes per second of a tensor on its way to a task."""
    list(workers.map(nothing, range(4)))
    started = time.perf_counter()
    list(workers.map(nothing, range(40)))
    task = (time.perf_counter() - started) / 40
    best = float("inf")
    for number in range(3):
        x = torch.full((1 << 22,), float(number))
        started = time.perf_counter()
        list(workers.map(nothing, [workers.share(x)]))
        best = min(best, time.perf_counter() - started)
    return task, x.nbytes / best


def quantize(work: Path, name: str, workers: Workers, killed: Any = None) -> dict[str, Any]:
    """Run the job once; ``killed`` is called in the middle of the second block."""
    out = work / name
    shutil.rmtree(out, ignore_errors=True)
    fired: list[float] = []

    def progress(unit: str, done: int, total: int, share: float) -> None:
        if killed is not None and not fired and done == KILLED_IN and 0 < share < 1:
            fired.append(share)
            killed()

    started = time.perf_counter()
    run(job(work, out, workers), progress)
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {"run": name, "seconds": round(seconds, 2), "load": round(os.getloadavg()[0], 1)}
    if killed is not None:
        found["killed_at"] = f"unit {KILLED_IN}, {fired[0]:.0%} of its layers rounded"
    return found


def measure(work: Path, repeats: int) -> list[dict[str, Any]]:
    """All runs; a run on the same cluster warms its workers up before one is timed."""
    quantize(work, "warm", HERE)
    runs = []
    for _ in range(repeats):
        spent: dict[str, float] = {}
        with clocked(Engine, "sweep", spent), clocked(solving, "solve", spent):
            runs.append(quantize(work, "one process", HERE) | {k: round(v, 2) for k, v in spent.items()})
    rows = [min(runs, key=lambda r: r["seconds"])]
    rates = rates_alone(work, rows[0]["seconds"], rows[0])
    expected = digests(work / "one process")
    for count in (1, 2):
        with nodes(count) as cluster, open_workers(cluster.address, 1) as workers:
            quantize(work, "warm", workers)
            task, network = cluster_costs(workers)
            name = f"{count} node{'s' * (count > 1)}"
            row = min((quantize(work, name, workers) for _ in range(repeats)), key=lambda r: r["seconds"])
            shape, reached = Nodes(count, 0, 1, network), dataclasses.replace(rates, task=task)
            planned = simulate(job(work), open_job(job(work)), shape, reached, 1)
            row |= {"simulated_seconds": round(planned.seconds, 2), "task_seconds": round(task, 4)}
            row |= {"sent_bytes": planned.sent_bytes, "bytes_per_second": round(network)}
            rows.append(row | {"equal_bytes": digests(work / name) == expected})
    rows.append(measure_killed(work, expected))
    return rows


def measure_killed(work: Path, expected: dict[str, str]) -> dict[str, Any]:
    """Two nodes, of which one is killed (SIGKILL to its raylet and everything that it started)."""
    with nodes(2) as cluster, open_workers(cluster.address, 1) as workers:
        import ray

        quantize(work, "warm", workers)
        victim = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
        before = dict(getattr(workers, "done"))  # noqa: B009
        row = quantize(work, "2 nodes, one killed", workers, lambda: cluster.remove_node(victim, allow_graceful=False))
        after = getattr(workers, "done")  # noqa: B009
        row["tasks_per_node"] = sorted(after[node] - before.get(node, 0) for node in after)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and sum(bool(n["Alive"]) for n in ray.nodes()) > 1:
            time.sleep(1)
        alive = sum(bool(n["Alive"]) for n in ray.nodes())
        return row | {"nodes_at_the_end": alive, "equal_bytes": digests(work / row["run"]) == expected}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the results")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest run counts")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    if not (options.work / "model").exists():
        write_checkpoint(options.work / "model")
    rows = measure(options.work, options.repeats)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
    result = {
        "protocol": PROTOCOL,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "torch": str(torch.__version__),
        "rows": rows,
    }
    target = Path(__file__).parents[1] / "results" / "two_nodes.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
