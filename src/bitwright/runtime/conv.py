"""Convolutions along one and two axes on packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bitwright.formats import QuantizedTensor
from bitwright.runtime.geometry import ConvGeometry
from bitwright.runtime.module import PLAIN, Options, QuantModule


class QuantConv2d(QuantModule):
    """A convolution of ``x[batch, channels, height, width]`` with a weight stored as ``[out, in / groups * kh * kw]``.

    Or, where only the input is quantized, with a float parameter ``weight[out, in / groups, kh, kw]``.
    """

    op = "conv2d"

    def __init__(
        self,
        weight: Mapping[str, Tensor] | None,
        meta: Mapping[str, Any] | None,
        shape: tuple[int, int],
        bias: Tensor | None,
        geometry: ConvGeometry,
        *,
        options: Options = PLAIN,
    ) -> None:
        self.geometry = geometry
        super().__init__(weight, meta, shape, bias, options=options)

    @property
    def stride(self) -> tuple[int, int]:
        """As of the float layer; some networks pad by themselves and ask for it."""
        return self.geometry.stride

    @property
    def kernel_size(self) -> tuple[int, int]:
        """As of the float layer."""
        return self.geometry.kernel_size

    @property
    def dilation(self) -> tuple[int, int]:
        """As of the float layer."""
        return self.geometry.dilation

    @property
    def padding(self) -> tuple[int, int] | str:
        """As of the float layer."""
        return self.geometry.padding

    @property
    def groups(self) -> int:
        """As of the float layer."""
        return self.geometry.groups

    @classmethod
    def from_quantized(
        cls, weight: QuantizedTensor, bias: Tensor | None, geometry: ConvGeometry, *, options: Options = PLAIN
    ) -> QuantConv2d:
        """Make the module of a flattened quantized weight; ``geometry`` is ``ConvGeometry.of(float module)``."""
        tensors, meta = weight.to_tensors()
        return cls(tensors, meta, weight.shape, bias, geometry, options=options)

    @classmethod
    def from_float(
        cls, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, *, options: Options = PLAIN
    ) -> QuantConv2d:
        """Make a module whose input alone is quantized; ``weight`` is ``[out, in / groups, kh, kw]``."""
        shape = (weight.shape[0], weight[0].numel())
        made = cls(None, None, shape, bias, geometry, options=replace(options, dtype=weight.dtype))
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made

    def replaced_weight(self) -> Tensor:
        """The float weight ``[out, in / groups, kh, kw]``."""
        return super().replaced_weight().view(self.shape[0], -1, *self.geometry.kernel_size)

    def input_features(self) -> int:
        """Input channels (the weight's columns cover one group's kernel windows)."""
        height, width = self.geometry.kernel_size
        return self.shape[1] // (height * width) * self.geometry.groups

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, out, height', width']`` in the dtype of x."""
        if self.online:
            x = self.prepare_input(x.movedim(-3, -1)).movedim(-1, -3)
        quantizer = self.quantizer()
        if self.weight_meta is None:
            flat = self.weight.to(x.dtype).flatten(1)
            return self.geometry.convolve(self.geometry.quantized(x, quantizer), flat, self.bias)
        rows = x.numel() // max(x.shape[-3], 1)
        choice, prepared = self.kernel_for(x, x.dtype, rows)
        y: Tensor = choice.kernel.run(x, prepared, self.bias, quantizer, self.geometry)
        return y


class QuantConv1d(QuantConv2d):
    """A convolution of ``x[batch, channels, length]``: one along two axes whose kernel is ``1 x k``.

    The weight is stored as ``[out, in / groups * k]``, or ``[out, in / groups, k]`` where only the input is quantized.
    """

    @property
    def stride(self) -> tuple[int, ...]:  # type: ignore[override]
        """As of the float layer."""
        return self.geometry.stride[1:]

    @property
    def kernel_size(self) -> tuple[int, ...]:  # type: ignore[override]
        """As of the float layer."""
        return self.geometry.kernel_size[1:]

    @property
    def dilation(self) -> tuple[int, ...]:  # type: ignore[override]
        """As of the float layer."""
        return self.geometry.dilation[1:]

    @property
    def padding(self) -> tuple[int, ...] | str:  # type: ignore[override]
        """As of the float layer."""
        padding = self.geometry.padding
        return padding if isinstance(padding, str) else padding[1:]

    def replaced_weight(self) -> Tensor:
        """The float weight ``[out, in / groups, k]``."""
        return super().replaced_weight().squeeze(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, out, length']`` in the dtype of x."""
        return super().forward(x.unsqueeze(-2)).squeeze(-2)
