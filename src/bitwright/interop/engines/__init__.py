"""Engines that serve quantized models, and what each of them asks of a plan."""

from bitwright.errors import InputError, nearest_key
from bitwright.interop.engines.base import Engine, Layer, Objection
from bitwright.interop.engines.others import LlamaCpp, OnnxRuntime, Transformers
from bitwright.interop.engines.vllm import Vllm

__all__ = ["ENGINES", "Engine", "Layer", "Objection", "engine"]

ENGINES: tuple[Engine, ...] = (Vllm(), LlamaCpp(), Transformers(), OnnxRuntime())


def engine(name: str) -> Engine:
    """The engine that ``--for`` names.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    known = {e.name: e for e in ENGINES}
    if name not in known:
        raise InputError(f"no engine is called {name!r}; {nearest_key(name, known)}")
    return known[name]
