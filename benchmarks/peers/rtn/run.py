"""Round to nearest: the asymmetric grid of every output row spans the row's minimum to its maximum, zero included."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from exchange import arguments, decoder_linears, load_model, measured, save, timed


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest values of `weight` on its rows' grids, with an integer zero point."""
    top = 2**bits - 1
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / top).clamp(min=torch.finfo(weight.dtype).eps)
    zero = (-low / scale).round()
    return scale * ((weight / scale + zero).round().clamp(0, top) - zero)


def main() -> None:
    """Round the model at each width."""
    options = arguments(__doc__ or "")
    linears = decoder_linears(load_model(options.assets))
    for bits in options.bits:
        with timed() as clock, torch.inference_mode():
            weights = {f"{name}.weight": rounded(layer.weight, bits) for name, layer in linears.items()}
        result = measured("torch", torch.__version__, "rtn", bits, options.threads, clock)
        save(options.work, result, weights)


if __name__ == "__main__":
    main()
