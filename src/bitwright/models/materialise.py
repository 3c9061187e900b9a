"""Run a streamed model without loading it: each parameter is read at the moment an operation touches it.

A torch function mode sees every operation, also ``weight.device`` and ``weight[i]``; where an argument is an empty
parameter of the model it puts the real one in its place. A few recently used parameters are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bitwright.models.model import Model

KEPT_PARAMETERS = 4


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
        self._names = {id(p): name for name, p in model.module.named_parameters() if p.is_meta}
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*self._swap(args), **self._swap(kwargs or {}))

    def _swap(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return self._real(value)
        if type(value) in {list, tuple}:
            return type(value)(self._swap(item) for item in value)
        if type(value) is dict:
            return {key: self._swap(item) for key, item in value.items()}
        return value

    def _real(self, parameter: nn.Parameter) -> torch.Tensor:
        if not parameter.is_meta or id(parameter) not in self._names:
            return parameter
        name = self._names[id(parameter)]
        if name not in self._kept:
            while len(self._kept) >= KEPT_PARAMETERS:
                self._kept.popitem(last=False)
            with torch._C.DisableTorchFunction():
                self._kept[name] = self._model.read_parameter(name)
        self._kept.move_to_end(name)
        return self._kept[name]
