"""What every side of the comparison shares: the token file, the model, and the form of a result.

Each tool runs in its own environment, so this file needs torch, transformers and safetensors only and knows nothing
of Bitwright. Two files make one result in the work directory:

    NAME.safetensors   the decoder's linear weights after quantization, as fp32 values, under the model's own names
    NAME.json          who made them, how, and how long the quantization alone took
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODEL, TEXT = "lm-stories260k", "text-tinystories"
SEQUENCES, LENGTH, STORIES = 128, 512, 200
WIDTHS = (4, 3, 2)
TOKENS = "tokens.safetensors"


@dataclass
class Result:
    """One quantized model: its maker, its setting, and the seconds of the quantization alone."""

    peer: str
    version: str
    method: str
    bits: int
    seconds: float
    threads: int
    load_average: float
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stem of the two files."""
        return f"{self.peer}-{self.method}-w{self.bits}".replace(" ", "_")


@dataclass
class Clock:
    """Seconds spent inside `timed`, and the machine's load when it began."""

    seconds: float = 0.0
    load_average: float = 0.0


@contextmanager
def timed() -> Iterator[Clock]:
    """Measure the wall time of a block and note how busy the machine was at its start."""
    clock = Clock(load_average=round(os.getloadavg()[0], 2))
    start = time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - start


def arguments(description: str, **extra: dict[str, object]) -> argparse.Namespace:
    """The options all runners take; `extra` maps the name of a further option to its `add_argument` keywords."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--assets", type=Path, required=True, help=f"folder that holds {MODEL} and {TEXT}")
    parser.add_argument("--work", type=Path, required=True, help="folder for the exchanged files")
    parser.add_argument("--bits", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--threads", type=int, default=2)
    for name, keywords in extra.items():
        parser.add_argument(f"--{name}", **keywords)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def load_model(assets: Path) -> torch.nn.Module:
    """The float model in fp32, its head still tied to the embedding."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(assets / MODEL, dtype=torch.float32).eval()


def calibration_tokens(work: Path) -> torch.Tensor:
    """Token ids [SEQUENCES, LENGTH]; every row begins with BOS."""
    return load_file(work / TOKENS)["calibration"]


def evaluation_tokens(work: Path) -> list[torch.Tensor]:
    """The stories' token ids, each [1, length] and beginning with BOS."""
    stored = load_file(work / TOKENS)
    return [row[None] for row in torch.split(stored["evaluation"], stored["lengths"].tolist())]


def decoder_linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Every linear layer inside the decoder blocks by its full name (never the head)."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".layers." in name
    }


def save(work: Path, result: Result, weights: dict[str, torch.Tensor]) -> None:
    """Write the two files of one result."""
    plain = {name: weight.detach().to(torch.float32).contiguous().clone() for name, weight in weights.items()}
    save_file(plain, work / f"{result.name}.safetensors")
    (work / f"{result.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    print(f"{result.name}: {result.seconds:.2f} s, load {result.load_average}", flush=True)


def results(work: Path) -> list[tuple[Result, dict[str, torch.Tensor]]]:
    """Every result in the work directory, by name."""
    found = []
    for path in sorted(work.glob("*-w[0-9].json")):
        found.append((Result(**json.loads(path.read_text())), load_file(path.with_suffix(".safetensors"))))
    return found
