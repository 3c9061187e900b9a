"""Bitwright's side: its command line quantizes, its loader reads the folder, and the answers go to the evaluator.

Runs in Bitwright's own environment (with transformers). The answers are passed, not the weights, since a recipe may
change the model around them (rotations, corrections). `seconds` is what the command reports for the job.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from exchange import ANSWERS, CALIBRATION, MODEL, answers, arguments, evaluation_tokens, measured, save, timed

# Name of the row: recipe and settings. `brecq-offset` does what AutoRound does, in our slots: rounding offsets learned
# on the decoder's blocks with the squared error, eight sequences a step. The last one quantizes only the layers that
# AutoRound as it is quantizes in this model (172 is no multiple of 32), beside `signround-200-as-is`.
METHODS = {
    "rtn": ("rtn", ()),
    "gptq": ("gptq", ()),
    "gptaq": ("gptaq", ()),
    "brecq-offset": ("brecq", ("rounding=offset", "loss=mse", "batch=8", "select=linear")),
    "brecq-offset-attention": ("brecq", ("rounding=offset", "loss=mse", "batch=8", "select=*.self_attn.*")),
}


def run_bitwright(model: Path, method: str, weights: str, data: Path, out: Path, threads: int) -> dict[str, object]:
    """Quantize `model` into `out` by the command line and return the command's own report."""
    recipe, settings = METHODS[method]
    program = Path(sys.executable).parent / "bitwright"
    command = [str(program), "quantize", str(model), "--recipe", recipe, "--weights", weights]
    for setting in settings:
        command += ["--set", setting]
    command += ["--data", str(data), "--sequences", "128", "--length", "512", "--out", str(out)]
    command += ["--threads", str(threads), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """Every recipe at every width."""
    options = arguments(
        __doc__ or "",
        methods={"nargs": "+", "default": list(METHODS), "choices": list(METHODS)},
        weights={"default": "int{bits} channel asym", "help": "the format, with {bits} for the width"},
    )
    from bitwright.runtime.load import load

    stories = evaluation_tokens(options.work)
    for method in options.methods:
        for bits in options.bits:
            out = options.work / f"bitwright-{method}-w{bits}"
            for old in (out, out.with_name(f"{out.name}.partial")):  # of an earlier measurement
                shutil.rmtree(old, ignore_errors=True)
            weights = options.weights.format(bits=bits)
            with timed() as clock:
                report = run_bitwright(
                    options.assets / MODEL, method, weights, options.work / CALIBRATION, out, options.threads
                )
            found = torch.cat(answers(load(out, cache_weights=True), stories))
            settings = {"weights": weights, "set": METHODS[method][1], "bits_per_weight": report["bits_per_weight"]}
            settings["command_seconds"] = clock.seconds  # with the interpreter's start, loading, saving and verifying
            clock.seconds = float(report["seconds"])
            result = measured("bitwright", version("bitwright"), method, bits, options.threads, clock, settings)
            save(options.work, result, {ANSWERS: found})


if __name__ == "__main__":
    main()
