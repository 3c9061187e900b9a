"""Compiled products beside the plain ones: tables in bytes and in bf16, coded activations, ternary, sums of terms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bitwright.formats import CodebookGrid, Codes, IntGrid, QuantizedTensor, parse
from bitwright.formats.format import Format
from bitwright.formats.granularity import Channel
from bitwright.formats.granularity import Tensor as WholeTensor
from bitwright.native import require_library
from bitwright.native.product import Coding, Product, Terms, Way, multiply
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native, prepared
from bitwright.runtime.kernels.linear.coding import coding_for, coding_of, misfit
from bitwright.runtime.kernels.linear.preference import preferred
from bitwright.runtime.weight import PackedWeight

_ADDED = ("+sparse", "+lowrank", "+sparse+lowrank", "+lowrank+sparse")
_TERNARY_BLOCK = 160


def forms(*mains: str, alone: bool = True) -> frozenset[str]:
    """Normal forms of one coded matrix, with and (where ``alone``) without single weights and narrow factors."""
    return frozenset(main + added for main in mains for added in (*([""] if alone else []), *_ADDED))


# -- preparing ---------------------------------------------------------------------------------------------------


def _main(weight: QuantizedTensor) -> Codes:
    term = weight.terms[0]
    assert isinstance(term, Codes)
    return term


def _affine_table(fmt: Format) -> tuple[float, float] | None:
    """``(step, zero)`` of a table whose levels are evenly spaced."""
    if isinstance(fmt.grid, IntGrid | CodebookGrid):
        return None
    return prepared.affine_levels(fmt.grid.levels())


def looks_up(weight: QuantizedTensor) -> bool:
    """Whether integer products of the weight go through tables: its levels are not evenly spaced."""
    fmt = _main(weight).format
    return not isinstance(fmt.grid, IntGrid) and _affine_table(fmt) is None


def blocks(term: Codes) -> tuple[int, int]:
    """Inputs of a block, and blocks of a scale."""
    found = native.geometry(term.format, term.shape)
    assert not isinstance(found, str)
    return found


def exact_product(weight: QuantizedTensor) -> Product:
    """fp32, any codes."""
    return Product(Way.EXACT, native.native_weight(_main(weight)), terms=prepared.extra_terms(weight))


def int8_product(weight: QuantizedTensor) -> Product:
    """Integers; affine codes, or a table whose levels are evenly spaced."""
    term, terms = _main(weight), prepared.extra_terms(weight)
    if isinstance(term.format.grid, IntGrid):
        return Product(Way.INT8, native.native_weight(term), terms=terms)
    even = _affine_table(term.format)
    assert even is not None
    step, zero = even
    block, per_scale = blocks(term)
    scale = native.by_row(term, term.scale.effective) * step
    whole = zero == int(zero) and zero >= 0
    zeros = None if whole else torch.full(scale.shape, zero)
    constant = int(zero) if whole else 0
    made = prepared.native_codes(
        term.codes, term.format.grid.bits, block, per_scale, native.smallest(scale), zeros, constant
    )
    return Product(Way.INT8, made, terms=terms)


def lookup_product(weight: QuantizedTensor) -> Product:
    """Integers; levels out of byte tables."""
    term, terms = _main(weight), prepared.extra_terms(weight)
    bits = term.format.grid.bits
    block, per_scale = blocks(term)
    scale = native.by_row(term, term.scale.effective)
    if term.codebook is None:
        tables = prepared.shared_tables(term.format.grid.levels())
        made = prepared.native_codes(term.codes, bits, block, per_scale, native.smallest(scale))
        return Product(Way.LOOKUP, made, tables, terms=terms)
    tables, step = prepared.row_tables(native.by_row(term, term.codebook.float()))
    made = prepared.native_codes(prepared.by_rows(term.codes, block), bits, block, per_scale, scale * step)
    return Product(Way.LOOKUP, replace(made, shape=term.shape), tables, terms=terms)


def bf16_product(weight: QuantizedTensor) -> Product:
    """bf16; codes with one table for all rows, integers among them."""
    term, terms = _main(weight), prepared.extra_terms(weight)
    bits = term.format.grid.bits
    if isinstance(term.format.grid, IntGrid):
        levels = torch.arange(1 << bits).to(torch.bfloat16)
        return Product(Way.BF16, native.native_weight(term), levels=levels, terms=terms)
    block, per_scale = blocks(term)
    scale = native.smallest(native.by_row(term, term.scale.effective))
    made = prepared.native_codes(term.codes, bits, block, per_scale, scale)
    levels = native.padded(term.format.grid.levels(), 1 << bits).to(torch.bfloat16)
    return Product(Way.BF16, made, levels=levels, terms=terms)


def ternary_product(weight: QuantizedTensor) -> Product:
    """Integers; five digits in a byte."""
    term, terms = _main(weight), prepared.extra_terms(weight)
    even = _affine_table(term.format)
    assert even is not None
    scale = native.smallest(native.by_row(term, term.scale.effective) * even[0])
    return Product(Way.TERNARY, prepared.ternary_weight(term.codes, scale), terms=terms)


# -- what is served ----------------------------------------------------------------------------------------------


def _uncoded(request: Request) -> str | None:
    if request.exact:
        return "rounds activations to 8 bits, which was not allowed (exact)"
    if request.input is not None:
        return f"rounds activations by itself; the recipe codes them as {request.input}"
    return native.refuses(request)


def unevenly(request: Request) -> str | None:
    """Why the weight has no evenly spaced levels, or ``None`` where it has."""
    grid = parse(request.format).grid
    if isinstance(grid, IntGrid) or _affine_table(parse(request.format)) is not None:
        return None
    return f"multiplies integers; the levels of {grid.text} are not evenly spaced"


def _short_table(request: Request) -> str | None:
    fmt = parse(request.format)
    if not 2 <= fmt.grid.bits <= 4:
        return f"looks up tables of 3 to 16 levels, not of {1 << fmt.grid.bits}"
    if _affine_table(fmt) is not None:
        return "looks up tables; evenly spaced levels are integers"
    if isinstance(fmt.grid, CodebookGrid):
        found = native.geometry(fmt, (request.shape[0], request.shape[1]))
        if isinstance(found, str):
            return found
    return None


def refuses_int8(request: Request) -> str | None:
    """Integers without a coded input."""
    return _uncoded(request) or unevenly(request)


def refuses_lookup(request: Request) -> str | None:
    """Tables in bytes without a coded input."""
    reason = _uncoded(request) or _short_table(request)
    grid = parse(request.format).grid if request.format else None
    if reason is not None or grid is None or isinstance(grid, CodebookGrid):
        return reason
    two = prepared.shared_tables(grid.levels()).high is not None
    if two and preferred(require_library().name, "native-bf16", "tables of two bytes", request.rows):
        return "levels of two bytes were measured to be no faster than products of bf16, which round less"
    return None


def refuses_bf16(request: Request) -> str | None:
    """Products of bf16: exact where the input is bf16 and every level is; else where rounding is allowed."""
    reason = native.refuses(request)
    if reason is not None:
        return reason
    if not require_library().has_bf16:
        return "needs a processor with dot products of bf16 (AVX512-BF16)"
    if request.input is not None:
        return f"takes float activations; the recipe codes them as {request.input}"
    grid = parse(request.format).grid
    if isinstance(grid, CodebookGrid):
        return "takes one table for all rows, not a learned codebook for each"
    if not request.exact:
        return None
    if request.dtype != torch.bfloat16:
        return "rounds activations to bf16, which was not allowed (exact)"
    levels = grid.levels().nan_to_num(0.0, 0.0, 0.0)
    if not torch.equal(levels.to(torch.bfloat16).float(), levels):
        return f"rounds the levels of {grid.text} to bf16, which was not allowed (exact)"
    return None


def _ternary(request: Request) -> str | None:
    fmt = parse(request.format)
    even = _affine_table(fmt)
    if fmt.grid.bits != 2 or even is None or even[1] != 1 or fmt.grid.levels().numel() != 3:
        return "packs the levels -1, 0 and 1"
    if not isinstance(fmt.granularity, Channel | WholeTensor) or getattr(fmt.granularity, "axis", 0) != 0:
        return f"takes one scale for every row, not for every {fmt.granularity.text}"
    return None


def refuses_ternary(request: Request) -> str | None:
    """Ternary weights in base 3 without a coded input."""
    return _uncoded(request) or _ternary(request)


def _coded(request: Request, block: int) -> str | None:
    if request.input is None:
        return "multiplies the codes of a quantized input; this input is float"
    coding = coding_of(parse(request.input), request.shape[1])
    return coding if isinstance(coding, str) else misfit(coding, block, request.shape[1])


def refuses_coded(request: Request) -> str | None:
    """Codes of the input with affine weights or tables that are exact in integers."""
    reason = native.refuses(request)
    if reason is not None:
        return reason
    fmt = parse(request.format)
    found = native.geometry(fmt, (request.shape[0], request.shape[1]))
    assert not isinstance(found, str)
    reason = _coded(request, found[0])
    if reason is not None or unevenly(request) is None:
        return reason
    reason = _short_table(request)
    if reason is not None or not request.exact:
        return reason
    if isinstance(fmt.grid, CodebookGrid) or not prepared.integer_levels(fmt.grid.levels()).exact:
        return f"rounds the levels of {fmt.grid.text} to 14 bits, which was not allowed (exact)"
    return None


def refuses_coded_ternary(request: Request, block: int = _TERNARY_BLOCK) -> str | None:
    """Codes of the input with ternary weights in base 3, or packed in other blocks."""
    return native.refuses(request) or _ternary(request) or _coded(request, block)


# -- running -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CodedProduct:
    """A product for coded inputs; the weight's sums, which zero points need, are made when first asked for."""

    product: Product
    packed: PackedWeight
    _with_sums: dict[int, Product] = field(default_factory=dict)

    def for_coding(self, coding: Coding) -> Product:
        """The product with the sums that a coding needs."""
        if not coding.shifts:
            return self.product
        found = self._with_sums.get(coding.run)
        if found is None:
            sums = prepared.run_sums(self.packed.unpack(), coding.run)
            found = replace(self.product, terms=replace(self.product.terms or Terms(), sums=sums))
            self._with_sums[coding.run] = found
        return found


