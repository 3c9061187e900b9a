"""Which input formats the readers of compressed-tensors compute exactly as we do."""

from __future__ import annotations

from typing import Any

from bitwright.formats import Format, Group, IntGrid, MiniFloat, Tensor, Token
from bitwright.interop.compressed_tensors.refusal import Refusal
from bitwright.runtime.activation import is_static

_FLOATS = (MiniFloat(2, 1), MiniFloat(2, 3), MiniFloat(4, 3))


def input_refusal(fmt: Format, columns: int) -> Refusal | None:
    """Why no reader computes an input format, with the nearest one that they have; ``None`` where they do."""
    grid, granularity = fmt.grid, fmt.granularity
    word = "int8" if isinstance(grid, IntGrid) else "e4m3"
    if fmt.wide:
        return _refusal(fmt, "readers code all inputs in one width", "int8 token dynamic")
    if fmt.clip != 1 and not is_static(fmt):
        return _refusal(fmt, "readers cover the whole range that they measure", f"{word} token dynamic")
    if isinstance(grid, IntGrid):
        if grid.narrow or (not grid.signed and fmt.zero is None) or grid.bits < 2:
            return _refusal(fmt, "readers use the full range of signed integers", "int8 token dynamic")
        if fmt.zero is not None and fmt.zero.storage != "code":
            return _refusal(fmt, "zero points are integers", "int8 token asym dynamic")
    elif grid not in _FLOATS:
        return _refusal(fmt, "inputs are integers, e4m3 or MX", f"{word} token dynamic")
    if fmt.scale.storage == "e4m3":
        why = "nvfp4 inputs have a calibrated scale per tensor in the file, and ours are measured at every call"
        return _refusal(fmt, why, "float inputs (a recipe without activations)")
    if fmt.scale.storage == "e8m0":
        return _mx_refusal(fmt, columns)
    if grid != MiniFloat(4, 3) and not isinstance(grid, IntGrid):
        return _refusal(fmt, f"{grid.text} inputs are MX blocks", f"{grid.text} g32 scale=e8m0-ct dynamic")
    if is_static(fmt):
        if granularity != Tensor():
            return _refusal(fmt, "a static input has one scale", f"{word} tensor static")
        return None
    if granularity == Token() or granularity == Tensor():
        return _measured_refusal(fmt, word)
    if isinstance(granularity, Group) and granularity.axis == 1 and columns % granularity.size == 0:
        return _measured_refusal(fmt, word)
    return _refusal(fmt, "inputs share a scale per tensor, token, or group that divides a row", f"{word} token dynamic")


def _mx_refusal(fmt: Format, columns: int) -> Refusal | None:
    legal = f"{fmt.grid.text} g32 scale=e8m0-ct dynamic"
    if isinstance(fmt.grid, IntGrid):
        return _refusal(fmt, "integers have no e8m0 scales", "int8 token dynamic")
    if fmt.scale.rule != "ct":
        return _refusal(
            fmt, "readers make e8m0 scales by their own rule, which rounds up near the top of a block", legal
        )
    if fmt.granularity != Group(32):
        return _refusal(fmt, "MX blocks hold 32 values", legal)
    if columns % 32:
        return _refusal(fmt, f"blocks of 32 do not divide its {columns} channels", "e4m3 token dynamic")
    return None


def _measured_refusal(fmt: Format, word: str) -> Refusal | None:
    if fmt.scale.storage != "fp32":
        return _refusal(fmt, f"measured scales are not rounded to {fmt.scale.text}", f"{word} token dynamic")
    return None


def _refusal(fmt: Format, why: str, nearest: str) -> Refusal:
    return Refusal(why, nearest, f"input format '{fmt}'")


def input_args(fmt: Format) -> dict[str, Any]:
    """Return the ``input_activations`` of an accepted format."""
    granularity = fmt.granularity
    strategy, group = "tensor", None
    if granularity == Token():
        strategy = "token"
    elif isinstance(granularity, Group):
        strategy, group = "group", granularity.size
    args: dict[str, Any] = {
        "num_bits": fmt.grid.bits,
        "type": "int" if isinstance(fmt.grid, IntGrid) else "float",
        "symmetric": fmt.zero is None,
        "strategy": strategy,
        "group_size": group,
        "dynamic": not is_static(fmt),
    }
    if fmt.scale.storage == "e8m0":
        args["scale_dtype"] = "torch.uint8"
    return args
