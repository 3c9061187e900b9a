"""Time the GPTQ of several tools on one block of a real size, in alternation, and write the medians.

    python benchmarks/peers/time_block.py --work DIR --envs DIR --rounds 3

Every round runs each tool once, so that a change of the machine's load meets all of them. A tool is a script that
prints one line of JSON at its end; `--also NAME=PYTHON,SCRIPT` adds another one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent / "results" / "peers_block.json"
TOOLS = ("llm_compressor", "gptqmodel")
WALL = ("seconds", "hessian", "solve", "rest", "load_average")
TIMES = (*WALL, "processor", "hessian_processor", "solve_processor", "rest_processor")
PROTOCOL = "one Llama block, hidden 2048, MLP 8192, 32 heads / 8 kv, random fp32 weights, 32 x 512 ids, int4 g128 sym"


def run_once(python: Path, script: Path, work: Path, threads: int) -> dict[str, object]:
    """One run's report."""
    command = [python, script, "--work", work, "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def median(runs: list[dict[str, object]]) -> dict[str, object]:
    """The runs' common facts with the median of every time."""
    middle = {part: round(statistics.median(run[part] for run in runs), 2) for part in TIMES}
    return {**runs[0], **middle, "runs": [run["seconds"] for run in runs]}


def main() -> None:
    """Alternate, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=PYTHON,SCRIPT")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    scripts = {tool: (options.envs / tool / "bin" / "python", HERE / tool / "gptq_block.py") for tool in options.tools}
    for extra in options.also:
        name, _, rest = extra.partition("=")
        python, _, script = rest.partition(",")
        scripts[name] = (Path(python), Path(script))
    runs: dict[str, list[dict[str, object]]] = {name: [] for name in scripts}
    for _ in range(options.rounds):
        for name, (python, script) in scripts.items():
            runs[name].append(run_once(python, script, options.work, options.threads))
            print(json.dumps(runs[name][-1]), flush=True)
    stamp = {"date": datetime.date.today().isoformat(), "protocol": PROTOCOL}
    rows = [{**median(found), **stamp} for found in runs.values()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
