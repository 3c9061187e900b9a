"""Tables of products (DeepGEMM, arXiv:2304.09049): 2-bit weights times 2-bit inputs by byte shuffles.

Sixteen products are all that two codes of 2 bits can give, so the levels of both sides may be anything whose products
are whole numbers of 16 bits: evenly spaced ones or not. An input with evenly spaced levels is coded by the kernel, one
with a table by the recipe's own quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bitwright.formats import CodebookGrid, Codes, IntGrid, QuantizedTensor, parse
from bitwright.formats.format import Format
from bitwright.formats.granularity import Token
from bitwright.native.product import Coding, Product, Way, multiply
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native, prepared, variants
from bitwright.runtime.kernels.linear.catalogue import measured
from bitwright.runtime.kernels.linear.coding import coding_of, misfit
from bitwright.runtime.kernels.linear.variants import CodedProduct
from bitwright.runtime.weight import PackedWeight

_LARGEST = (1 << 15) - 1
_CODES = torch.arange(4, dtype=torch.int32)


def _integers(levels: Tensor) -> tuple[Tensor, float] | None:
    """Levels of four codes as whole multiples of a step, or ``None``; missing codes are zero."""
    found = prepared.integer_levels(levels)
    if not found.exact or levels.numel() > 4:
        return None
    return torch.nn.functional.pad(found.integers, (0, 4 - levels.numel())).to(torch.int32), found.step


def _weight_levels(fmt: Format) -> tuple[Tensor, float] | None:
    """Levels of a weight's codes; those with zero points of their own are codes."""
    if isinstance(fmt.grid, IntGrid):
        return _CODES + (0 if fmt.zero is not None else int(fmt.grid.min_level)), 1.0
    return None if isinstance(fmt.grid, CodebookGrid) else _integers(fmt.grid.levels())


def table_of(weights: Tensor, inputs: Tensor) -> Tensor:
    """Return the products int32 ``[16]``, entry ``4 a + w`` for codes a of an input and w of a weight."""
    return (inputs.view(4, 1) * weights.view(1, 4)).flatten().to(torch.int32)


def products_product(weight: QuantizedTensor, inputs: Tensor) -> Product:
    """A product with a table for whole ``inputs[4]``, the levels of the input's codes."""
    term = weight.terms[0]
    assert isinstance(term, Codes)
    found = _weight_levels(term.format)
    assert found is not None
    levels, step = found
    if isinstance(term.format.grid, IntGrid):
        made = replace(native.native_weight(term), constant_zero=0)
    else:
        block, per_scale = variants.blocks(term)
        scale = native.smallest(native.by_row(term, term.scale.effective) * step)
        made = prepared.native_codes(term.codes, 2, block, per_scale, scale)
    return Product(Way.PRODUCTS, made, levels=table_of(levels, inputs), terms=prepared.extra_terms(weight))


def input_levels(fmt: Format) -> tuple[Tensor, float] | str:
    """Whole levels of an input's codes and their step, or why there are none."""
    if fmt.grid.bits != 2:
        return f"looks up products with inputs of 2 bits, not of {fmt.grid.bits}"
    if isinstance(fmt.grid, IntGrid):
        return _CODES + int(fmt.grid.min_level), 1.0
    floats = fmt.scale.storage == "fp32" and isinstance(fmt.granularity, Token)
    if isinstance(fmt.grid, CodebookGrid) or not floats:
        return f"takes tables of inputs with an fp32 scale for every token, not {fmt}"
    return _integers(fmt.grid.levels()) or f"the levels of {fmt.grid.text} are no whole multiples of a step"


def misfits(request: Request) -> str | None:
    """Why a request has no table of products, whether or not that would be the fastest way."""
    reason = native.refuses(request)
    if reason is not None:
        return reason
    if request.input is None:
        return "multiplies the codes of a quantized input; this input is float"
    fmt, given = parse(request.format), parse(request.input)
    if fmt.grid.bits != 2 or isinstance(fmt.grid, CodebookGrid):
        return "looks up products of weights of 2 bits with one table for all rows"
    inputs, weights = input_levels(given), _weight_levels(fmt)
    if isinstance(inputs, str):
        return inputs
    if weights is None:
        return f"the levels of {fmt.grid.text} are no whole multiples of a step"
    if int(table_of(weights[0], inputs[0]).abs().max()) > _LARGEST:
        return "the products leave 16 bits"
    if isinstance(given.grid, IntGrid):
        found = native.geometry(fmt, (request.shape[0], request.shape[1]))
        coding = coding_of(given, request.shape[1])
        assert not isinstance(found, str)
        return coding if isinstance(coding, str) else misfit(coding, found[0], request.shape[1])
    return None if fmt.zero is None else "multiplies zero points of weights with evenly spaced inputs"


def refuses(request: Request) -> str | None:
    """Why products are not looked up."""
    even = parse(request.input or "int8 token").grid
    key = "w2a2" if isinstance(even, IntGrid) else "tables of both sides"
    return misfits(request) or measured(request, "native-products", key)


@dataclass(frozen=True, eq=False)
class ByInput:
    """The weight, and a product for each format of inputs that came."""

    packed: PackedWeight
    _made: dict[str, CodedProduct] = field(default_factory=dict)

    def product(self, fmt: Format) -> CodedProduct:
        """The product for inputs of a format."""
        found = self._made.get(str(fmt))
        if found is None:
            levels = input_levels(fmt)
            assert not isinstance(levels, str)
            found = CodedProduct(products_product(self.packed.unpack(), levels[0]), self.packed)
            self._made[str(fmt)] = found
        return found


def prepare(packed: PackedWeight, dtype: torch.dtype) -> ByInput:
    """The table depends on the input's levels, so it is made with the first input."""
    del dtype
    return ByInput(packed)


def run(x: Tensor, weight: ByInput, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ w.T + bias`` from the quantizer's codes."""
    assert quantizer is not None
    product = weight.product(quantizer.format)
    if isinstance(quantizer.format.grid, IntGrid):
        return variants.run_coded(x, product, bias, quantizer)
    return _run_table(x, product.product, bias, quantizer.format)


def _run_table(x: Tensor, product: Product, bias: Tensor | None, fmt: Format) -> Tensor:
    """Codes by the format's own rounding, products of codes, then each token's scale."""
    rows = x.reshape(-1, x.shape[-1]).float()
    scale, _ = fmt.scale_from_range(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True))
    codes = fmt.encode(rows.unsqueeze(1), scale).squeeze(1).float()
    coding = Coding(rows.shape[-1], 0, 3, 1.5, given=True)
    levels = input_levels(fmt)
    assert not isinstance(levels, str)
    y = multiply(codes, product, None, coding) * (scale * levels[1])
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(*x.shape[:-1], -1)


KERNEL = Kernel(
    name="linear/native-products", op="linear", priority=72, devices=frozenset({"cpu"}),
    forms=variants.forms("affine", "table"), why="looks products of 2-bit weights and inputs up, measured to be faster",
    prepare=prepare, run=run, refuses=refuses,
)  # fmt: skip
