"""GPTQ by llm-compressor's own `oneshot`, with its defaults wherever the protocol leaves a choice."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from exchange import arguments, calibration_tokens, decoder_linears, load_model, measured, save, timed
from llmcompressor import __version__, oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader


def main() -> None:
    """Quantize the model at each width."""
    options = arguments(__doc__ or "")
    rows = calibration_tokens(options.work)
    for bits in options.bits:
        model = load_model(options.assets)
        scheme = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "channel"}
        recipe = GPTQModifier(config_groups={"linears": {"targets": ["Linear"], "weights": scheme}}, ignore=["lm_head"])
        batches = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows])
        with timed() as clock:
            oneshot(model=model, dataset=batches, recipe=recipe)
        weights = {f"{name}.weight": layer.weight for name, layer in decoder_linears(model).items()}
        arguments_used = next(iter(decoder_linears(model).values())).quantization_scheme.weights
        settings = {
            "block_size": recipe.block_size,
            "dampening_frac": recipe.dampening_frac,
            "actorder": str(arguments_used.actorder),
            "observer": arguments_used.observer,
            "rows_per_batch": 1,
            "levels_per_row": max(len(row.unique()) for weight in weights.values() for row in weight),
        }
        result = measured("llm-compressor", __version__, "gptq", bits, options.threads, clock, settings)
        save(options.work, result, weights)


if __name__ == "__main__":
    main()
