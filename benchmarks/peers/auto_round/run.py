"""SignRound by AutoRound, with its defaults (200 steps) wherever the protocol leaves a choice.

AutoRound leaves every linear layer in float whose sizes are not multiples of 32, without a word before its summary;
here those are the MLPs (64 by 172), 73 % of the block weights. So the MLPs are padded with zeros from 172 to 192 before
and cut back afterwards. Nothing else changes: the padded units give 0 and receive no gradient, and every row of the
other layers has 0 in its range anyway.
`--as-is` skips the padding and shows what a user gets without it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from auto_round import AutoRound
from auto_round.version import __version__
from exchange import (
    LENGTH,
    MODEL,
    SEQUENCES,
    arguments,
    calibration_tokens,
    decoder_linears,
    load_model,
    measured,
    save,
    timed,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

MULTIPLE = 32


def padded(model: torch.nn.Module) -> torch.nn.Module:
    """The same function with an MLP width that is a multiple of 32."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.intermediate_size = -(-config.intermediate_size // MULTIPLE) * MULTIPLE
    wide = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    targets = wide.state_dict()
    for name, value in model.state_dict().items():
        targets[name].zero_()
        targets[name][tuple(slice(size) for size in value.shape)] = value
    wide.tie_weights()
    return wide


def method_name(iters: int, as_is: bool, amp: bool) -> str:
    """The setting in a few letters."""
    return f"signround-{iters}" + ("-as-is" if as_is else "") + ("-amp" if amp else "")


def main() -> None:
    """Quantize the model at each width."""
    flag = {"action": "store_true"}
    options = arguments(
        __doc__ or "",
        **{
            "iters": {"type": int, "default": 200, "help": "optimization steps per block"},
            "as-is": {**flag, "help": "do not pad: the MLPs stay in float"},
            "amp": {**flag, "help": "let AutoRound cast the model to bfloat16, as it does unless told otherwise"},
        },
    )
    rows = calibration_tokens(options.work)
    tokenizer = AutoTokenizer.from_pretrained(options.assets / MODEL)
    for bits in options.bits:
        original = load_model(options.assets)
        model = original if options.as_is else padded(original)
        with timed() as clock:
            tool = AutoRound(
                model,
                tokenizer,
                scheme="W4A16",
                bits=bits,
                group_size=-1,
                sym=False,
                iters=options.iters,
                nsamples=SEQUENCES,
                seqlen=LENGTH,
                dataset=[{"input_ids": row[None]} for row in rows],
                device_map="cpu",
                amp=options.amp,
            )
            model, _ = tool.quantize()
        shapes = {name: layer.weight.shape for name, layer in decoder_linears(load_model(options.assets)).items()}
        layers = {name: layer.weight.float() for name, layer in decoder_linears(model).items()}
        weights = {f"{name}.weight": layers[name][:height, :width] for name, (height, width) in shapes.items()}
        config = tool.quantize_config
        names = ("lr", "minmax_lr", "momentum", "enable_minmax_tuning", "enable_quanted_input", "not_use_best_mse")
        settings = {name: getattr(config, name) for name in names} | {
            "iters": options.iters,
            "rows_per_step": tool.calibration_context.batch_size,
            "amp": options.amp,
            "torch_compile": tool.compress_context.enable_torch_compile,
            "scale_dtype": str(tool.scale_dtype),
            "seed": tool.seed,
            "levels_per_row": max(len(row.unique()) for weight in weights.values() for row in weight),
        }
        method = method_name(options.iters, options.as_is, options.amp)
        result = measured("auto-round", __version__, method, bits, options.threads, clock, settings)
        save(options.work, result, weights)


if __name__ == "__main__":
    main()
