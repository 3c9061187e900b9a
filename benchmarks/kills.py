"""Kill a job again and again and compare what it writes in the end: ``python -m benchmarks.kills --kills 1000``.

Protocol: a random Llama of two layers (hidden 32) on the disk, `gptq int4 g16 asym` with verification, one thread,
forked children; the drawing of the report's pictures is left out. Every second job is killed before a chosen step (a
tensor's write, a sync, rename, removal or journal line; every fourth of them inside a journal line), the others after a
random time. A job is killed up to three times in a row, then runs to its end; its folder must be equal, byte for byte,
to that of a job that was never interrupted. Steps are taken in turn, so that every one is a point of a kill.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import jinja2  # noqa: F401  (imported before the forks)
import torch

from bitwright.jobs import Job, page, run
from bitwright.jobs.request import build_recipe
from tests.fault.killing import killed_after, killed_at, no_picture, steps_of
from tests.unit.jobs_toys import digests, in_child, save_model, tiny_llama, token_ids

RESULT = Path(__file__).parent / "results" / "kills.json"
logger = logging.getLogger("kills")


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    by_step: Counter[str] = field(default_factory=Counter)
    at_a_time: int = 0
    torn: int = 0
    jobs: int = 0
    equal: int = 0
    resumed_jobs: int = 0
    resumed_units: int = 0
    wrong: list[str] = field(default_factory=list)


def one_job(
    model: Path, place: Path, names: list[str], seconds: float, start: int, tally: Tally, random: Random
) -> None:
    """Kill one job up to three times, finish it and compare."""
    job, told = _job(model, place / "killed"), []
    number = tally.jobs
    for again in range(1 + number % 3):
        at_step = number % 2 == 0
        # A resumed job has fewer steps left than the first run.
        step = start % len(names) if again == 0 else random.randrange(len(names))
        torn = at_step and number % 8 == 0 and again == 0
        if torn:
            step = names.index("journal")
        status = killed_at(job, step, torn) if at_step else killed_after(job, random.uniform(0, seconds))
        told.append(f"{names[step]} {step}" if at_step else "time")
        if status == 0:
            break
        if status != -signal.SIGKILL:
            tally.wrong.append(f"job {number}: status {status} after {told}")
            break
        tally.kills += 1
        tally.torn += torn
        if at_step:
            tally.by_step[names[step]] += 1
        else:
            tally.at_a_time += 1
        if (place / "killed").exists():  # killed behind the final rename
            break
    kept = place / "resumed"

    def finish() -> None:
        kept.write_text(str(run(job).resumed), encoding="utf-8")

    if not (place / "killed").exists():
        if in_child(finish) != 0:
            tally.wrong.append(f"job {number}: cannot be resumed after {told}")
        else:
            units = int(kept.read_text(encoding="utf-8"))
            tally.resumed_jobs += units > 0
            tally.resumed_units += units
    same = (place / "killed").is_dir() and digests(place / "killed") == digests(place / "whole")
    tally.jobs, tally.equal = tally.jobs + 1, tally.equal + same
    if not same:
        tally.wrong.append(f"job {number}: other bytes after {told}")
    for left in place.glob("killed*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _job(model: Path, out: Path) -> Job:
    return Job(model, build_recipe("gptq", (), "int4 g16 asym"), [{"input_ids": token_ids()}], out=out)


def record(tally: Tally, names: list[str], whole: float, started: float, asked: int) -> dict[str, object]:
    """Write what happened so far and return it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    content = {
        "commit": commit.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
        "protocol": " ".join(" ".join(__doc__.split("Protocol: ")[1:]).split()), "asked": asked,
        "stopped_by_time": tally.kills < asked, "kills": tally.kills, "at_steps": dict(tally.by_step),
        "at_a_random_time": tally.at_a_time, "inside_a_journal_line": tally.torn, "steps_of_a_job": len(names),
        "jobs": tally.jobs, "jobs_resumed_with_finished_units": tally.resumed_jobs,
        "units_not_made_again": tally.resumed_units, "jobs_with_equal_bytes": tally.equal, "wrong": tally.wrong,
        "seconds": round(time.perf_counter() - started, 1), "seconds_of_an_uninterrupted_job": round(whole, 2),
    }  # fmt: skip
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long, and say so in the result")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    page._figure = no_picture  # a benchmark of its own process
    random, tally, started = Random(0), Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bitwright-kills-") as folder:
        place = Path(folder)
        model = save_model(place / "model", tiny_llama())
        names = steps_of(_job(model, place / "whole"), place / "steps")
        before = time.perf_counter()
        steps_of(_job(model, place / "timed"), place / "steps")
        whole = time.perf_counter() - before
        while tally.kills < options.kills and time.perf_counter() - started < options.seconds:
            # Jobs that are killed at steps are every second one; an odd stride meets every step.
            one_job(model, place, names, whole, tally.jobs // 2 * 7, tally, random)
            if tally.jobs % 20 == 0:
                logger.info("%d kills, %d jobs, %d equal", tally.kills, tally.jobs, tally.equal)
                record(tally, names, whole, started, options.kills)
    content = record(tally, names, whole, started, options.kills)
    logger.info("%s", json.dumps(content))
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
