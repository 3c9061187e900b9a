"""Fuzz every reader of files: ``python -m benchmarks.fuzz.run --cases 500`` writes ``results/fuzz.json``.

Protocol: per target, ``cases`` random changes (seeds 0, 1, ...) of a valid file of a random Llama of two layers, each
read in a forked child that may add 1 GiB of address space and take two minutes for all cases of the target. A case must
be accepted or refused by an InputError; anything else is a finding and is printed with its seed.

``--atheris SECONDS`` runs the coverage-guided fuzzer (``pip install atheris``) on the readers of headers, configs, GGUF
files, formats, rules and requests instead, and adds its counts to the results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import FunctionType

import torch

from bitwright.cli.main import run as command
from tests.fault.fuzzing import Target, targets
from tests.fault.hostile import bounded
from tests.unit.jobs_toys import save_model, tiny_llama

RESULT = Path(__file__).parents[1] / "results" / "fuzz.json"
logger = logging.getLogger("fuzz")


def prepared(place: Path) -> dict[str, Target]:
    """The targets, made of fresh models in ``place``."""
    model = save_model(place / "model", tiny_llama())
    words = ["--recipe", "rtn", "--weights", "int4 g16 asym", "--no-verify", "--out", str(place / "native")]
    if command(["quantize", str(model), *words]) != 0:
        raise SystemExit("the tiny model cannot be quantized")
    return dict(targets(place, model, place / "native"))


def fuzz(name: str, target: Target, cases: int, first: int, place: Path) -> dict[str, object]:
    """Run the cases of one target in a child; return its row."""
    folder, found = place / "work", place / "found.json"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(target.folder, folder)
    found.unlink(missing_ok=True)
    valid, started = target.valid(), time.perf_counter()

    def work() -> int:
        outcomes: Counter[str] = Counter()
        findings: list[dict[str, object]] = []
        for seed in range(first, first + cases):
            random = Random(seed)
            try:
                said = target.outcome(target.mutate(valid, random), folder)
            except Exception as error:
                trace = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(trace.filename).name}:{trace.lineno}"
                findings.append({"seed": seed, "error": f"{type(error).__name__}: {str(error)[:150]}", "at": where})
                continue
            outcomes["accepted" if said == "accepted" else "refused"] += 1
        found.write_text(json.dumps({**outcomes, "findings": findings}), encoding="utf-8")
        return 0

    status = bounded(work, 2**30, 120)
    row: dict[str, object] = {"target": name, "cases": cases, "seconds": round(time.perf_counter() - started, 1)}
    if status != 0:
        return {**row, "findings": [f"the child ended with {status}"]}
    return {**row, **json.loads(found.read_text(encoding="utf-8"))}


GUIDED = ("checkpoint, bytes", "index", "config", "gguf", "format", "rules", "request")


def guided(seconds: int, chosen: dict[str, Target], place: Path) -> dict[str, object]:
    """Let atheris look for inputs in a forked child, which it ends itself; return what it said of the run."""
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris is not installed; run: pip install atheris (the random cases need nothing)")
    said = place / "atheris.log"
    child = os.fork()
    if child == 0:
        status = 3
        try:
            with said.open("wb") as file:
                os.dup2(file.fileno(), 2)
            _search(seconds, chosen, place)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(encoding="utf-8", errors="replace")
    runs = re.search(r"Done (\d+) runs in (\d+) second", text) or re.search(r"number_of_executed_units: (\d+)()", text)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    if status != 0 or runs is None:
        return {"targets": list(GUIDED), "status": status, "finding": text[-3000:]}
    coverage, features, kept = map(int, covered[-1])
    return {
        "targets": list(GUIDED), "seconds": seconds, "runs": int(runs[1]), "coverage": coverage, "features": features,
        "inputs_kept": kept, "findings": 0,
    }  # fmt: skip


def _search(seconds: int, chosen: dict[str, Target], place: Path) -> None:
    """Run the search; the first byte of an input chooses the target. Only our own code is watched."""
    import atheris  # type: ignore[import-not-found]

    picked = [chosen[name] for name in GUIDED]
    folders = [Path(shutil.copytree(target.folder, place / f"guided-{i}")) for i, target in enumerate(picked)]

    def one(data: bytes) -> None:
        if data:
            picked[data[0] % len(picked)].outcome(data[1:], folders[data[0] % len(picked)])

    corpus = place / "corpus"
    corpus.mkdir()
    for i, target in enumerate(picked):
        (corpus / str(i)).write_bytes(bytes([i]) + target.valid())
    for name, module in list(sys.modules.items()):
        if name.startswith("bitwright"):
            for function in [f for f in vars(module).values() if isinstance(f, FunctionType)]:
                if function.__module__ == name:
                    atheris.instrument_func(function)
    settings = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-print_final_stats=1", "-timeout=60"]
    atheris.Setup([sys.argv[0], *settings, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets that begin so")
    parser.add_argument("--atheris", type=int, default=0, metavar="SECONDS")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bitwright-fuzz-") as folder:
        place = Path(folder)
        chosen = {name: t for name, t in prepared(place).items() if name.startswith(options.only)}
        if options.atheris:
            found = guided(options.atheris, chosen, place)
            logger.info("%s", json.dumps(found))
            content = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
            RESULT.write_text(json.dumps({**content, "guided": found}, indent=1) + "\n", encoding="utf-8")
            return 1 if "finding" in found else 0
        rows = []
        for name, target in chosen.items():
            rows.append(fuzz(name, target, options.cases, options.first_seed, place))
            logger.info("%s", json.dumps(rows[-1]))
    if not options.only:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        totals = {key: sum(int(str(row.get(key, 0))) for row in rows) for key in ("cases", "accepted", "refused")}
        content = {
            "commit": commit.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
            "protocol": " ".join(__doc__.split("\n\n")[1].split()), "seeds": [options.first_seed, options.cases],
            **totals, "findings": sum(len(row["findings"]) for row in rows),  # type: ignore[misc, arg-type]
            "seconds": round(sum(float(str(row["seconds"])) for row in rows), 1), "targets": rows,
        }  # fmt: skip
        if RESULT.exists() and "guided" in (before := json.loads(RESULT.read_text(encoding="utf-8"))):
            content["guided"] = before["guided"]
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["findings"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
