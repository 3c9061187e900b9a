"""The tables of kernels: every kernel is listed here, by hand, and nowhere else."""

from __future__ import annotations

from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.attention import reference as attention_reference
from bitwright.runtime.kernels.attention import triton as attention_triton
from bitwright.runtime.kernels.conv2d import dense as conv2d_dense
from bitwright.runtime.kernels.conv2d import native as conv2d_native
from bitwright.runtime.kernels.conv2d import reference as conv2d_reference
from bitwright.runtime.kernels.embedding import dense as embedding_dense
from bitwright.runtime.kernels.embedding import reference as embedding_reference
from bitwright.runtime.kernels.hadamard import reference as hadamard_reference
from bitwright.runtime.kernels.hadamard import triton as hadamard_triton
from bitwright.runtime.kernels.linear import catalogue as linear_catalogue
from bitwright.runtime.kernels.linear import dense as linear_dense
from bitwright.runtime.kernels.linear import native as linear_native
from bitwright.runtime.kernels.linear import reference as linear_reference
from bitwright.runtime.kernels.linear import trellis as linear_trellis
from bitwright.runtime.kernels.linear import triton as linear_triton
from bitwright.runtime.kernels.linear import triton_scaled as linear_triton_scaled
from bitwright.runtime.kernels.linear import variants as linear_variants
from bitwright.runtime.kernels.linear import vectors as linear_vectors

REFERENCE = Table(
    (
        linear_dense.KERNEL,
        linear_reference.KERNEL,
        conv2d_dense.KERNEL,
        conv2d_reference.KERNEL,
        embedding_dense.KERNEL,
        embedding_reference.KERNEL,
        hadamard_reference.KERNEL,
        attention_reference.KERNEL,
    )
)
"""The definitions only: products with the dequantized weight, bit for bit the same whether or not that is kept.

For what compares results rather than waits for them: verification, tests.
"""

TABLE = REFERENCE.with_kernels(
    linear_native.ROUNDED,
    linear_native.KERNEL,
    linear_triton_scaled.KERNEL,
    *linear_catalogue.KERNELS,
    *linear_variants.KERNELS,
    *linear_trellis.KERNELS,
    *linear_vectors.KERNELS,
    *conv2d_native.KERNELS,
    linear_triton.KERNEL,
    hadamard_triton.KERNEL,
    attention_triton.KERNEL,
)
"""Kernels of this installation. To try others, pass ``TABLE.with_kernels(...)`` where a table is taken."""
