"""HQQ on the weights alone: groups along the input, one group a row ("channel") and groups of 64 ("g64").

HQQ needs no data. Its 4-bit default rounds the zero point and its other widths keep it in float; both are left so. A
group of 64 does not divide the rows of 172 columns, and HQQ groups the flattened weight, so there a group of 64 runs
over the end of a row.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from exchange import arguments, decoder_linears, load_model, measured, save, timed
from hqq.core.quantize import Quantizer, hqq_base_quant_config


def quantized(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The values HQQ gives back for `weight`, in fp32."""
    settings = hqq_base_quant_config(nbits=bits, group_size=8, axis=1)["weight_quant_params"]
    settings["group_size"] = group  # the defaults refuse groups that are not multiples of 8; the quantizer takes them
    codes, meta = Quantizer.quantize(weight, device="cpu", compute_dtype=torch.float32, bitpack=False, **settings)
    return Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})


def main() -> None:
    """Quantize the model at each width and grouping."""
    options = arguments(__doc__ or "")
    linears = decoder_linears(load_model(options.assets))
    for bits in options.bits:
        for method, group in (("hqq", None), ("hqq-g64", 64)):
            with timed() as clock:
                weights = {
                    f"{name}.weight": quantized(layer.weight.data, bits, group or layer.in_features)
                    for name, layer in linears.items()
                }
            settings = {"axis": 1, "group": group or "row", "round_zero": bits == 4, "optimizer": "proximal, 20 steps"}
            result = measured("hqq", version("hqq"), method, bits, options.threads, clock, settings)
            save(options.work, result, weights)


if __name__ == "__main__":
    main()
