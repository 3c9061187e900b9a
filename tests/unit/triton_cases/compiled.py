"""Every kernel compiles to machine code for processors that are not here, and uses their matrix units.

The compiler runs without a device. It says nothing about speed; it does say whether types and shapes are accepted, and
whether a kernel needs more registers or memory than there are (such a kernel becomes a single ``trap``).
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitwright.formats import parse
from bitwright.runtime import TABLE
from bitwright.runtime.kernels.triton import attention, hadamard, linear, product, scaled
from bitwright.runtime.kernels.triton.attend import STAGES, side_of, tokens_of_block
from bitwright.runtime.kernels.triton.coded_input import PER_BYTE
from bitwright.runtime.kernels.triton.tiles import COLUMNS, ROWS
from bitwright.runtime.kernels.triton.weight import tile_weight
from bitwright.runtime.manifest import CacheSide
from bitwright.runtime.states import StateCoder, States

PROCESSORS = (80, 89, 90, 100, 120)
MATRIX_UNITS = {90: r"wgmma\.mma_async", 100: r"tcgen05\.mma"}
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8",
}  # fmt: skip
LIMIT = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that a program may have."""


def compile_kernel(kernel: Any, processor: int, given: dict[str, Any], warps: int = 4, stages: int = 3) -> str:
    """Compile; ``given`` holds types (text) of what is passed and values of constants. Returns the assembly (PTX)."""
    signature, constants = {}, {}
    for name in kernel.arg_names:
        value = given.get(name)
        passed = isinstance(value, str)
        signature[name] = value if passed else "constexpr"
        if not passed:
            constants[name] = value
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", processor, 32), options={"num_warps": warps, "num_stages": stages}
    )
    text = str(made.asm["ptx"])
    assert "trap;" not in text
    assert made.metadata.shared <= LIMIT[processor]
    return text


