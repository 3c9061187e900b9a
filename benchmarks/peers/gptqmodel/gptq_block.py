"""Time GPTQModel's GPTQ class on one block of a real size: int4, groups of 128, its defaults otherwise.

GPTQModel refuses to start a whole quantization on a CPU, so its inner class is called directly: this file runs the
block (`rest`), hands every layer's input to the class (`hessian`; layers with the same input share the sums through the
class's own `adopt_hessian_from`) and lets it quantize all seven layers (`solve`). The second pass through the quantized
block is counted in `rest` too, as the other tools do one. One run is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block import read_block, write_block
from gptqmodel.quantization.config import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ

SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
SPENT = {"hessian": 0.0, "solve": 0.0}


@contextmanager
def counted(part: str) -> Iterator[None]:
    """Add the time of the block to a part's sum."""
    start = time.perf_counter()
    yield
    SPENT[part] += time.perf_counter() - start


@torch.inference_mode()
def quantize_block(model: torch.nn.Module, rows: torch.Tensor) -> None:
    """Collect the Hessians of the block's layers, quantize them, and run the block once more."""
    layers = {name.split(".")[-1]: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    del layers["lm_head"]
    config = QuantizeConfig(bits=4, group_size=128)
    tasks = {name: GPTQ(layer, config) for name, layer in layers.items()}
    for task in tasks.values():
        task.quantizer.configure(perchannel=True)

    def watch(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            with counted("hessian"):
                tasks[name].add_batch(inputs[0], output)

        return hook

    hooks = [layers[name].register_forward_hook(watch(name)) for name in layers if name not in SAME_INPUT]
    for row in rows:
        model.model(row[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    with counted("solve"):
        for follower, leader in SAME_INPUT.items():
            tasks[follower].adopt_hessian_from(tasks[leader])
        for name, task in tasks.items():
            layers[name].weight.data = task.quantize()[0].to(torch.float32)
            task.free()
    for row in rows:
        model.model(row[None], use_cache=False)


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write_block(options.work)
    model, rows = read_block(options.work)
    load, processor, start = os.getloadavg()[0], time.process_time(), time.perf_counter()
    quantize_block(model, rows)
    total = time.perf_counter() - start
    report = {
        "peer": "gptqmodel",
        "version": version("gptqmodel"),
        "method": "gptq int4 g128 sym",
        "seconds": round(total, 2),
        **{part: round(seconds, 2) for part, seconds in SPENT.items()},
        "rest": round(total - sum(SPENT.values()), 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "threads": options.threads,
        "load_average": round(load, 2),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
