"""Do the whole comparison: make the environments that are missing, write the tokens, run every tool, write the table.

    python benchmarks/peers/measure.py --assets DIR --work DIR --envs DIR

Each tool gets a virtual environment of its own under `--envs`, with torch installed first so that the index's CPU build
is kept. Nothing but token ids, weights and a few settings passes between them, as files in `--work`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ("rtn", "hqq", "llm_compressor", "auto_round")


def environment(folder: Path, tool: str) -> Path:
    """The Python of the tool's environment, made when it is missing."""
    python = folder / tool / "bin" / "python"
    if not python.exists():
        requirements = HERE / tool / "requirements.txt"
        subprocess.run([sys.executable, "-m", "venv", folder / tool], check=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, requirements.read_text().split()[0]], check=True)
        subprocess.run([*install, "-r", requirements], check=True)
    return python


def main() -> None:
    """Run the parts in turn, one at a time, so that they do not disturb each other's times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder with lm-stories260k and text-tinystories")
    parser.add_argument("--work", type=Path, required=True, help="folder for the exchanged files")
    parser.add_argument("--envs", type=Path, required=True, help="folder for the virtual environments")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    shared = ["--assets", options.assets, "--work", options.work, "--threads", str(options.threads)]
    base = environment(options.envs, "rtn")
    subprocess.run([base, HERE / "prepare.py", *shared], check=True)
    for tool in options.tools:
        subprocess.run([environment(options.envs, tool), HERE / tool / "run.py", *shared], check=True)
    subprocess.run([base, HERE / "compare.py", *shared], check=True)


if __name__ == "__main__":
    main()
