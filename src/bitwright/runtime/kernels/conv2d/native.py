"""Convolutions on the compiled products: windows become rows, a group of channels is a product of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.formats.granularity import Channel, Group
from bitwright.formats.granularity import Tensor as WholeTensor
from bitwright.formats.scales import Scale, ScaleFormat
from bitwright.native.convolution import Windows, convolve
from bitwright.native.product import Product
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.geometry import ConvGeometry
from bitwright.runtime.kernels.linear import native, variants
from bitwright.runtime.kernels.linear.coding import coding_for, coding_of
from bitwright.runtime.kernels.linear.products import ByInput
from bitwright.runtime.kernels.linear.variants import CodedProduct
from bitwright.runtime.weight import PackedWeight

# Output channels of a group from which a tile of 16 rows pays; groups of fewer (depthwise) run on floats.
_FEWEST = 8

Make = Callable[[PackedWeight], Any]


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """The packed weight and, once the number of groups is known, a product for each."""

    packed: PackedWeight
    make: Make
    _made: dict[int, list[Any]]

    def groups(self, count: int) -> list[Any]:
        """Products for ``count`` groups of output channels."""
        found = self._made.get(count)
        if found is None:
            found = [self.make(self.packed)] if count == 1 else [self.make(part) for part in _split(self.packed, count)]
            self._made[count] = found
        return found


def _split(packed: PackedWeight, count: int) -> list[PackedWeight]:
    """The rows of each group as a weight of its own (one coded term, scales by row or for all)."""
    term = packed.unpack().terms[0]
    assert isinstance(term, Codes)
    rows = term.shape[0] // count
    parts = []
    for start in range(0, term.shape[0], rows):
        parts.append(_of_rows(term, start, start + rows))
    return parts


def _of_rows(term: Codes, start: int, stop: int) -> PackedWeight:
    effective = native.by_row(term, term.scale.effective)[start:stop].contiguous()
    zero = None if term.zero is None else native.by_row(term, term.zero)[start:stop]
    codebook = None if term.codebook is None else native.by_row(term, term.codebook)[start:stop]
    spans = term.format.granularity.layout(term.shape).spans()
    granularity = Channel() if len(spans) == 1 else Group(spans[0][1] - spans[0][0])
    fmt = replace(term.format, granularity=granularity, scale=ScaleFormat("fp32"))
    part = Codes(term.codes[start:stop].contiguous(), fmt, Scale(effective, effective), zero, codebook)
    return _Rows({}, {}, part.shape, part.kind, str(fmt), QuantizedTensor((part,)))


@dataclass(frozen=True)
class _Rows(PackedWeight):
    """Rows of a weight that stay unpacked."""

    weight: QuantizedTensor

    def unpack(self) -> QuantizedTensor:
        return self.weight


def limit(request: Request) -> str | None:
    """Why no convolution of the request is served."""
    reason = native.refuses(request)
    if reason is None and "+" in request.form:
        return f"serves one coded term, not {request.form}"
    return reason


def refuses_exact(request: Request) -> str | None:
    """Why a convolution in fp32 is not served."""
    return limit(request)


def refuses_rounded(request: Request) -> str | None:
    """Why a convolution with activations in 8 bits is not served."""
    return limit(request) or (variants.refuses_int8(request) and variants.refuses_lookup(request))


def refuses_coded(request: Request) -> str | None:
    """Why a convolution of codes is not served: the input needs one scale for all positions."""
    if request.input is None:
        return "multiplies the codes of a quantized input; this input is float"
    fmt = parse(request.input)
    found = coding_of(fmt, request.shape[1])
    if isinstance(found, str):
        return found
    if not isinstance(fmt.granularity, WholeTensor):
        return f"takes one scale for the whole image, not for every {fmt.granularity.text}"
    return limit(request) or variants.refuses_coded(request)


def _border(geometry: ConvGeometry, axis: int) -> tuple[int, int]:
    if isinstance(geometry.padding, str):
        total = 0 if geometry.padding == "valid" else geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return geometry.padding[axis], geometry.padding[axis]


def run(
    x: Tensor,
    prepared: GroupedWeight,
    bias: Tensor | None,
    quantizer: ActivationQuantizer | None,
    geometry: ConvGeometry,
) -> Tensor:
    """Convolve ``x[batch, channels, height, width]``; the quantizer's values are what is multiplied."""
    return _run(geometry.quantized(x, quantizer), prepared, bias, None, geometry)


