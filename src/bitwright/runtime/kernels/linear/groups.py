"""Groups of 2 bits of which some have 4 (arXiv:2311.16442): the common plane by the integer product, the rest added.

Chosen groups are others in every row, so their activations are gathered; both parts take the same codes of the input.
"""

from __future__ import annotations

import torch

from bitwright.formats import parse
from bitwright.native.product import Product
from bitwright.runtime.dispatch import Kernel, Request
from bitwright.runtime.kernels.linear import native, variants
from bitwright.runtime.weight import PackedWeight

_FORMS = frozenset({"affine+groups"})


def _blocks(request: Request) -> str | None:
    """Why groups are no blocks of the product."""
    fmt = parse(request.format)
    size = getattr(fmt.granularity, "size", 0)
    if fmt.grid.bits != 2 or native.geometry(fmt, (request.shape[0], request.shape[1])) != (size, 1):
        return "adds chosen groups of 16, 32, 64 or 128 inputs to codes of 2 bits"
    return None


def refuses_rounded(request: Request) -> str | None:
    """Why activations are not rounded to 8 bits."""
    return variants.refuses_int8(request) or _blocks(request)


def refuses_coded(request: Request) -> str | None:
    """Why the codes of an input are not multiplied."""
    return variants.refuses_coded(request) or _blocks(request)


def _prepare(packed: PackedWeight, dtype: torch.dtype) -> Product:
    del dtype
    return variants.int8_product(packed.unpack())


ROUNDED = Kernel(
    name="linear/native-groups", op="linear", priority=60, devices=frozenset({"cpu"}), forms=_FORMS,
    why="multiplies 2-bit codes and the rest of chosen groups in integers, activations in 8 bits (compiled)",
    prepare=_prepare, run=variants.run, refuses=refuses_rounded,
)  # fmt: skip
CODED = Kernel(
    name="linear/native-coded-groups", op="linear", priority=65, devices=frozenset({"cpu"}), forms=_FORMS,
    why="multiplies 2-bit codes and the rest of chosen groups with the recipe's own codes of the input (compiled)",
    prepare=variants.prepare_coded, run=variants.run_coded, refuses=refuses_coded,
)  # fmt: skip

KERNELS = (ROUNDED, CODED)
"""The only compiled kernels for sums with chosen groups."""
