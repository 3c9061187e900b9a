"""Record a run of shapes alone: every operation is seen, nothing is computed and no weight is read.

It takes a fraction of a second for a model of any size and gives blocks, sites and shared inputs; what needs numbers
(norms, pairs, the residual stream) cannot be known from it. A model whose flow depends on values cannot be run so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from bitwright.models.calling import experts_run
from bitwright.models.expert_stack import product_under, reads_expert
from bitwright.models.model import Model
from bitwright.models.record import Run, record_under

logger = logging.getLogger(__name__)


def record_shapes(model: Model, example: Any) -> Run | None:
    """The recorded run of ``model`` on a batch shaped like ``example``, or None where values decide the flow."""
    attempts = [example]
    if isinstance(example, Mapping) and "attention_mask" in example:
        attempts.append({key: value for key, value in example.items() if key != "attention_mask"})
    for attempt in attempts:
        # Values decide the flow of some models; what they raise then depends on their code.
        with _quiet(), contextlib.suppress(Exception):
            # A loop over the experts that were chosen depends on values; the product with gathered matrices does not.
            with FakeTensorMode(allow_non_fake_inputs=True), _Shapes(), experts_run(model.module, "batched_mm"):
                run = record_under(model.module, _hollow(attempt))
            run.result = None
            return run
    logger.info("the flow of the model depends on values, so it is run in full")
    return None


class _Shapes(TorchFunctionMode):
    """Every parameter is replaced by a tensor of its shape, on the processor, without memory."""

    def __init__(self) -> None:
        super().__init__()
        self._hollow: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if reads_expert(args):
            return product_under(self, func, args, kwargs or {})
        return func(*self._swap(args), **self._swap(kwargs or {}))

    def _swap(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            with torch._C.DisableTorchFunction():
                known = self._hollow.get(id(value))
                if known is None:
                    known = self._hollow[id(value)] = torch.empty(tuple(value.shape), dtype=value.dtype, device="cpu")
            return known
        if type(value) in {list, tuple}:
            return type(value)(self._swap(item) for item in value)
        if type(value) is dict:
            return {key: self._swap(item) for key, item in value.items()}
        return value


def _hollow(value: Any) -> Any:
    """The nested batch with tensors of equal shapes without memory (called under the fake mode)."""
    if isinstance(value, torch.Tensor):
        return torch.empty(tuple(value.shape), dtype=value.dtype)
    if isinstance(value, Mapping):
        return {key: _hollow(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_hollow(item) for item in value)
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An operation without a rule for shapes is no error here, so torch must not print one."""
    noisy = logging.getLogger("torch._subclasses.fake_tensor")
    before, noisy.disabled = noisy.disabled, True
    try:
        yield
    finally:
        noisy.disabled = before
