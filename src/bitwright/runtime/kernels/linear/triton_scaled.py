"""Linear on coded weights and inputs in Triton: FP8, MXFP4, MXFP8 and NVFP4 in the matrix units themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import Kernel, Request, UnsupportedError
from bitwright.runtime.kernels.triton.available import refuses_activations
from bitwright.runtime.kernels.triton.coded_input import (
    CodedRows,
    coded_activations,
    coded_weight,
    unserved_by,
    unserved_pair,
)
from bitwright.runtime.weight import PackedWeight

FEWEST_TOKENS = 16
"""Below it a call waits for the weight, which the other kernel reads as fast."""


def refuses(request: Request) -> str | None:
    """Refuse pairs of formats and devices whose matrix units would need decoded numbers, and calls of a few tokens."""
    limit = refuses_activations(request) or unserved_pair(request.format, request.input)
    if limit is not None:
        return limit
    if request.rows is not None and request.rows < FEWEST_TOKENS:
        return f"serves {FEWEST_TOKENS} tokens or more"
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "needs a processor of NVIDIA"
    return unserved_by(torch.cuda.get_device_capability(), request.format, str(request.input))


def prepare(weight: PackedWeight, dtype: torch.dtype) -> CodedRows:
    """Bring a weight of one coded term into rows of codes.

    Raises:
        UnsupportedError: several terms, or a format that matrix units do not take.
    """
    del dtype
    terms = weight.unpack().terms
    if len(terms) != 1 or not isinstance(terms[0], Codes):
        raise UnsupportedError(f"the kernels of Triton serve one coded term, not {weight.form}; use the reference")
    return coded_weight(terms[0])


def run(x: Tensor, prepared: CodedRows, bias: Tensor | None, quantizer: ActivationQuantizer | None) -> Tensor:
    """Return ``quantizer(x)[..., in] @ weight.T + bias`` in the dtype of x; NaN in ``x`` is not kept.

    Raises:
        UnsupportedError: a dtype or device that is not served.
        InputError: shapes or devices that do not fit together.
    """
    from bitwright.runtime.kernels.triton.scaled import triton_scaled_linear

    if quantizer is None:
        raise InputError("this kernel multiplies coded activations; give the input's quantizer")
    if x.shape[-1] != prepared.columns:
        raise InputError(f"the weight takes {prepared.columns} channels, not {x.shape[-1]}; check the input")
    rows = x.reshape(-1, prepared.columns)
    if rows.shape[0] == 0:
        return x.new_empty((*x.shape[:-1], prepared.codes.shape[0]))
    given = coded_activations(rows, quantizer)
    if given.shared != prepared.shared:
        raise InputError("the input's scales do not lie as those of the weight; use the reference")
    y: Tensor = triton_scaled_linear(
        given.codes, given.scale, prepared.codes, prepared.scale, bias, given.element, prepared.element,
        prepared.shared, given.factor * prepared.factor, x.dtype,
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], prepared.codes.shape[0])


KERNEL = Kernel(
    name="linear/triton-scaled",
    op="linear",
    priority=60,
    why="the matrix units multiply the codes of weight and input themselves",
    prepare=prepare,
    run=run,
    forms=frozenset({"table"}),
    devices=frozenset({"cuda"}),
    refuses=refuses,
)