def prepare_coded(packed: PackedWeight, dtype: torch.dtype) -> CodedProduct:
    """A product of integers or byte tables, whichever the weight is."""
    del dtype
    weight = packed.unpack()
    return CodedProduct(lookup_product(weight) if looks_up(weight) else int8_product(weight), packed)


def prepare_coded_ternary(packed: PackedWeight, dtype: torch.dtype) -> CodedProduct:
    """A product of ternary weights in base 3."""
    del dtype
    return CodedProduct(ternary_product(packed.unpack()), packed)


def run(x: Tensor, product: Product, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ w.T + bias``."""
    return multiply(x if quantizer is None else quantizer(x), product, bias)


def run_coded(x: Tensor, weight: CodedProduct, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ w.T + bias`` from the quantizer's codes."""
    assert quantizer is not None
    coding = coding_for(quantizer, x)
    return multiply(x, weight.for_coding(coding), bias, coding)


def _prepare(make: Any) -> Any:
    def prepare(packed: PackedWeight, dtype: torch.dtype) -> Product:
        del dtype
        made: Product = make(packed.unpack())
        return made

    return prepare


def _kernel(name: str, priority: int, why: str, served: frozenset[str], make: Any, refuses: Any) -> Kernel:
    return Kernel(
        name=f"linear/{name}", op="linear", priority=priority, why=why, prepare=_prepare(make), run=run, forms=served,
        devices=frozenset({"cpu"}), refuses=refuses,
    )  # fmt: skip


_ALL = ("affine", "table", "codebook")

TERMS = _kernel(
    "native-terms", 50, "reads the packed terms once and multiplies in fp32, all in one call (compiled)",
    forms(*_ALL, alone=False), exact_product, native.refuses,
)  # fmt: skip
BF16 = _kernel(
    "native-bf16", 55, "reads the packed weight once and multiplies bf16 (compiled)",
    forms("affine", "table"), bf16_product, refuses_bf16,
)  # fmt: skip
INT8 = _kernel(
    "native-int8-terms", 60, "reads the packed terms once and multiplies integers, activations in 8 bits (compiled)",
    forms("affine", "table"), int8_product, refuses_int8,
)  # fmt: skip
LOOKUP = _kernel(
    "native-lookup", 60, "looks levels up in registers and multiplies integers, activations in 8 bits (compiled)",
    forms("table", "codebook"), lookup_product, refuses_lookup,
)  # fmt: skip
TERNARY = _kernel(
    "native-ternary", 62, "reads five ternary weights in a byte and multiplies integers, activations in 8 bits",
    forms("table"), ternary_product, refuses_ternary,
)  # fmt: skip
CODED = Kernel(
    name="linear/native-coded", op="linear", priority=65, devices=frozenset({"cpu"}), forms=forms(*_ALL),
    why="multiplies the recipe's own codes of the input with those of the weight in integers (compiled)",
    prepare=prepare_coded, run=run_coded, refuses=refuses_coded,
)  # fmt: skip
CODED_TERNARY = Kernel(
    name="linear/native-coded-ternary", op="linear", priority=66, devices=frozenset({"cpu"}), forms=forms("table"),
    why="multiplies the recipe's own codes of the input with ternary weights, five in a byte (compiled)",
    prepare=prepare_coded_ternary, run=run_coded, refuses=refuses_coded_ternary,
)  # fmt: skip

KERNELS = (CODED_TERNARY, CODED, TERNARY, INT8, LOOKUP, BF16, TERMS)
"""In the order in which they are asked where they are preferred equally."""
