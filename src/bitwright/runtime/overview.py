"""What serves a model part by part: kernels of coded weights, what stays float, online operations, attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.runtime.dispatch import Choice, Request, Table, UnsupportedError
from bitwright.runtime.module import QuantModule

ONE = 1
"""Rows of a decoding step, for which kernels are named."""


@dataclass(frozen=True)
class KernelNames:
    """The kernel of one token's product where activations may be rounded to 8 bits, and where not (``exact``).

    ``passed_over``: kernels that are preferred to the former, and what stops them.
    """

    kernel: str
    exact: str
    passed_over: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class FloatArray:
    """An array that no quantized layer holds: ``module`` owns it; ``kind`` is what multiplies by it.

    ``kind``: ``linear``, ``conv``, ``embedding``, ``bias`` (of a quantized layer), ``vector`` (norm gains and the
    like), or ``array``. ``kernel`` is what runs it in the model's modules.
    """

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    kernel: str
    shared: tuple[str, ...] = ()


def torch_kernel(dtype: torch.dtype) -> str:
    """The name of torch's own operators in a dtype."""
    return f"torch ({str(dtype).removeprefix('torch.')})"


def kernel_names(request: Request, table: Table) -> KernelNames:
    """The kernels for a request with either value of ``exact``; "none" where no kernel serves it."""
    rounded, exact = (_chosen(replace(request, exact=value), table) for value in (False, True))
    return KernelNames(
        "none" if rounded is None else rounded.kernel.name,
        "none" if exact is None else exact.kernel.name,
        () if rounded is None else rounded.passed_over,
    )


def _chosen(request: Request, table: Table) -> Choice | None:
    try:
        return table.choose(request)
    except UnsupportedError:
        return None


def module_kernels(module: QuantModule) -> KernelNames:
    """The kernels of a quantized module for one token, with the weights packed."""
    if module.weight_meta is None:
        name = torch_kernel(module.dtype)
        return KernelNames(name, name)
    device = next((t.device for t in (*module.buffers(), *module.parameters())), torch.device("cpu"))
    return kernel_names(module.request(module.dtype, ONE, device), module.table)


def online_kernels(module: QuantModule) -> list[str]:
    """The kernels of a module's online operations, in order."""
    device = next((t.device.type for t in (*module.buffers(), *module.parameters())), "cpu")
    requests = (Request(o.kind, "", device, module.dtype, (int(o.option("size")),)) for o in module.online)
    return [choice.kernel.name if (choice := _chosen(r, module.table)) else "none" for r in requests]


def float_arrays(model: nn.Module) -> tuple[FloatArray, ...]:
    """Every array of a model that is no part of a coded weight; tied ones once, under their first name."""
    found: dict[int, FloatArray] = {}
    for path, module in model.named_modules():
        for name, tensor in _own(module):
            if _is_packed(module, name):
                continue
            full = f"{path}.{name}" if path else name
            first = found.get(id(tensor))
            if first is not None:
                found[id(tensor)] = replace(first, shared=(*first.shared, full))
                continue
            kind, kernel = _kind(module, name, tensor), torch_kernel(tensor.dtype)
            found[id(tensor)] = FloatArray(full, path, kind, tuple(tensor.shape), tensor.nbytes, kernel)
    return tuple(found.values())


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own stored arrays of floats."""
    passing = module._non_persistent_buffers_set
    stored = {**module._parameters, **{k: v for k, v in module._buffers.items() if k not in passing}}
    yield from ((name, t) for name, t in stored.items() if t is not None and t.is_floating_point())


def _is_packed(module: nn.Module, name: str) -> bool:
    return isinstance(module, QuantModule) and name.startswith(("weight_", "input_"))


def _kind(module: nn.Module, name: str, tensor: Tensor) -> str:
    if isinstance(module, QuantModule):
        return "bias" if name == "bias" else {"conv2d": "conv"}.get(module.op, module.op)
    if tensor.dim() < 2:
        return "vector"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    return "linear" if isinstance(module, nn.Linear) else "array"


def attention_words(manifest: Mapping[str, Any] | None, dtype: torch.dtype, native: bool) -> dict[str, Any]:
    """How attention reads keys and values of a language model, as JSON values.

    Args:
        manifest: the ``kv_cache`` of a checkpoint, ``None`` where keys and values are float.
        native: the compiled decoding step serves the model.
    """
    sides: dict[str, Any] = {
        side: str(given["format"]) if isinstance(given := (manifest or {}).get(side), Mapping) else None
        for side in ("key", "value")
    }
    coded = any(sides.values())
    if native:
        why = "reads the codes of the cache" if coded else "reads keys and values as they are kept"
        kernel = "attention/native"
    else:
        why = "the cache decodes keys and values, then the model's own attention runs" if coded else "the model's own"
        kernel = torch_kernel(dtype)
    return {"kernel": kernel, **sides, "window": int((manifest or {}).get("window", 0)), "why": why}