def run_coded(
    x: Tensor,
    prepared: GroupedWeight,
    bias: Tensor | None,
    quantizer: ActivationQuantizer | None,
    geometry: ConvGeometry,
) -> Tensor:
    """Convolve the quantizer's codes of ``x[batch, channels, height, width]``."""
    return _run(x, prepared, bias, quantizer, geometry)


def _run(
    x: Tensor,
    prepared: GroupedWeight,
    bias: Tensor | None,
    quantizer: ActivationQuantizer | None,
    geometry: ConvGeometry,
) -> Tensor:
    geometry.check_channels(x, prepared.packed.shape[1])
    if geometry.groups > 1 and prepared.packed.shape[0] // geometry.groups < _FEWEST:
        values = geometry.quantized(x, quantizer)
        return geometry.convolve(values, prepared.packed.dequantize(x.dtype), bias)
    single = x.dim() == 3
    x = x.unsqueeze(0) if single else x
    (above, below), (left, right) = _border(geometry, 0), _border(geometry, 1)
    if geometry.padding_mode != "zeros":
        x = functional.pad(x, [left, right, above, below], mode=geometry.padding_mode)
        above = below = left = right = 0
    out, groups = prepared.packed.shape[0], geometry.groups
    coding = None if quantizer is None else coding_for(quantizer, x)
    if coding is not None:
        coding = replace(coding, run=prepared.packed.shape[1])
    windows = Windows(
        geometry.kernel_size, geometry.stride, (above, left), (below, right), geometry.dilation, (0, 0, out)
    )
    y = x.new_empty((x.shape[0], out, *windows.positions(x.shape[2], x.shape[3])))
    for group, weight in enumerate(prepared.groups(groups)):
        product = weight
        if isinstance(product, ByInput):
            assert quantizer is not None
            product = product.product(quantizer.format)
        if isinstance(product, CodedProduct):
            assert coding is not None
            product = product.for_coding(coding)
        place = (group * (x.shape[1] // groups), group * (out // groups), out)
        rows = slice(place[1], place[1] + out // groups)
        part = None if bias is None else bias[rows]
        convolve(x, product, replace(windows, place=place), y, part, coding)
    return y[0] if single else y


def _prepare(make: Make) -> Callable[[PackedWeight, torch.dtype], GroupedWeight]:
    def prepare(packed: PackedWeight, dtype: torch.dtype) -> GroupedWeight:
        del dtype
        return GroupedWeight(packed, make, {})

    return prepare


def _rounded(packed: PackedWeight) -> Product:
    weight = packed.unpack()
    return variants.lookup_product(weight) if variants.looks_up(weight) else variants.int8_product(weight)


def kernel(name: str, priority: int, why: str, make: Make, runs: Any, refuses: Any) -> Kernel:
    """A kernel of convolutions; ``make`` prepares the weight of one group."""
    return Kernel(
        name=f"conv2d/{name}", op="conv2d", priority=priority, why=why, prepare=_prepare(make), run=runs,
        forms=frozenset({"affine", "table", "codebook"}), devices=frozenset({"cpu"}), refuses=refuses,
    )  # fmt: skip


EXACT = kernel(
    "native", 50, "reads the packed weight for blocks of windows and multiplies in fp32 (compiled)",
    lambda packed: variants.exact_product(packed.unpack()), run, refuses_exact,
)  # fmt: skip
ROUNDED = kernel(
    "native-int8", 60, "multiplies blocks of windows in integers, activations in 8 bits (compiled)",
    _rounded, run, refuses_rounded,
)  # fmt: skip
CODED = kernel(
    "native-coded", 65, "multiplies the recipe's own codes of the input with the weight's in integers (compiled)",
    lambda packed: variants.prepare_coded(packed, torch.float32), run_coded, refuses_coded,
)  # fmt: skip

KERNELS = (CODED, ROUNDED, EXACT)
"""In the order in which they are asked where they are preferred equally."""
