"""Time the GPTQ solve of one layer by a tool's own functions: int4, groups of 128, symmetric, natural order.

Run by the tool's interpreter; `benchmarks/native_solvers.py` starts it. The file holds `w[out, in]` and its Hessian
`h[in, in]`; for every line on standard input one solve is timed and a line of JSON is printed: `seconds` of all of it,
`factor` of what the tool makes of the Hessian before its sweep. Copies are made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

GROUP = 128
Solve = Callable[[], Any]


class Clock:
    """Seconds inside of a function that it was put around."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self.spent = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the clock running inside."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = function(*arguments, **named)
            self.spent += time.perf_counter() - start
            return found

        return timed


def llm_compressor(w: torch.Tensor, h: torch.Tensor, clock: Clock) -> Solve:
    """`quantize_weight` with absmax scales."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq import gptq_quantize

    gptq_quantize.factorize_hessian = clock.around(gptq_quantize.factorize_hessian)
    arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=True)
    scale = w.view(len(w), -1, GROUP).abs().amax(-1) / 7.5
    weights, hessians = w[None].clone(), h[None].clone()
    zero = torch.zeros_like(scale, dtype=torch.int8)
    return lambda: gptq_quantize.quantize_weight(weights, hessians, scale[None], zero[None], None, arguments)


def gptqmodel(w: torch.Tensor, h: torch.Tensor, clock: Clock) -> Solve:
    """Its class `GPTQ`, given the Hessian."""
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = w.clone()
    task = GPTQ(layer, QuantizeConfig(bits=4, group_size=GROUP, desc_act=False, act_group_aware=False))
    task.quantizer.configure(perchannel=True)
    task.H, task.nsamples = h.clone(), 4096
    task.finalize_hessian = lambda target_device=None: task.H
    task.hessian_inverse = clock.around(task.hessian_inverse)
    return task.quantize


TOOLS = {"llm_compressor": (llm_compressor, "llmcompressor"), "gptqmodel": (gptqmodel, "gptqmodel")}


@torch.inference_mode()
def main() -> None:
    """Answer lines with times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=sorted(TOOLS), required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tensors = load_file(options.file)
    prepare, package = TOOLS[options.tool]
    prepare(tensors["w"][:, :GROUP].clone(), tensors["h"][:GROUP, :GROUP].clone(), Clock())()  # imports and warms up
    print(json.dumps({"ready": options.tool, "version": version(package)}), flush=True)
    for _ in sys.stdin:
        clock = Clock()
        solve = prepare(tensors["w"], tensors["h"], clock)
        start = time.perf_counter()
        solve()
        print(json.dumps({"seconds": time.perf_counter() - start, "factor": clock.spent}), flush=True)


if __name__ == "__main__":
    main()
