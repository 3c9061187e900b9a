"""Linear layers on packed weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor
from bitwright.runtime.kernels.linear import dense
from bitwright.runtime.module import PLAIN, Options, QuantModule


class QuantLinear(QuantModule):
    """``y = quantizer(online(x)) @ w_hat.T + bias`` for ``x[..., in]``, in the dtype of x.

    The weight is packed, or float where only the input is quantized (``weight`` is then a parameter ``[out, in]``, or
    ``[in, out]`` when ``transposed``, the layout of the module that was replaced).
    """

    op = "linear"
    transposed = False

    @classmethod
    def from_quantized(
        cls, weight: QuantizedTensor, bias: Tensor | None = None, *, options: Options = PLAIN, transposed: bool = False
    ) -> QuantLinear:
        """Make the module of a quantized weight ``[out, in]``.

        ``transposed`` records that the float module kept ``[in, out]``; the quantized weight is ``[out, in]`` anyway.
        """
        tensors, meta = weight.to_tensors()
        made = cls(tensors, meta, weight.shape, bias, options=options)
        made.transposed = transposed
        return made

    @classmethod
    def from_float(
        cls, weight: Tensor, bias: Tensor | None = None, *, options: Options = PLAIN, transposed: bool = False
    ) -> QuantLinear:
        """Make a module whose input alone is quantized; ``weight`` is stored as given (see ``transposed``)."""
        shape = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight.shape[1])
        made = cls(None, None, shape, bias, options=replace(options, dtype=weight.dtype))
        made.transposed = transposed
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made

    def replaced_weight(self) -> Tensor:
        """The float weight ``[out, in]``, or ``[in, out]`` where the float module kept that."""
        weight = super().replaced_weight()
        return weight.T if self.transposed else weight

    @property
    def in_features(self) -> int:
        """Input channels."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Output channels."""
        return self.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., out]``.

        Raises:
            InputError: if the last axis of ``x`` is not ``in``.
            UnsupportedError: if no kernel serves the dtype or device.
        """
        if x.shape[-1] != self.shape[1]:
            raise InputError(f"the layer takes {self.shape[1]} channels, not {x.shape[-1]}; check its input")
        x = self.prepare_input(x)
        quantizer = self.quantizer()
        if self.weight_meta is None:
            weight = self.weight.T if self.transposed else self.weight
            return dense.run(x, weight.to(x.dtype), self.bias, quantizer)
        rows = x.numel() // self.shape[1]
        choice, prepared = self.kernel_for(x, x.dtype, rows)
        y: Tensor = choice.kernel.run(x, prepared, self.bias, quantizer)
        return y
