"""Run a model once on a few random tokens and keep what every module was given and returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from bitwright.data.seeds import stream
from bitwright.models.record import flat_tensors
from bitwright.runtime.native_decoder.plan import NotServedError

TOKENS = 11
"""Tokens of the experiment: a prime number, so that this axis cannot be taken for another one."""


QUIET: Mapping[str, tuple[slice, float]] = MappingProxyType({})
"""Nothing is multiplied."""


class FloatCache(DynamicCache):  # type: ignore[misc]
    """A cache of floats also where the model would make a quantized one."""


@dataclass
class Call:
    """One call of a module: copies of the tensors in and out; ``given`` are the arguments themselves."""

    path: str
    module: nn.Module
    enter: int
    inputs: tuple[Tensor, ...]
    given: tuple[tuple[Any, ...], dict[str, Any]]
    exit: int = -1
    outputs: tuple[Tensor, ...] = ()

    @property
    def x(self) -> Tensor | None:
        """The first floating tensor that was given."""
        return next((t for t in self.inputs if t.is_floating_point()), None)

    @property
    def y(self) -> Tensor | None:
        """The first floating tensor that came out."""
        return next((t for t in self.outputs if t.is_floating_point()), None)

    @property
    def leaf(self) -> bool:
        """Whether the module has no parts."""
        return next(self.module.children(), None) is None


@dataclass
class Trace:
    """All calls in the order of their beginning, the ids, the logits, and the keys and values of every layer."""

    ids: Tensor
    calls: list[Call] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    cache: Any = None

    def inside(self, outer: Call) -> list[Call]:
        """Calls within a call."""
        return [call for call in self.calls if outer.enter < call.enter and call.exit < outer.exit]


def trace(model: nn.Module, louder: Mapping[str, tuple[slice, float]] = QUIET) -> Trace:
    """Run ``model`` on :data:`TOKENS` random tokens with a cache of floats.

    ``louder``: channels of the outputs of modules that are multiplied by a number.

    Raises:
        NotServedError: if it cannot be run so.
    """
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    found = Trace(torch.randint(0, vocabulary, (1, TOKENS), generator=stream(0, "native decoder")))
    clock = [0]
    stack: list[Call] = []
    handles = []
    for path, (channels, factor) in louder.items():
        handles.append(model.get_submodule(path).register_forward_hook(_amplifying(channels, factor)))
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_entering(path, found, stack, clock), with_kwargs=True))
        handles.append(module.register_forward_hook(_leaving(stack, clock)))
    try:
        with torch.no_grad():
            cache = FloatCache(config=getattr(model, "config", None))
            output = model(input_ids=found.ids, past_key_values=cache, use_cache=True)
            found.logits, found.cache = output.logits.float(), output.past_key_values
    except Exception as error:
        raise NotServedError(f"the model cannot be run on random tokens ({type(error).__name__}: {error})") from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _entering(path: str, found: Trace, stack: list[Call], clock: list[int]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock[0] += 1
        inputs = tuple(tensor.clone() for tensor in _tensors((args, kwargs)))
        call = Call(path, module, clock[0], inputs, (args, dict(kwargs)))
        found.calls.append(call)
        stack.append(call)

    return hook


def _leaving(stack: list[Call], clock: list[int]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        clock[0] += 1
        call = stack.pop()
        call.exit = clock[0]
        call.outputs = tuple(tensor.clone() for tensor in _tensors(output))

    return hook


def _amplifying(channels: slice, factor: float) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        louder = output.clone()
        louder[..., channels] *= factor
        return louder

    return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of the arguments; those of a cache among them are left out."""
    if isinstance(value, DynamicCache):
        return
    if isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    else:
        yield from flat_tensors(value)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors hold the same values in the same order."""
    if a is None or b is None or a.numel() != b.numel() or not a.is_floating_point():
        return False
    return torch.equal(a.reshape(-1), b.reshape(-1))


def distance(a: Tensor, b: Tensor) -> float:
    """Largest deviation over the largest value of b."""
    size = float(b.abs().max()) or 1.0
    found = float((a.float().reshape(-1) - b.float().reshape(-1)).abs().max()) / size
    return found if found == found else float("inf")


def factor_between(a: Tensor, b: Tensor, tolerance: float) -> float | None:
    """The number c with ``b = c * a``, or ``None``."""
    a, b = a.double().reshape(-1), b.double().reshape(-1)
    square = float(a @ a)
    if a.numel() != b.numel() or not square:
        return None
    c = float(a @ b) / square
    if not distance(c * a, b) <= tolerance:
        return None
    return 1.0 if abs(c - 1) < 1e-5 else c
