"""The compiled Hadamard transform against the product with the matrix, for every instruction set of this machine."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.buffers import NOTHING, span
from bitwright.native.hadamard import hadamard, run, serves
from bitwright.stages.transforms.hadamard import apply_hadamard, random_signs
from bitwright.stages.transforms.hadamard import hadamard_matrix as matrix_of

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(SETS),
    st.sampled_from([(1, 16), (1, 32), (1, 128), (1, 256), (1, 1024), (12, 16), (20, 32), (4, 64)]),
    st.integers(0, 5),
    st.integers(1, 3),
    st.sampled_from(list(TOLERANCE)),
    st.booleans(),
    st.booleans(),
)
def test_equals_the_product_with_the_matrix(
    name: str, order: tuple[int, int], rows: int, blocks: int, dtype: torch.dtype, signed: bool, inverse: bool
) -> None:
    base, power = order
    size = base * power
    dim = size * blocks
    small, large = matrix_of(base), matrix_of(power)
    assert small is not None
    assert large is not None
    matrix = torch.kron(small, large).double() / math.sqrt(size)
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(size)).to(dtype)
    signs = random_signs(dim, 3) if signed else None
    factor = None if base == 1 else small if inverse else small.T
    y = run(x, size, factor, signs, inverse, library(name))
    turn = matrix.T if inverse else matrix
    before = x.double() * signs if signs is not None and not inverse else x.double()
    wanted = (before.view(-1, size) @ turn).view(rows, dim)
    if signs is not None and inverse:
        wanted = wanted * signs
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=TOLERANCE[dtype] * 4)


def test_instruction_sets_and_threads_agree_in_every_bit() -> None:
    x = torch.randn(5, 2048 * 12)
    wanted = run(x, 512 * 12, matrix_of(12), None, True, library(SETS[0]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = [run(x, 512 * 12, matrix_of(12), None, True, library(name)) for name in SETS]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, wanted) for y in found)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_larger_than_the_cache(name: str, dtype: torch.dtype) -> None:
    """They are stored past it; every block is what it is by itself."""
    dim = 4096 if name != "scalar" else 64
    rows = (34 << 20) // dtype.itemsize // dim
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = run(x, dim, None, None, False, library(name))
    for row in (0, 1, rows // 2, rows - 1):
        assert torch.equal(y[row : row + 1], run(x[row : row + 1], dim, None, None, False, library(name)))
    for start in range(0, rows, 1024):
        part = slice(start, min(start + 1024, rows))
        assert torch.equal(y[part], run(x[part], dim, None, None, False, library(name)))


def test_the_stage_runs_it_and_its_inverse_returns() -> None:
    x = torch.randn(3, 2, 640)
    y = apply_hadamard(x, 640, seed=2)
    plain = apply_hadamard(x.double(), 640, seed=2)
    torch.testing.assert_close(y.double(), plain, rtol=0, atol=2e-5)
    torch.testing.assert_close(apply_hadamard(y, 640, seed=2, inverse=True), x)
    turned = x.transpose(0, 1)
    assert torch.equal(apply_hadamard(turned, 640), apply_hadamard(turned.contiguous(), 640))


def test_gradients_and_other_types_stay_with_torch() -> None:
    x = torch.randn(2, 64, requires_grad=True)
    assert not serves(x, 64)
    assert not serves(x.detach().double(), 64)
    assert not serves(x.detach(), 8)
    with torch.no_grad():
        assert serves(x, 64) == (SETS[0] != "scalar")
    y = apply_hadamard(x, 64, seed=1)
    y.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_zeros_nan_and_infinity_reach_their_block_only() -> None:
    x = torch.ones(1, 128)
    x[0, 3] = float("nan")
    x[0, 70] = float("inf")
    x = torch.cat([x, torch.zeros(1, 128)])
    y = hadamard(x, 32, None, None, False)
    assert not torch.isfinite(y[0, :32]).any()
    assert torch.isfinite(y[0, 32:64]).all()
    assert not torch.isfinite(y[0, 64:96]).any()
    assert torch.equal(y[1], torch.zeros(128))


def test_a_graph_holds_one_operation() -> None:
    class Turn(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return hadamard(x, 64, None, None, False) + 1

    x = torch.randn(2, 64)
    program = torch.export.export(Turn(), (x,))
    assert "bitwright.hadamard" in str(program.graph)
    torch.testing.assert_close(program.module()(x), hadamard(x, 64, None, None, False) + 1)


@pytest.mark.parametrize(
    "shape", [(2, 64, 1, 24), (2, 64, 1, 8), (2, 64, 1, 128), (2, 96, 3, 32), (2, 64, 4, 32), (3, 64, 1, 64),
              (-1, 64, 1, 64), (2, 0, 1, 16), (2, 64, 4, 16)]
)  # fmt: skip
def test_wrong_shapes_are_refused(shape: tuple[int, int, int, int]) -> None:
    x = torch.zeros(2, 64)
    with pytest.raises(ValueError):
        library().hadamard(*shape, NOTHING, NOTHING, NOTHING, 1.0, 0, span(x), span(x), 1)
    with pytest.raises(InputError):
        hadamard(x, 48, None, None, False)
