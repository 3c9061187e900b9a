"""Options that mean the same in every command, so that they look and behave the same.

Use them as annotations: ``def command(model: FloatModel, json: Json = False, seed: Seed = 0) -> None``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.errors import InputError

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on standard output, all else on standard error.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random stream.", min=0)]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; torch's own choice if not given.", min=1)]
NoNative = Annotated[bool, typer.Option("--no-native", help="Run the model's modules, not the compiled step.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Skip reading the result back from disk and comparing it.")]
Exact = Annotated[
    bool, typer.Option("--exact", help="Multiply activations as they are, not rounded to 8 bits: slower.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Treat every fallback as an error.")]
Cluster = Annotated[
    str, typer.Option("--cluster", help="Run tasks on Ray: `local`, or the HOST:PORT of a cluster; --threads for each.")
]
Engine = Annotated[
    str, typer.Option("--for", help="Engine that has to serve it: vllm, llama.cpp, transformers or onnxruntime.")
]
Parallel = Annotated[int, typer.Option("--parallel", help="Devices that the engine cuts every layer for, 1 to 8.")]
RuleFile = Annotated[
    Path | None,
    typer.Option("--rules", help='Rule file (TOML or JSON lines like "layers.*" = "block"); overrides discovery.'),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the result; a name is made up if not given.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value: a parameter, or a slot from another recipe.")
]
Data = Annotated[str, typer.Option("--data", help="Calibration text, jsonl, token ids, or `zoo`.")]
Sequences = Annotated[
    int, typer.Option("--sequences", help="Calibration sequences (images); the recipe's own if 0.", min=0)
]
Length = Annotated[int, typer.Option("--length", help="Tokens per sequence; the recipe's own if 0.", min=0)]
FloatModel = Annotated[str, typer.Argument(help="Folder of a float model, or `zoo`, `zoo:digits`.")]
OneRecipe = Annotated[str, typer.Option("--recipe", "-r", help="Recipe; `bitwright recipes` lists them.")]
Weights = Annotated[str, typer.Option("--weights", "-w", help="Weight format, e.g. 'int4 g128 asym'.")]
Assets = Annotated[
    Path | None,
    typer.Option("--assets", help="Folder of real models and data to measure on; what it lacks is skipped."),
]


def use_threads(threads: int | None) -> int:
    """Set how many threads torch uses in this process; return the number in use.

    Raises:
        InputError: if ``threads`` is not positive.
    """
    import torch

    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads} is not positive; give 1 or more")
        torch.set_num_threads(threads)
    return torch.get_num_threads()
