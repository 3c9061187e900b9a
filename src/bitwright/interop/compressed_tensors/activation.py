"""Which input formats the readers of compressed-tensors compute exactly as we do."""

from __future__ import annotations

from typing import Any, NoReturn

from bitwright.errors import InputError
from bitwright.formats import Format, Group, IntGrid, MiniFloat, Tensor, Token
from bitwright.runtime.activation import is_static

_FLOATS = (MiniFloat(2, 1), MiniFloat(2, 3), MiniFloat(4, 3))


def check_input(path: str, fmt: Format, columns: int) -> None:
    """Accept an input format, or say why no reader computes it.

    Raises:
        InputError: with the nearest format that readers have.
    """
    grid, granularity = fmt.grid, fmt.granularity
    word = "int8" if isinstance(grid, IntGrid) else "e4m3"
    if fmt.clip != 1 and not is_static(fmt):
        _refuse(path, fmt, "readers cover the whole range that they measure", f"{word} token dynamic")
    if isinstance(grid, IntGrid):
        if grid.narrow or (not grid.signed and fmt.zero is None) or grid.bits < 2:
            _refuse(path, fmt, "readers use the full range of signed integers", "int8 token dynamic")
        if fmt.zero is not None and fmt.zero.storage != "code":
            _refuse(path, fmt, "zero points are integers", "int8 token asym dynamic")
    elif grid not in _FLOATS:
        _refuse(path, fmt, "inputs are integers, e4m3 or MX", f"{word} token dynamic")
    if fmt.scale.storage == "e4m3":
        why = "nvfp4 inputs have a calibrated scale per tensor in the file, and ours are measured at every call"
        _refuse(path, fmt, why, "float inputs (a recipe without activations)")
    if fmt.scale.storage == "e8m0":
        _check_mx(path, fmt, columns)
        return
    if grid != MiniFloat(4, 3) and not isinstance(grid, IntGrid):
        _refuse(path, fmt, f"{grid.text} inputs are MX blocks", f"{grid.text} g32 scale=e8m0-ct dynamic")
    if is_static(fmt):
        if granularity != Tensor():
            _refuse(path, fmt, "a static input has one scale", f"{word} tensor static")
        return
    if granularity == Token() or granularity == Tensor():
        _check_measured(path, fmt, word)
        return
    if isinstance(granularity, Group) and granularity.axis == 1 and columns % granularity.size == 0:
        _check_measured(path, fmt, word)
        return
    _refuse(path, fmt, "inputs share a scale per tensor, token, or group that divides a row", f"{word} token dynamic")


def _check_mx(path: str, fmt: Format, columns: int) -> None:
    legal = f"{fmt.grid.text} g32 scale=e8m0-ct dynamic"
    if isinstance(fmt.grid, IntGrid):
        _refuse(path, fmt, "integers have no e8m0 scales", "int8 token dynamic")
    if fmt.scale.rule != "ct":
        _refuse(path, fmt, "readers make e8m0 scales by their own rule, which rounds up near the top of a block", legal)
    if fmt.granularity != Group(32):
        _refuse(path, fmt, "MX blocks hold 32 values", legal)
    if columns % 32:
        _refuse(path, fmt, f"blocks of 32 do not divide its {columns} channels", "e4m3 token dynamic")


def _check_measured(path: str, fmt: Format, word: str) -> None:
    if fmt.scale.storage != "fp32":
        _refuse(path, fmt, f"measured scales are not rounded to {fmt.scale.text}", f"{word} token dynamic")


def _refuse(path: str, fmt: Format, why: str, nearest: str) -> NoReturn:
    raise InputError(f"{path}: input format '{fmt}' not representable because {why}; nearest legal: {nearest}")


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
