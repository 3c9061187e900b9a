"""Experts that a model keeps in one three-dimensional parameter, opened into one layer per expert.

A fused parameter ``[experts, out, in]`` (or ``[experts, in, out]``) is replaced by an :class:`ExpertStack`, a module of
the same name whose children ``0, 1, ...`` are linear layers. Some libraries keep it flat, ``[experts * out, in]``, and
view it as a stack when they use it. The model's own code stays: what it does with the parameter (``linear(x, W[e])``,
``x @ W[e]``, ``bmm(x, W)``) is recognised by torch's function protocol and becomes a call of the expert's layer, so
that hooks, quantized layers, input quantizers and online operations work per expert as they do everywhere else.
Whatever is not recognised gets the dense tensor, made new each time: slower, never wrong for weights that are quantized
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bitwright.errors import InputError

_MATMUL = frozenset({"matmul", "__matmul__", "mm", "bmm"})
_SAME = frozenset({"to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone", "detach"})


class ExpertLinear(nn.Module):
    """One expert of a fused parameter: ``y = x @ Wᵀ``; ``weight`` rests as in the parameter.

    That is ``[out, in]``, or ``[in, out]`` where ``transposed``. A bias (only a correction makes one) is added.
    """

    def __init__(self, weight: Tensor, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., out]`` in the dtype of x."""
        weight = self.weight.to(x.dtype)
        if not self.transposed:
            return functional.linear(x, weight, self.bias)
        y = torch.matmul(x, weight)
        return y if self.bias is None else y + self.bias


class ExpertWeight:
    """What ``W[e]`` gives: stands for one expert's matrix in a product, and is its dense tensor everywhere else."""

    def __init__(self, expert: nn.Module, stored_transposed: bool, flipped: bool = False) -> None:
        self.expert = expert
        self.stored_transposed = stored_transposed
        self.flipped = flipped

    @property
    def is_input_output(self) -> bool:
        """Whether the matrix, as it is held here, is ``[in, out]``."""
        return self.stored_transposed != self.flipped

    def dense(self) -> Tensor:
        """The matrix as a tensor."""
        weight: Tensor = self.expert.weight  # type: ignore[assignment]
        return weight.t() if self.flipped else weight

    def turned(self) -> ExpertWeight:
        """Its transpose."""
        return ExpertWeight(self.expert, self.stored_transposed, not self.flipped)

    def product(self, x: Tensor) -> Tensor:
        """The expert's layer on ``x``."""
        y: Tensor = self.expert(x)
        return y

    @property
    def T(self) -> ExpertWeight:
        """Its transpose."""
        return self.turned()

    mT = T

    def t(self) -> ExpertWeight:
        """Its transpose."""
        return self.turned()

    def transpose(self, first: int, second: int) -> ExpertWeight:
        """Its transpose (or itself)."""
        return self if first % 2 == second % 2 else self.turned()

    def __getitem__(self, index: Any) -> Tensor:
        return self.dense()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "data":
            return self
        if name in _SAME:
            return lambda *args, **kwargs: self
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return expert_product(func, args, kwargs or {})


