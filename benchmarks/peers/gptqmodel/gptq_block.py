"""Time GPTQModel's GPTQ class on one block of a real size: int4, groups of 128, its defaults otherwise.

GPTQModel refuses to start a whole quantization on a CPU, so its inner class is called directly: this file runs the
block (`rest`), hands every layer's input to the class (`hessian`; layers with the same input share the sums through the
class's own `adopt_hessian_from`) and lets it quantize all seven layers (`solve`). A second pass through the quantized
block is counted in `rest` too, as other tools make one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block_clock import Parts, report
from gptqmodel.quantization.config import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ

SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
PARTS = Parts()


@torch.inference_mode()
def quantize(model: torch.nn.Module, rows: torch.Tensor) -> None:
    """Collect the Hessians of the block's layers, quantize them, and run the block once more."""
    block = model.model.layers[0]
    layers = {name.split(".")[-1]: layer for name, layer in block.named_modules() if isinstance(layer, torch.nn.Linear)}
    config = QuantizeConfig(bits=4, group_size=128)
    tasks = {name: GPTQ(layer, config) for name, layer in layers.items()}
    for task in tasks.values():
        task.quantizer.configure(perchannel=True)

    def watch(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            with PARTS.counted("hessian"):
                tasks[name].add_batch(inputs[0], output)

        return hook

    hooks = [layers[name].register_forward_hook(watch(name)) for name in layers if name not in SAME_INPUT]
    for row in rows:
        model.model(row[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    with PARTS.counted("solve"):
        for follower, leader in SAME_INPUT.items():
            tasks[follower].adopt_hessian_from(tasks[leader])
        for name, task in tasks.items():
            layers[name].weight.data = task.quantize()[0].to(torch.float32)
            task.free()
    for row in rows:
        model.model(row[None], use_cache=False)


if __name__ == "__main__":
    report(__doc__ or "", "gptqmodel", version("gptqmodel"), PARTS, quantize)
