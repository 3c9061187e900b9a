"""What a stranger's config.json may ask for, checked against the tensors that are really stored.

A config decides how large a network is built and which code runs; so every size in it is held against the checkpoint
before a module is made, and everything that would fetch or run code from elsewhere is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from torch.overrides import TorchFunctionMode

from bitwright.errors import InputError
from bitwright.models.checkpoint import Checkpoint

# Config entries that count layers: a layer has at least one tensor.
DEPTH_KEYS = frozenset({
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth", "depths",
    "num_encoder_layers", "num_decoder_layers", "num_blocks",
})  # fmt: skip
# Words in the names of entries that say how large something is.
_SIZE = re.compile(
    r"(^|_)(n|num|d|size|sizes|dim|dims|hidden|width|heads|experts|layers?|blocks|embd|inner|features|channels|vocab"
    r"|ffn|mlp|intermediate|rank|groups|labels|bins|buckets|kernel|stride|patch)(_|$)"
)
_LENGTH = re.compile(r"(^|_)(positions?|length|len|window|context|seq|seqlen|ctx|tokens)(_|$)")
# A packed weight is stored at a bit or more a value, and some widths are a product of heads: so sizes may exceed the
# largest stored dimension, but not by more than this.
_PACKED = 64
_SMALL = 2**25
# Entries whose other words sound like a size, and those of which each is at least one module that has to be built.
_NO_SIZE = re.compile(r"(^|_)(theta|freq|frequency|eps|loss|coef|coeff)(_|$)")
_BUILT = re.compile(r"(^|_)(experts|layers|layer|blocks)$")
_FEW = 2**15
_LONG = 2**31
_FILLED = 2**28
_FACTORIES = frozenset({"ones", "zeros", "full", "arange", "eye", "linspace", "rand", "randn", "tril_indices"})


def check_config(checkpoint: Checkpoint) -> None:
    """Refuse sizes that no stored tensor can back, and configs that would load something from elsewhere.

    Raises:
        InputError: naming the entry.
    """
    where = f"{checkpoint.path}: config.json"
    config = checkpoint.config
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{where} must list its architectures as words, not {_short(names)}; mend it")
    if (checkpoint.path / "adapter_config.json").exists():
        raise InputError(f"{checkpoint.path}: holds an adapter; merge it into its base model and give that")
    if "transformers_weights" in config:
        raise InputError(f"{where} names other weights (transformers_weights); remove the entry")
    largest = max((max(info.shape, default=0) for info in checkpoint.tensors.values()), default=0)
    count = len(checkpoint.tensors)
    for place, value in _entries(config, ""):
        name = place.rpartition(".")[2]
        if isinstance(value, str):
            if name.lstrip("_").endswith(("attn_implementation", "experts_implementation")) and "/" in value:
                raise InputError(f"{where} asks for code from the hub ({place} = {_short(value)}); remove the entry")
            continue
        if _NO_SIZE.search(name):
            continue
        if name in DEPTH_KEYS and abs(value) > count:
            raise InputError(
                f"{where} says {place} = {value}, but there are only {count} tensors; the config belongs to another "
                "model"
            )
        limit = _LONG
        if _BUILT.search(name):
            limit = max(largest, count, _FEW)
        elif _SIZE.search(name):
            limit = max(_PACKED * largest, count, _SMALL)
        if (_SIZE.search(name) or _LENGTH.search(name)) and not abs(value) <= limit:
            raise InputError(f"{where} says {place} = {_short(value)}, far above what its tensors hold; mend it")


def _entries(value: Any, place: str) -> Iterator[tuple[str, int | float | str]]:
    """Numbers and words of a config with their dotted names; the items of a list have the name of the list."""
    if isinstance(value, dict):
        for key, item in value.items():
            # Labels and the account of a quantized model say nothing about the network's size.
            if key not in ("id2label", "label2id", "quantization_config"):
                yield from _entries(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, place)
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        yield place, value


def _short(value: object) -> str:
    text = str(value) if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64) else ""
    text = text or (f"a number of {value.bit_length()} bits" if isinstance(value, int) else repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


class BoundedTables(TorchFunctionMode):
    """Refuse tables (masks, frequencies) of an absurd size that a network wants to compute while it is built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` unless it would fill more than 2^28 elements.

        Raises:
            InputError: if it would.
        """
        if getattr(func, "__name__", "") in _FACTORIES:
            given = args[0] if args and isinstance(args[0], tuple | list) else args
            elements = math.prod(int(abs(size)) or 1 for size in given if isinstance(size, int | float))
            if elements > _FILLED:
                raise InputError(f"config.json makes the network fill a table of {elements} numbers; mend its sizes")
        return func(*args, **(kwargs or {}))
