"""Bitwright: quantization of neural networks as short recipes over shared stages.

``import bitwright`` costs nothing: no torch, no device, no files. Public names load their module when first read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bitwright.errors import BitwrightError, CheckError, InputError

if TYPE_CHECKING:
    from bitwright.events import Event, Events
    from bitwright.formats import Format, QuantizedTensor, parse
    from bitwright.jobs.api import load, plan, quantize
    from bitwright.models import discover, open_model
    from bitwright.recipes import Recipe, all_recipes, recipe

__version__ = "0.1.0"

# Public name -> the module that defines it. Loaded when first used.
_HOMES: dict[str, str] = {
    "Event": "bitwright.events",
    "Events": "bitwright.events",
    "Format": "bitwright.formats",
    "QuantizedTensor": "bitwright.formats",
    "parse": "bitwright.formats",
    "open_model": "bitwright.models",
    "discover": "bitwright.models",
    "Recipe": "bitwright.recipes",
    "all_recipes": "bitwright.recipes",
    "recipe": "bitwright.recipes",
    "load": "bitwright.jobs.api",
    "plan": "bitwright.jobs.api",
    "quantize": "bitwright.jobs.api",
}

__all__ = [
    "BitwrightError",
    "CheckError",
    "Event",
    "Events",
    "Format",
    "InputError",
    "QuantizedTensor",
    "Recipe",
    "__version__",
    "all_recipes",
    "discover",
    "load",
    "open_model",
    "parse",
    "plan",
    "quantize",
    "recipe",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, once, when the name is first read.

    Raises:
        AttributeError: if ``name`` is not public.
    """
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
