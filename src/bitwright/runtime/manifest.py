"""The manifest of a native checkpoint: what config.json says about every quantized module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitwright.errors import InputError, nearest_key
from bitwright.formats import Format, parse
from bitwright.runtime.online import online_operations
from bitwright.stages.transforms import OnlineOperation

QUANT_METHOD = "bitwright"
FORMAT_VERSION = 1
KINDS = ("linear", "conv", "embedding")

_AGAIN = "quantize again"
_KEYS = {
    "quant_method", "format_version", "recipe", "bitwright_version", "modules", "removed", "kv_cache", "experts",
}  # fmt: skip
_MODULE_KEYS = {"kind", "transposed", "weight", "input", "online", "bias"}
_STACK_KEYS = {"experts", "shape", "transposed"}
_CACHE_KEYS = {"key", "value", "window"}
_SIDE_KEYS = {"format", "online"}


@dataclass(frozen=True)
class ModuleEntry:
    """One quantized module: kind, metadata of its weight (``None``: float), input format, online operations, bias."""

    kind: str
    weight: Mapping[str, Any] | None
    input: Format | None
    online: tuple[OnlineOperation, ...]
    bias: bool
    transposed: bool = False


@dataclass(frozen=True)
class CacheSide:
    """How the keys or the values of a cache are stored."""

    format: Format
    online: tuple[OnlineOperation, ...] = ()


@dataclass(frozen=True)
class CacheManifest:
    """The quantized key-value cache of a checkpoint; the last ``window`` tokens stay float."""

    key: CacheSide | None
    value: CacheSide | None
    window: int = 0


@dataclass(frozen=True)
class StackEntry:
    """A parameter of the float network that holds several experts, stored expert by expert.

    ``experts`` matrices of ``shape`` (out, in), each kept as [in, out] where ``transposed``. The experts are modules
    ``<path>.0``, ``<path>.1``, ...; those that are not coded have a float tensor ``<path>.<number>.weight``.
    """

    experts: int
    shape: tuple[int, int]
    transposed: bool


@dataclass(frozen=True)
class Manifest:
    """The checked manifest; ``experts`` are the stacks of experts by the path of the parameter they stand for."""

    modules: Mapping[str, ModuleEntry]
    removed: tuple[str, ...] = ()
    kv_cache: CacheManifest | None = None
    recipe: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)
    experts: Mapping[str, StackEntry] = field(default_factory=dict)


def read_manifest(raw: Mapping[str, Any]) -> Manifest:
    """Check a ``quantization_config`` and return it as values.

    Raises:
        InputError: for a foreign or newer manifest, unknown keys, formats or operations.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"the checkpoint's manifest is no object; {_AGAIN}")
    _known(raw, _KEYS, "quantization_config")
    if raw.get("quant_method") != QUANT_METHOD:
        method = raw.get("quant_method")
        raise InputError(f"the checkpoint was made by {method!r}, not by bitwright; use its own loader")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"the checkpoint has format_version {version!r}, this version reads {FORMAT_VERSION}; update")
    modules, removed, experts = raw.get("modules") or {}, raw.get("removed") or (), raw.get("experts") or {}
    listed = isinstance(removed, list | tuple) and all(isinstance(path, str) for path in removed)
    if not listed or not isinstance(modules, Mapping) or not isinstance(experts, Mapping):
        raise InputError(f"the checkpoint's manifest is damaged (modules, removed or experts); {_AGAIN}")
    return Manifest(
        modules={str(path): _module(str(path), entry) for path, entry in modules.items()},
        removed=tuple(removed),
        kv_cache=read_cache(raw.get("kv_cache")),
        recipe=str(raw.get("recipe", "")),
        raw=dict(raw),
        experts={str(path): _stack(str(path), entry) for path, entry in experts.items()},
    )


def _stack(path: str, raw: Any) -> StackEntry:
    if not isinstance(raw, Mapping):
        raise InputError(f"the manifest's entry of the experts {path} is no object; quantize again")
    _known(raw, _STACK_KEYS, f"experts[{path}]")
    count, shape = raw.get("experts"), raw.get("shape")
    sizes = [count, *shape] if isinstance(shape, list | tuple) and len(shape) == 2 else [None]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise InputError(f"the manifest's entry of the experts {path} is damaged; quantize again")
    return StackEntry(int(sizes[0] or 0), (int(sizes[1] or 0), int(sizes[2] or 0)), bool(raw.get("transposed", False)))


def read_cache(raw: Mapping[str, Any] | None) -> CacheManifest | None:
    """Check the ``kv_cache`` part of a manifest (``None`` stays ``None``).

    Raises:
        InputError: for unknown keys, formats or operations, or a negative window.
    """
    if raw is None:
        return None
    _known(raw, _CACHE_KEYS, "kv_cache")
    window = raw.get("window", 0)
    if type(window) is not int or not 0 <= window < 2**31:
        raise InputError(f"kv_cache.window must be a number of tokens, not {window!r}")
    return CacheManifest(_side(raw.get("key"), "key"), _side(raw.get("value"), "value"), window)


def _side(raw: Mapping[str, Any] | None, name: str) -> CacheSide | None:
    if raw is None:
        return None
    _known(raw, _SIDE_KEYS, f"kv_cache.{name}")
    return CacheSide(parse(str(raw.get("format"))), online_operations(raw.get("online")))


def _module(path: str, raw: Any) -> ModuleEntry:
    if not isinstance(raw, Mapping):
        raise InputError(f"the manifest's entry of {path} is no object; quantize again")
    _known(raw, _MODULE_KEYS, f"modules[{path}]")
    kind = str(raw.get("kind"))
    if kind not in KINDS:
        raise InputError(f"{path} has the unknown kind {kind!r}; {nearest_key(kind, KINDS)}")
    given = raw.get("input")
    if given is not None:
        _known(given, {"format"}, f"modules[{path}].input")
    weight = raw.get("weight")
    if weight is not None and not isinstance(weight, Mapping):
        raise InputError(f"the metadata of {path}'s weight is damaged; quantize again")
    if weight is None and given is None and not raw.get("online"):
        raise InputError(f"the manifest's entry of {path} quantizes nothing; quantize again")
    return ModuleEntry(
        kind=kind,
        weight=weight,
        input=None if given is None else parse(str(given.get("format"))),
        online=online_operations(raw.get("online")),
        bias=bool(raw.get("bias", False)),
        transposed=bool(raw.get("transposed", False)),
    )


def _known(raw: Any, valid: set[str], where: str) -> None:
    if not isinstance(raw, Mapping):
        raise InputError(f"{where} of the checkpoint's manifest is no object; {_AGAIN}")
    for key in raw:
        if key not in valid:
            raise InputError(f"unknown key {key!r} in {where}; {nearest_key(str(key), valid)}")
