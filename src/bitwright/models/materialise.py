"""Run a streamed model without loading it: each parameter is read at the moment an operation touches it.

A torch function mode sees every operation, also ``weight.device`` and ``weight[i]``; where an argument is an empty
parameter of the model it puts the real one in its place. Recently used parameters are kept within a small budget, and
of an embedding table only the rows that are looked up are read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bitwright.models.expert_stack import product_under, reads_expert
from bitwright.models.model import Model


@contextmanager
def materialised(model: Model) -> Iterator[None]:
    """While the context lasts, empty parameters of ``model`` are read from disk when they are used."""
    if not model.streamed:
        yield
        return
    with _Substitute(model):
        yield


class _Substitute(TorchFunctionMode):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self._names: dict[int, str] = {}
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if reads_expert(args):
            return product_under(self, func, args, kwargs)
        if func is functional.embedding:
            rows = self._looked_up(*args, **kwargs)
            if rows is not None:
                return rows
        return func(*self._swap(args), **self._swap(kwargs))

    def _looked_up(
        self,
        ids: torch.Tensor,
        weight: torch.Tensor,
        padding_idx: Any = None,
        max_norm: Any = None,
        *rest: Any,
        **more: Any,
    ) -> torch.Tensor | None:
        """The rows of an empty table, read one by one; None where the plain way must be taken."""
        name = self._name(weight)
        if name is None or max_norm is not None or name in self._kept:
            return None
        with torch._C.DisableTorchFunction():
            return self._model.read_rows(name, ids)

    def _swap(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            name = self._name(value)
            return value if name is None else self._real(name)
        if type(value) in {list, tuple}:
            return type(value)(self._swap(item) for item in value)
        if type(value) is dict:
            return {key: self._swap(item) for key, item in value.items()}
        return value

    def _name(self, value: torch.Tensor) -> str | None:
        """Name of an empty parameter of the model, or None."""
        if not isinstance(value, nn.Parameter) or not value.is_meta:
            return None
        if id(value) not in self._names:
            # A unit that was freed meanwhile has new empty parameters.
            self._names = {id(p): name for name, p in self._model.module.named_parameters() if p.is_meta}
        return self._names.get(id(value))

    def _real(self, name: str) -> torch.Tensor:
        if name not in self._kept:
            with torch._C.DisableTorchFunction():
                self._kept[name] = self._model.read_parameter(name)
            while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > self._model.kept_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name]
