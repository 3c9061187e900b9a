"""Record one run of a model: every module call and every torch operation with the identity of its tensors.

Module hooks give the calls, a torch function mode gives the operations (it also sees adds, products, attention and
views, which hooks do not). No data is kept. Two tensors have the same ``key`` when they are the same values in the
same memory: equal storage, offset, elements and version, whatever their shape. Storages are held by weak references,
so their identity cannot be reused while the run lasts although their memory is freed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from bitwright.models.calling import call_module
from bitwright.models.expert_stack import product_under, reads_expert
from bitwright.models.materialise import materialised
from bitwright.models.model import Model

Slot = int | str

# Operations that read no value of their operand, only its shape and dtype.
_SHAPE_ONLY = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "new_tensor",
})  # fmt: skip
# Operations that read the values of their first operand and the shape or dtype of the second.
_LIKE_ANOTHER = frozenset({"type_as", "expand_as", "view_as", "reshape_as", "to"})
Extent = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Ref:
    """Identity and geometry of a tensor: ``key`` names its values, ``storage`` its memory."""

    key: int
    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    floating: bool


@dataclass(frozen=True)
class Op:
    """One torch operation: argument slots with tensors, outputs (also tensors changed in place), and its module."""

    index: int
    name: str
    inputs: tuple[tuple[Slot, Ref], ...]
    outputs: tuple[Ref, ...]
    scope: str
    parameters: tuple[tuple[Slot, str], ...] = ()
    scalars: tuple[tuple[Slot, Any], ...] = ()

    def reads(self, key: int) -> bool:
        """Whether the operation reads the values ``key``."""
        return any(ref.key == key for _, ref in self.inputs)


@dataclass
class ModuleCall:
    """One call of a module: its operations are ``enter <= index < exit``.

    ``items`` counts the items of an output tuple (0: the output is a tensor; -1: anything else, a mapping for one);
    ``item_keys`` are their keys (-1: no tensor).
    """

    index: int
    path: str
    enter: int
    inputs: tuple[tuple[Slot, Ref], ...]
    parent: int
    exit: int = -1
    items: int = 0
    outputs: tuple[Ref, ...] = ()
    item_keys: tuple[int, ...] = ()

    @property
    def hidden(self) -> Ref | None:
        """The first floating tensor among the arguments."""
        return next((ref for _, ref in self.inputs if ref.floating and ref.shape), None)

    @property
    def result(self) -> Ref | None:
        """The first floating tensor of the output."""
        return next((ref for ref in self.outputs if ref.floating and ref.shape), None)


@dataclass
class Run:
    """A recorded run. ``constants`` are keys of parameters and buffers (by name)."""

    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    constants: dict[int, str] = field(default_factory=dict)
    outputs: tuple[Ref, ...] = ()
    inputs: tuple[Ref, ...] = ()
    result: Any = None
    readers: dict[int, list[int]] = field(default_factory=dict)
    producer: dict[int, int] = field(default_factory=dict)

    def finish(self) -> None:
        """Index who reads and who makes every value."""
        for op in self.ops:
            seen = {ref.key for _, ref in op.inputs}
            for key in seen:
                self.readers.setdefault(key, []).append(op.index)
            for ref in op.outputs:
                if ref.key not in seen:
                    self.producer.setdefault(ref.key, op.index)

    def calls_of(self, path: str) -> list[ModuleCall]:
        """All calls of the module at ``path``."""
        return [call for call in self.calls if call.path == path]


def record_run(model: Model, example: Any) -> Run:
    """Run ``model`` once on ``example`` and record it (no gradients; streamed parameters are read when used)."""
    with materialised(model):
        return record_under(model.module, example)


def record_under(module: nn.Module, example: Any) -> Run:
    """Run and record a module under whatever torch function mode is active outside."""
    recorder = _Recorder(module)
    with torch.no_grad(), recorder:
        result = call_module(module, example)
        recorder.run.outputs = tuple(recorder.ref(t) for t in flat_tensors(result))
        recorder.run.inputs = tuple(recorder.ref(t) for t in flat_tensors(example))
    recorder.run.result = result
    recorder.run.finish()
    return recorder.run


def flat_tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    for _, tensor in _flat(value, None):
        yield tensor


def _flat(value: Any, slot: Slot | None) -> Iterator[tuple[Slot, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield (0 if slot is None else slot), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, slot if slot is not None else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, slot if slot is not None else index)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _flat(getattr(value, entry.name), slot if slot is not None else entry.name)


def _has_no_memory(tensor: torch.Tensor) -> bool:
    """Whether it stands for many tensors inside of a vmap (masks are made so); what comes out of it is plain again."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> Extent:
    """Which elements of the storage a view covers, the same for every reshape and permutation of it."""
    merged: list[tuple[int, int]] = []
    for size, step in sorted(zip(shape, stride, strict=True), key=lambda item: -item[1]):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * step:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    return tuple(merged)


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.run = Run()
        self._module = module
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._keys: dict[tuple[int, int, Extent, int], int] = {}
        self._stack: list[ModuleCall] = []
        self._handles: list[RemovableHandle] = []
        self._names: dict[int, str] = {}

    def __enter__(self) -> _Recorder:
        for name, tensor in [*self._module.named_parameters(), *self._module.named_buffers()]:
            self._names[id(tensor)] = name
            self.run.constants[self.ref(tensor).key] = name
        for path, module in self._module.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leaving, with_kwargs=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def ref(self, tensor: torch.Tensor) -> Ref:
        """Identity of a tensor."""
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            weak = StorageWeakRef(storage)
            known = self._storages.setdefault(weak.cdata, (weak, len(self._storages)))
            shape, stride = tuple(tensor.shape), tuple(tensor.stride())
            offset = int(tensor.storage_offset())
            identity = (known[1], offset, _extent(shape, stride), tensor._version)
            key = self._keys.setdefault(identity, len(self._keys))
            return Ref(key, known[1], shape, stride, offset, tensor.is_floating_point())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if reads_expert(args):
            return product_under(self, func, args, kwargs)
        tensors = [*_flat(args, None), *_flat(kwargs, None)]
        if any(_has_no_memory(tensor) for _, tensor in tensors):
            return func(*args, **kwargs)
        inputs = tuple((slot, self.ref(tensor)) for slot, tensor in tensors)
        result = func(*args, **kwargs)
        if any(_has_no_memory(tensor) for tensor in flat_tensors(result)):
            return result
        outputs = [self.ref(tensor) for tensor in flat_tensors(result)]
        changed = [self.ref(t) for (_, t), (_, before) in zip(tensors, inputs, strict=True) if self.ref(t) != before]
        if not outputs and not changed:
            return result
        parameters = tuple((slot, self._names[id(t)]) for slot, t in tensors if id(t) in self._names)
        scalars = tuple((i, a) for i, a in enumerate(args) if isinstance(a, int | float | bool))
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        scope = self._stack[-1].path if self._stack else ""
        made = dict.fromkeys([*outputs, *changed])
        inputs = () if name in _SHAPE_ONLY else inputs[:1] if name in _LIKE_ANOTHER else inputs
        read = {slot for slot, _ in inputs}
        parameters = tuple((slot, parameter) for slot, parameter in parameters if slot in read)
        self.run.ops.append(Op(len(self.run.ops), name, inputs, tuple(made), scope, parameters, scalars))
        return result

    def _entering(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = tuple((slot, self.ref(t)) for slot, t in [*_flat(args, None), *_flat(kwargs, None)])
            parent = self._stack[-1].index if self._stack else -1
            call = ModuleCall(len(self.run.calls), path, len(self.run.ops), inputs, parent)
            self.run.calls.append(call)
            self._stack.append(call)

        return hook

    def _leaving(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._stack.pop()
        call.exit = len(self.run.ops)
        call.items = len(output) if type(output) in {tuple, list} else 0 if isinstance(output, torch.Tensor) else -1
        call.outputs = tuple(self.ref(tensor) for tensor in flat_tensors(output))
        if call.items > 0:
            call.item_keys = tuple(self.ref(t).key if isinstance(t, torch.Tensor) else -1 for t in output)
