"""What every side of the comparison shares: the token file, the model, and the form of a result.

Each tool runs in its own environment, so this file needs torch, transformers and safetensors only and knows nothing
of Bitwright. Two files make one result in the work directory:

    NAME.safetensors   the decoder's linear weights after quantization, as fp32 values, under the model's own names,
                       or, from a tool whose model is not the original with other weights, the evaluated answers
    NAME.json          who made them, how, and how long the quantization alone took
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODEL, TEXT = "lm-stories260k", "text-tinystories"
SEQUENCES, LENGTH, STORIES = 128, 512, 200
WIDTHS = (4, 3, 2)
CALIBRATION, EVALUATION = "calibration.safetensors", "evaluation.safetensors"
ANSWERS = "log_probabilities"


@dataclass
class Result:
    """One quantized model: its maker, its setting, and the wall and processor seconds of the quantization alone."""

    peer: str
    version: str
    method: str
    bits: int
    seconds: float
    threads: int
    load_average: float
    settings: dict[str, object] = field(default_factory=dict)
    processor_seconds: float | None = None

    @property
    def name(self) -> str:
        """The stem of the two files."""
        return f"{self.peer}-{self.method}-w{self.bits}".replace(" ", "_")


@dataclass
class Clock:
    """Wall and processor seconds spent inside `timed`, and the machine's load when it began."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    load_average: float = 0.0


def measured(
    peer: str,
    version: str,
    method: str,
    bits: int,
    threads: int,
    clock: Clock,
    settings: dict[str, object] | None = None,
) -> Result:
    """A result with the clock's readings in it."""
    times = {"seconds": clock.seconds, "processor_seconds": clock.processor_seconds, "load_average": clock.load_average}
    return Result(peer, version, method, bits, threads=threads, settings=settings or {}, **times)


@contextmanager
def timed() -> Iterator[Clock]:
    """Measure the time of a block and note how busy the machine was at its start.

    On a busy machine the processor seconds of one thread are the steadier measure; child processes are counted in.
    """
    clock = Clock(load_average=round(os.getloadavg()[0], 2))
    before, start = sum(os.times()[:4]), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - start
    clock.processor_seconds = sum(os.times()[:4]) - before


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
    return load_file(work / CALIBRATION)["ids"]


def evaluation_tokens(work: Path) -> list[torch.Tensor]:
    """The stories' token ids, each [1, length] and beginning with BOS."""
    stored = load_file(work / EVALUATION)
    return [row[keep.bool()][None] for row, keep in zip(stored["ids"], stored["mask"], strict=True)]


@torch.inference_mode()
def answers(model: torch.nn.Module, stories: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The log-probabilities [tokens, vocabulary] of every token after BOS, story by story."""
    return [torch.log_softmax(model(story, use_cache=False).logits[0, :-1].float(), dim=-1) for story in stories]


def decoder_linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Every linear layer inside the decoder blocks by its full name (never the head)."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".layers." in name
    }


def save(work: Path, result: Result, tensors: dict[str, torch.Tensor]) -> None:
    """Write the two files of one result; `tensors` are the weights or, alone under ANSWERS, the answers."""
    plain = {name: tensor.detach().to(torch.float32).contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, work / f"{result.name}.safetensors")
    (work / f"{result.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    print(f"{result.name}: {result.seconds:.2f} s, load {result.load_average}", flush=True)


def results(work: Path) -> list[tuple[Result, dict[str, torch.Tensor]]]:
    """Every result in the work directory, by name."""
    found = []
    for path in sorted(work.glob("*-w[0-9].json")):
        found.append((Result(**json.loads(path.read_text())), load_file(path.with_suffix(".safetensors"))))
    return found