class ExpertStack(nn.Module):
    """All experts of a fused parameter as layers ``0, 1, ...``; stands where the parameter stood.

    Raises:
        InputError: for an index outside of the experts.
    """

    def __init__(self, experts: Iterable[nn.Module], transposed: bool, flat: bool = False) -> None:
        super().__init__()
        for number, expert in enumerate(experts):
            self.add_module(str(number), expert)
        self.transposed = transposed
        self.flat = flat  # the parameter has two axes, the experts one below the other
        # transformers must not draw new values for what it finds here in place of a parameter.
        self._is_hf_initialized = True

    @classmethod
    def of(cls, parameter: Tensor, transposed: bool, experts: int) -> ExpertStack:
        """Open a parameter; the layers look into its memory."""
        flat = parameter.dim() == 2
        stack = parameter.detach().unflatten(0, (experts, -1)) if flat else parameter.detach()
        return cls((ExpertLinear(stack[e], transposed) for e in range(experts)), transposed, flat)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[ExpertWeight]:
        return (self._expert(number) for number in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        one = isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool)
        if one and not self.flat:
            return self._expert(int(index))
        return self.dense()[index]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not hasattr(Tensor, name):
                raise
        if name == "dtype":
            return self._weight(0).dtype
        if name == "device":
            return self._weight(0).device
        if name == "shape":
            rows, columns = self._weight(0).shape
            return torch.Size((len(self) * rows, columns) if self.flat else (len(self), rows, columns))
        if name in ("ndim", "dim"):
            axes = 2 if self.flat else 3
            return axes if name == "ndim" else (lambda: axes)
        if name in ("view", "reshape") and self.flat:
            return self._viewed
        if name == "data" or (name == "mT" and not self.flat):
            return self if name == "data" else TurnedStack(self)
        return getattr(self.dense(), name)

    def _viewed(self, *shape: Any) -> Any:
        """A flat parameter viewed as a stack of its matrices, or a dense tensor in another shape."""
        sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        rows, columns = self._weight(0).shape
        if len(sizes) == 3 and sizes[0] in (-1, len(self)) and sizes[1] in (-1, rows) and sizes[2] in (-1, columns):
            return ExpertStack(self.children(), self.transposed)
        return self.dense().reshape(sizes)

    def transpose(self, first: int, second: int) -> Any:
        """The stack with its two matrix axes exchanged; other axes give a dense tensor."""
        if self.flat:
            return self.dense().transpose(first, second)
        return TurnedStack(self) if {first % 3, second % 3} == {1, 2} else self.dense().transpose(first, second)

    def dense(self) -> Tensor:
        """All experts as one tensor, as the parameter was."""
        matrices = [self._weight(number) for number in range(len(self))]
        return torch.cat(matrices) if self.flat else torch.stack(matrices)

    def _weight(self, number: int) -> Tensor:
        weight: Tensor = self._modules[str(number)].weight  # type: ignore[union-attr, assignment]
        return weight

    def _expert(self, number: int, flipped: bool = False) -> ExpertWeight:
        expert = self._modules.get(str(number + len(self) if number < 0 else number))
        if expert is None:
            raise InputError(f"expert {number} of {len(self)} was asked for; check the router")
        return ExpertWeight(expert, self.transposed, flipped)

    def products(self, x: Tensor, flipped: bool) -> Tensor | None:
        """``bmm(x[experts, tokens, in], W)`` by the experts' layers; None where the shapes say something else."""
        if self.flat or x.ndim != 3 or x.shape[0] != len(self) or self.transposed == flipped:
            return None
        return torch.stack([self._expert(e, flipped).product(x[e]) for e in range(len(self))])

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return expert_product(func, args, kwargs or {})


class TurnedStack:
    """A stack whose matrices are read transposed."""

    def __init__(self, stack: ExpertStack) -> None:
        self.stack = stack

    def __getitem__(self, index: Any) -> Any:
        found = self.stack[index]
        return found.turned() if isinstance(found, ExpertWeight) else found.transpose(-1, -2)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "stack":
            raise AttributeError(name)
        return getattr(self.stack.dense().transpose(1, 2), name)

    def dense(self) -> Tensor:
        """All matrices as one tensor."""
        return self.stack.dense().transpose(1, 2)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return expert_product(func, args, kwargs or {})


_STANDINS = (ExpertWeight, ExpertStack, TurnedStack)


def reads_expert(args: Iterable[Any]) -> bool:
    """Whether an operation has an expert's matrix among its arguments."""
    return any(isinstance(arg, _STANDINS) for arg in args)


def product_under(
    mode: TorchFunctionMode, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """:func:`expert_product` as a torch function mode must call it: with itself active.

    While a mode handles an operation it is switched off, but what happens inside the expert's layer are operations
    that it has to see.
    """
    TorchFunctionMode.__enter__(mode)
    try:
        return expert_product(func, args, kwargs)
    finally:
        TorchFunctionMode.__exit__(mode, None, None, None)


def expert_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The product that ``func`` computes, by the expert's own layer where it is one."""
    name = getattr(func, "__name__", "")
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    weight = given.get("weight")
    if func is functional.linear and isinstance(weight, ExpertWeight) and not weight.is_input_output:
        y, bias = weight.product(given["input"]), given.get("bias")
        return y if bias is None else y + bias
    if name in _MATMUL and len(args) == 2 and not kwargs and isinstance(args[0], Tensor):
        right = args[1]
        if isinstance(right, ExpertWeight) and right.is_input_output:
            return right.product(args[0])
        if isinstance(right, ExpertStack | TurnedStack):
            turned = isinstance(right, TurnedStack)
            found = (right.stack if isinstance(right, TurnedStack) else right).products(args[0], turned)
            if found is not None:
                return found
    third = args[2] if name == "addmm" and len(args) == 3 and not kwargs else None
    if isinstance(third, ExpertWeight) and third.is_input_output:
        return args[0] + third.product(args[1])
    return func(*_dense(args), **_dense(kwargs))


def _dense(value: Any) -> Any:
    if isinstance(value, _STANDINS):
        return value.dense()
    if type(value) in {list, tuple}:
        return type(value)(_dense(item) for item in value)
    if type(value) is dict:
        return {key: _dense(item) for key, item in value.items()}
    return value