def linear_arguments(text: str, dtype: torch.dtype, tokens: int) -> tuple[dict[str, Any], int, bool]:
    """What the operator would pass for a weight of 256 x 512."""
    weight = tile_weight(parse(text).quantize(torch.randn(256, 512)))
    cut = product.launch_shape(tokens, 256, 4, 132)
    table = None if weight.table is None else POINTERS[weight.table.dtype]
    given: dict[str, Any] = {
        "x_ptr": POINTERS[dtype], "codes_ptr": "*u8", "scale_ptr": POINTERS[weight.scale.dtype],
        "zero_ptr": None if weight.zero is None else POINTERS[weight.zero.dtype], "table_ptr": table,
        "sums_ptr": "*fp32", "tokens": "i32", "out": "i32", "columns": "i32", "tiles": "i32",
        "tiles_per_split": "i32", "factor": "fp32", "GROUP": weight.group, "GROUPS": -(-512 // weight.group),
        "RUN": product._run(weight.group), "BITS": weight.bits, "KIND": weight.levels.kind,
        "CENTER": weight.levels.center, "MANTISSA": weight.levels.mantissa, "HAS_ZERO": weight.zero is not None,
        "SCALE_KIND": weight.scale_kind, "ROWS": ROWS, "TILE": COLUMNS, "BLOCK_N": cut.rows, "BLOCK_M": cut.tokens,
        "DOT": cut.dot, "DTYPE": {torch.float32: tl.float32, torch.float16: tl.float16}.get(dtype, tl.bfloat16),
        "WIDEN": False,
    }  # fmt: skip
    return given, cut.warps, cut.dot


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(
    ("text", "dtype", "tokens"),
    [
        ("int4 g128 asym", torch.float16, 1),
        ("int3 g32", torch.bfloat16, 8),
        ("nf4 g64", torch.bfloat16, 2),
        ("int4 g128 asym", torch.bfloat16, 16),
        ("int4 g32", torch.float16, 128),
        ("int7 channel", torch.float16, 24),
        ("mxfp4", torch.bfloat16, 64),
        ("mxfp8_e4m3", torch.float16, 64),
        ("nvfp4", torch.bfloat16, 64),
        ("int8 channel", torch.float32, 40),
        ("int8 channel", torch.float32, 128),
        ("int8 channel", torch.float16, 128),
    ],
)
def test_linear(text: str, dtype: torch.dtype, tokens: int, processor: int) -> None:
    given, warps, dot = linear_arguments(text, dtype, tokens)
    assembly = compile_kernel(linear.coded_linear, processor, given, warps, product.stages(given["BITS"], dtype))
    if dot and dtype != torch.float32:
        assert re.search(MATRIX_UNITS.get(processor, r"mma\.sync"), assembly)
    elif not dot:  # codes come in wide loads: several bytes of a row at once
        assert re.search(r"ld\.global\.(v[24]\.)?b(32|64)", assembly)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_sums_of_splits(processor: int) -> None:
    given = {"sums_ptr": "*fp32", "bias_ptr": "*bf16", "y_ptr": "*bf16", "tokens": "i32", "out": "i32"}
    compile_kernel(linear.add_splits, processor, {**given, "SPLITS": 5, "HAS_BIAS": True, "BLOCK": 256})


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(("inner", "lines"), [(4096, 1), (64, 64)])
def test_butterflies(inner: int, lines: int, processor: int) -> None:
    given = {"x_ptr": "*bf16", "signs_ptr": "*fp32", "y_ptr": "*bf16", "lines": "i32", "lines_of_row": "i32"}
    constants = {"INNER": inner, "STEPS": inner.bit_length() - 1, "LINES": lines, "SIGN_FIRST": True}
    compile_kernel(hadamard.butterflies, processor, {**given, **constants, "SIGN_LAST": False, "scale": "fp32"}, 8)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("order", [12, 28, 140])
def test_dense_factors(order: int, processor: int) -> None:
    given = {
        "x_ptr": "*fp32", "matrix_ptr": "*fp32", "signs_ptr": "*fp32", "y_ptr": "*fp16", "columns": "i32",
        "dim": "i32", "inner": "i32", "scale": "fp32", "ORDER": order, "BLOCK": 16 if order <= 16 else 32,
        "COLUMNS": 64, "SIGN_FIRST": False, "SIGN_LAST": True,
    }  # fmt: skip
    compile_kernel(hadamard.dense_factor, processor, given)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(
    ("key", "value", "dim", "rows"),
    [
        ("int4 g32 axis=0 asym", "int4 g64 asym", 128, 16),
        ("int8 token", "int8 token", 128, 64),
        ("int2 g64 axis=0 asym", "int3 g32 asym", 64, 16),
        ("mxfp8_e4m3", "nvfp4", 256, 16),
    ],
)
def test_attention(key: str, value: str, dim: int, rows: int, processor: int) -> None:
    given: dict[str, Any] = dict.fromkeys(attention.coded_attention.arg_names, "i32")
    given |= {"q_ptr": "*bf16", "mask_ptr": "*fp32", "sums_ptr": "*fp32", "largest_ptr": "*fp32"}
    given |= {"weight_ptr": "*fp32", "k_factor": "fp32", "v_factor": "fp32", "softmax_scale": "fp32"}
    names = ("BITS", "TOKENS", "CHANNELS", "PARAMS", "BYTES", "KIND", "CENTER", "MANTISSA", "SCALE")
    for mark, text in (("k", key), ("v", value)):
        states = States(StateCoder(CacheSide(parse(text)), TABLE), 0)
        states.append(torch.randn(1, 1, 64, dim))
        side = side_of(states, torch.bfloat16)
        given[f"{mark}_tail"] = "*bf16"
        for name, part in zip(("codes", "scale", "zero", "table"), side.parts, strict=True):
            given[f"{mark}_{name}"] = None if part is None else POINTERS[part.dtype]
        given |= {f"{mark.upper()}_{name}": number for name, number in zip(names, side.form, strict=False)}
        given[f"{mark.upper()}_HAS_ZERO"] = side.parts[2] is not None
    given |= {"DIM": dim, "BLOCK_D": dim, "BLOCK_R": rows, "BLOCK_T": tokens_of_block(given["K_TOKENS"])}
    given |= {"CAUSAL": True, "HAS_MASK": True}
    assembly = compile_kernel(
        attention.coded_attention, processor, {**given, "DTYPE": tl.bfloat16, "WIDEN": False}, stages=STAGES
    )
    assert re.search(MATRIX_UNITS.get(processor, r"mma\.sync"), assembly) or rows < 64
    joined = {"sums_ptr": "*fp32", "largest_ptr": "*fp32", "weight_ptr": "*fp32", "y_ptr": "*bf16", "rows": "i32"}
    compile_kernel(attention.join_splits, processor, {**joined, "SPLITS": 4, "DIM": dim, "BLOCK_D": dim})


@pytest.mark.parametrize("tokens", [64, 128])
@pytest.mark.parametrize(
    ("x", "w", "shared", "processor", "unit"),
    [
        ("e4m3", "e4m3", 0, 89, r"mma\.sync\S*e4m3"),
        ("e4m3", "e4m3", 0, 90, r"wgmma\S*e4m3"),
        ("e4m3", "e5m2", 0, 100, r"tcgen05\.mma\S*f8f6f4"),
        ("e4m3", "e4m3", 0, 120, r"mma\.sync\S*e4m3"),
        ("e2m1", "e2m1", 32, 100, r"tcgen05\.mma\S*block_scale"),
        ("e4m3", "e2m1", 32, 100, r"tcgen05\.mma\S*block_scale"),
        ("e5m2", "e4m3", 32, 100, r"tcgen05\.mma\S*block_scale"),
        ("e2m1", "e2m1", 16, 100, r"tcgen05\.mma\S*block_scale"),
        ("e2m1", "e2m1", 32, 120, r"block_scale"),
        ("e4m3", "e4m3", 32, 120, r"block_scale"),
        ("e2m1", "e2m1", 16, 120, r"block_scale"),
    ],
)
def test_coded_inputs(x: str, w: str, shared: int, processor: int, unit: str, tokens: int) -> None:
    scale = "*u8" if shared else "*fp32"
    given: dict[str, Any] = {
        "x_ptr": "*u8", "x_scale_ptr": scale, "w_ptr": "*u8", "w_scale_ptr": scale, "bias_ptr": "*bf16",
        "y_ptr": "*bf16", "tokens": "i32", "out": "i32", "columns": "i32", "factor": "fp32", "SHARED": shared,
        "E4M3": shared == 16, "NATIVE": True, "HAS_BIAS": True, "BLOCK_M": scaled.block_tokens(tokens, shared),
        "BLOCK_N": 128, "BLOCK_K": 128,
    }  # fmt: skip
    # Texts are types of what is passed; a constant that is a text is wrapped.
    constants = {f"{mark}_{name}": value for mark, element in (("X", x), ("W", w)) for name, value in (
        ("FORMAT", tl.constexpr(element)), ("PER_BYTE", PER_BYTE[element]), ("TYPE", scaled._TYPES[element]),
    )}  # fmt: skip
    assembly = compile_kernel(scaled.scaled_linear, processor, {**given, **constants}, warps=8)
    assert re.search(unit, assembly)
