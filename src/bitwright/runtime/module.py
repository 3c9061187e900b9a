"""What the quantized modules share: packed buffers that keep their types, the input's quantizer, the chosen kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Choice, Request, Table
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.online import online_entries, run_online
from bitwright.runtime.weight import PackedWeight
from bitwright.stages.transforms import OnlineOperation


@dataclass(frozen=True)
class Served:
    """Which kernel serves a module, and why."""

    path: str
    kernel: str
    why: str
    passed_over: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Options:
    """How a module runs, beside its weight.

    Attributes:
        input: quantizer of its input. online: operations that its input goes through before that.
        cache_weights: keep one dequantized copy of the weight: fast on small models, large on others.
        exact: activations are multiplied as they are; otherwise kernels may round them to 8 bits.
        table: kernels to choose from.
        dtype: of the float module that is replaced.
    """

    input: ActivationQuantizer | None = None
    online: Sequence[OnlineOperation] = ()
    cache_weights: bool = False
    exact: bool = True
    table: Table = TABLE
    dtype: torch.dtype = torch.float32


PLAIN = Options()


class QuantModule(nn.Module):
    """Base of :class:`QuantLinear`, :class:`QuantConv2d` and :class:`QuantEmbedding`.

    The packed tensors of the weight are buffers named ``weight_<key>`` (dots become underscores), static input
    parameters ``input_scale`` and ``input_zero``. Moving to another device moves them; changing the dtype of the model
    (``model.half()``) leaves their types alone, because a rounded scale would be another model. Reading ``weight``
    gives the float weight in the layout of the module that was replaced, made new each time, so that a network whose
    own code reads it still runs.
    """

    op = ""
    input_scale: Tensor | None
    input_zero: Tensor | None
    weight: Tensor

    def __init__(
        self,
        weight: Mapping[str, Tensor] | None,
        meta: Mapping[str, Any] | None,
        shape: tuple[int, int],
        bias: Tensor | None = None,
        *,
        options: Options = PLAIN,
    ) -> None:
        """Take packed tensors (by their keys in ``QuantizedTensor.to_tensors``) and their ``meta``.

        ``weight`` and ``meta`` may be ``None`` in a module that quantizes its input only; it then holds a float
        parameter ``weight``, which the subclass makes.

        Raises:
            InputError: if the parts do not fit together.
        """
        super().__init__()
        self.shape = shape
        self.weight_meta = None if meta is None else dict(meta)
        self.weight_keys = tuple(weight or ())
        for key, tensor in (weight or {}).items():
            self.register_buffer(buffer_name(key), tensor)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        quantizer = options.input
        self.input_format = None if quantizer is None else quantizer.format
        self.register_buffer("input_scale", None if quantizer is None else quantizer.scale)
        self.register_buffer("input_zero", None if quantizer is None else quantizer.zero)
        self.online = tuple(options.online)
        self.cache_weights = options.cache_weights
        self.exact = options.exact
        self.table = options.table
        self.dtype = options.dtype
        self._served: dict[tuple[str, torch.dtype, int | None], tuple[Choice, Any]] = {}
        features = self.input_features()
        scale = self.input_scale
        if scale is not None and scale.numel() not in (1, features):
            raise InputError(f"{scale.numel()} input scales do not fit {features} channels; give 1 or {features}")

    # -- what it holds ------------------------------------------------------------------------------------------

    def packed(self) -> PackedWeight | None:
        """The packed weight, or ``None`` where the weight is float."""
        if self.weight_meta is None:
            return None
        tensors = {key: self.get_buffer(buffer_name(key)) for key in self.weight_keys}
        return PackedWeight(tensors, self.weight_meta, self.shape, normal_form(self.weight_meta), self._format_text())

    def quantized(self) -> QuantizedTensor | None:
        """The weight as a quantized tensor, or ``None`` where it is float."""
        packed = self.packed()
        return None if packed is None else packed.unpack()

    def quantizer(self) -> ActivationQuantizer | None:
        """The input's quantizer, or ``None``."""
        if self.input_format is None:
            return None
        return ActivationQuantizer(self.input_format, self.input_scale, self.input_zero)

    def meta(self) -> dict[str, Any]:
        """The module's entry of a checkpoint's manifest."""
        return {
            "kind": {"linear": "linear", "conv2d": "conv", "embedding": "embedding"}[self.op],
            "transposed": bool(getattr(self, "transposed", False)),
            "weight": self.weight_meta,
            "input": None if self.input_format is None else {"format": str(self.input_format)},
            "online": online_entries(self.online),
            "bias": self.bias is not None,
        }

    def stored_tensors(self) -> dict[str, Tensor]:
        """Tensors to write into a checkpoint, by name relative to the module."""
        return dict(self.state_dict())

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``[out, in]`` as floats."""
        packed = self.packed()
        if packed is None:
            return self.get_parameter("weight").to(dtype)
        return packed.dequantize(dtype)

    def replaced_weight(self) -> Tensor:
        """The float weight in the shape and dtype that the replaced module had."""
        if any(tensor.is_meta for tensor in self.buffers()):
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        return self.dequantized(self.dtype)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.__dict__.get("weight_meta") is not None:
            return self.replaced_weight()
        return super().__getattr__(name)

    # -- running ------------------------------------------------------------------------------------------------

    def request(self, dtype: torch.dtype, rows: int | None, device: torch.device) -> Request:
        """What this module asks of a kernel."""
        meta = self.weight_meta
        return Request(
            op=self.op,
            form="float" if meta is None else normal_form(meta),
            device=device.type,
            dtype=dtype,
            shape=self.shape,
            format=self._format_text(),
            rows=rows,
            input=None if self.input_format is None else str(self.input_format),
            keep_dense=self.cache_weights,
            exact=self.exact,
        )

    def served(self, dtype: torch.dtype = torch.float32, rows: int | None = None) -> Choice:
        """The kernel that serves inputs of this dtype and number of tokens.

        Raises:
            UnsupportedError: if none does.
        """
        return self.table.choose(self.request(dtype, rows, self._device()))

    def prepare_input(self, x: Tensor) -> Tensor:
        """Run the online operations, in order."""
        return run_online(x, self.online, self.table)

    def kernel_for(self, x: Tensor, dtype: torch.dtype, rows: int) -> tuple[Choice, Any]:
        """The kernel for this call and its prepared weight; prepared once per kernel and dtype.

        Kernels are told ``rows`` rounded up to a power of two, so that there are few choices to remember. A graph that
        is compiled or exported holds the kernel for any number of rows, where a call before has made it ready.
        """
        if torch.compiler.is_compiling():
            found = self._served.get((x.device.type, dtype, None))
            if found is not None:
                return found
        rows = 1 << max(rows - 1, 0).bit_length()
        found = self._served.get((x.device.type, dtype, rows))
        if found is None:
            choice = self.table.choose(self.request(dtype, rows, x.device))
            found = choice, self._prepared(choice, dtype)
            self._served[x.device.type, dtype, rows] = found
            if choice.kernel.supports(self.request(dtype, None, x.device)):
                self._served[x.device.type, dtype, None] = found
        return found

    def _prepared(self, choice: Choice, dtype: torch.dtype) -> Any:
        for (_, other_dtype, _), (other, prepared) in self._served.items():
            if other.kernel.name == choice.kernel.name and other_dtype == dtype:
                return prepared
        packed = self.packed()
        assert packed is not None
        return choice.kernel.prepare(packed, dtype)

    def prepared_by(self, choice: Choice, dtype: torch.dtype) -> Any:
        """What a kernel prepares of the weight; the same object as long as it is kept."""
        return self._prepared(choice, dtype)

    def keep_prepared(self, choice: Choice, dtype: torch.dtype, prepared: Any) -> None:
        """Take what a kernel prepared elsewhere (in an arena that many weights share) in the place of its own."""
        for key, (other, _) in tuple(self._served.items()):
            if other.kernel.name == choice.kernel.name and key[1] == dtype:
                self._served[key] = choice, prepared
        if not self.cache_weights:
            self._served[("cpu", dtype, 1)] = choice, prepared

    def forget_prepared(self) -> None:
        """Drop what kernels prepared; it is made again at the next call."""
        self._served.clear()

    # -- moving, loading ----------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.forget_prepared()
        # The dtype that results and the float weight have follows the model, as the replaced module's would.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        kept = {name: self._buffers.pop(name) for name in tuple(self._buffers) if self._keeps_type(name)}
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in kept.items():
                self._buffers[name] = None if tensor is None else _moved(tensor, fn)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.forget_prepared()
        super()._load_from_state_dict(*args)  # type: ignore[no-untyped-call]

    def _keeps_type(self, name: str) -> bool:
        return name.startswith(("weight_", "input_"))

    def _device(self) -> torch.device:
        for tensor in (*self.buffers(), *self.parameters()):
            return tensor.device
        return torch.device("cpu")

    def _format_text(self) -> str:
        return "" if self.weight_meta is None else first_format(self.weight_meta)

    def input_features(self) -> int:
        """Channels of the input."""
        return self.shape[1]

    def extra_repr(self) -> str:
        """Shape, weight and input format."""
        fmt = self._format_text() or "float"
        text = f"{self.shape[1]} -> {self.shape[0]}, weight={fmt!r}, bias={self.bias is not None}"
        if self.input_format is not None:
            text += f", input={str(self.input_format)!r}"
        if self.online:
            text += f", online={[o.kind for o in self.online]}"
        return text


def buffer_name(key: str) -> str:
    """Name of the buffer (and of the tensor in a file) of a key of ``QuantizedTensor.to_tensors``."""
    return "weight_" + key.replace(".", "_")


def first_format(meta: Mapping[str, Any]) -> str:
    """Text of the format of the first coded term."""
    return next((str(term["format"]) for term in meta["terms"] if term["kind"] == "codes"), "")


def normal_form(meta: Mapping[str, Any]) -> str:
    """``affine``, ``table``, ``codebook``, ``affine+sparse`` ..., read off the metadata without the tensors."""
    kinds = []
    for term in meta["terms"]:
        kind = str(term["kind"])
        if kind == "codes":
            kind = parse(str(term["format"])).grid.kind
        kinds.append(kind)
    return "+".join(kinds)


def describe(model: nn.Module, dtype: torch.dtype = torch.float32, rows: int | None = None) -> tuple[Served, ...]:
    """Say which kernel serves every quantized module under ``model`` for inputs of ``dtype`` and ``rows`` tokens.

    Raises:
        UnsupportedError: if some module has no kernel.
    """
    found = []
    for path, module in model.named_modules():
        if isinstance(module, QuantModule) and module.weight_meta is not None:
            choice = module.served(dtype, rows)
            found.append(Served(path, choice.kernel.name, choice.why, choice.passed_over))
    return tuple(found)


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a move to the bytes of a tensor, so that a change of dtype cannot reach it."""
    flat = tensor.reshape(1) if tensor.dim() == 0 else tensor
    moved = fn(flat.contiguous().view(torch.uint8)).view(tensor.dtype)
    return moved.reshape(tensor.shape)
