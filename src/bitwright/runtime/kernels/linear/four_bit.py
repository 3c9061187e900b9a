"""4-bit weights with coded inputs in whole numbers from end to end: one float scale for a row, applied last.

In the upper half of a byte (FastGEMM of OdysseyLLM, arXiv:2311.09550): symmetric weights, 16 times as large, so that a
mask unpacks them and no zero point is left. Under two levels of scales (QServe, arXiv:2405.04532): each group has a
whole scale and a zero point, which keep 8 bits, below the float scale of its row. With activations of two widths
(COMET, arXiv:2410.12168): 4 bits in most blocks, 8 in the last ones, where an online order puts the channels with
outliers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.formats import Codes, IntGrid, QuantizedTensor, parse
from bitwright.formats.granularity import Channel
from bitwright.formats.granularity import Tensor as WholeTensor
from bitwright.native.linear import pack_codes, tiled
from bitwright.native.product import Product, Way, multiply
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native, prepared, variants
from bitwright.runtime.kernels.linear.catalogue import measured
from bitwright.runtime.kernels.linear.coding import coding_of, misfit, mixed_coding
from bitwright.runtime.kernels.linear.variants import CodedProduct
from bitwright.runtime.weight import PackedWeight

_WIDEST = 1 << 16
_NARROWEST = -8


def _main(weight: QuantizedTensor) -> Codes:
    term = weight.terms[0]
    assert isinstance(term, Codes)
    return term


def nibbles_product(weight: QuantizedTensor) -> Product:
    """Levels -8 .. 7 in two's complement, and their sums by row."""
    term = _main(weight)
    plain = native.native_weight(term)
    levels = term.codes.to(torch.int8) + int(term.format.grid.min_level)
    codes = pack_codes((levels & 15).to(torch.uint8).contiguous(), 4, plain.block)
    sums = tiled(levels.sum(-1, keepdim=True, dtype=torch.int32))
    made = replace(plain, codes=codes, constant_zero=0)
    return Product(Way.NIBBLES, made, levels=sums, terms=prepared.extra_terms(weight))


def two_level_product(weight: QuantizedTensor) -> Product:
    """Codes, whole scales and zero points of blocks, and the rows' float scales."""
    term = _main(weight)
    plain = native.native_weight(term)
    assert term.scale.outer is not None
    low = int(term.format.grid.min_level)
    zero = torch.full_like(term.scale.stored, -low) if term.zero is None else term.zero
    blocks = -(-term.shape[1] // plain.block)
    parameters = [
        tiled(part.repeat_interleave(plain.blocks_per_scale, 1)[:, :blocks]) for part in (term.scale.stored, zero)
    ]
    scale = tiled(term.scale.outer.view(-1, 1))
    made = replace(plain, scale=scale, zero=None, blocks_per_scale=blocks, constant_zero=0)
    return Product(Way.TWO_LEVEL, made, levels=torch.stack(parameters), terms=prepared.extra_terms(weight))


def _one_scale(request: Request) -> str | None:
    """Why sums cannot run over a whole row."""
    reason = native.refuses(request)
    if reason is not None:
        return reason
    if request.input is None:
        return "multiplies the codes of a quantized input; this input is float"
    coding = coding_of(parse(request.input), request.shape[1])
    if isinstance(coding, str):
        return coding
    if coding.run < request.shape[1] or request.shape[1] > _WIDEST:
        return f"takes one scale of the input for a row of up to {_WIDEST} channels"
    return None


def misfits_nibbles(request: Request) -> str | None:
    """Why weights have no place in upper halves of bytes, whether or not that would be the fastest way."""
    reason = _one_scale(request)
    if reason is not None:
        return reason
    fmt = parse(request.format)
    symmetric = isinstance(fmt.grid, IntGrid) and fmt.grid.signed and fmt.grid.bits == 4
    if not symmetric or not isinstance(fmt.granularity, Channel | WholeTensor):
        return "serves symmetric integers of 4 bits with one scale for a row"
    return None if getattr(fmt.granularity, "axis", 0) == 0 else "serves one scale for a row, not for a column"


def refuses_nibbles(request: Request) -> str | None:
    """Why weights are not unpacked from upper halves of bytes."""
    return misfits_nibbles(request) or measured(request, "native-nibbles", "w4a8")


def misfits_two_level(request: Request) -> str | None:
    """Why two levels of scales are not kept apart, whether or not that would be the fastest way."""
    reason = _one_scale(request)
    if reason is not None:
        return reason
    fmt = parse(request.format)
    if fmt.scale.storage != "int8" or fmt.grid.bits != 4:
        return "serves integers of 4 bits with whole scales below a scale for a row (scale=int8)"
    return None


def refuses_two_level(request: Request) -> str | None:
    """Why scales of groups are not applied in whole numbers."""
    return misfits_two_level(request) or measured(request, "native-two-level", "w4a8")


def mixed_product(weight: QuantizedTensor) -> Product:
    """The plain codes, for activations of two widths."""
    return replace(variants.int8_product(weight), way=Way.MIXED)


def refuses_mixed(request: Request) -> str | None:
    """Why activations of two widths are not served."""
    reason = native.refuses(request)
    if reason is not None:
        return reason
    fmt = parse(request.format)
    coding = mixed_coding(parse(request.input or "int8 token"), request.shape[1])
    if isinstance(coding, str):
        return coding
    found = native.geometry(fmt, (request.shape[0], request.shape[1]))
    assert not isinstance(found, str)
    if fmt.grid.bits != 4 or not isinstance(fmt.grid, IntGrid):
        return "multiplies activations of two widths with integers of 4 bits"
    if coding.low < _NARROWEST or coding.wide % found[0]:
        return f"takes activations of up to 4 bits before wide ones, in whole blocks of {found[0]} inputs"
    return misfit(coding, found[0], request.shape[1])


def run_mixed(x: Tensor, product: Product, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ w.T + bias`` from the quantizer's codes."""
    assert quantizer is not None
    coding = mixed_coding(quantizer.format, x.shape[-1])
    assert not isinstance(coding, str)
    return multiply(x, product, bias, coding)


def _prepare_mixed(packed: PackedWeight, dtype: torch.dtype) -> Product:
    del dtype
    return mixed_product(packed.unpack())


def _kernel(
    name: str, why: str, make: Callable[[QuantizedTensor], Product], refuses: Callable[[Request], str | None]
) -> Kernel:
    def prepare(packed: PackedWeight, dtype: torch.dtype) -> CodedProduct:
        del dtype
        return CodedProduct(make(packed.unpack()), packed)

    return Kernel(
        name=f"linear/{name}", op="linear", priority=68, devices=frozenset({"cpu"}), forms=variants.forms("affine"),
        why=why, prepare=prepare, run=variants.run_coded, refuses=refuses,
    )  # fmt: skip


NIBBLES = _kernel(
    "native-nibbles", "unpacks 4-bit weights with one mask and scales a row once, measured to be faster",
    nibbles_product, refuses_nibbles,
)  # fmt: skip
TWO_LEVEL = _kernel(
    "native-two-level", "applies scales of groups in whole numbers and scales a row once, measured to be faster",
    two_level_product, refuses_two_level,
)  # fmt: skip

MIXED = Kernel(
    name="linear/native-mixed", op="linear", priority=65, devices=frozenset({"cpu"}), forms=variants.forms("affine"),
    why="multiplies codes of 4 bits with activations of 4 bits in most blocks and 8 in the others (compiled)",
    prepare=_prepare_mixed, run=run_mixed, refuses=refuses_mixed,
)  # fmt: skip

KERNELS = (NIBBLES, TWO_LEVEL, MIXED)
"""The first two are asked before the plain integer products, and refuse where they were not measured to win; the third
alone serves activations of two widths in integers.
"""
