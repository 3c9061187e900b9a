"""Wrong numbers, shapes, types and buffers at the door of the compiled code are refused; nothing crashes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bitwright
from bitwright.errors import InputError
from bitwright.native import unavailable
from bitwright.native.buffers import large_pages
from bitwright.native.linear import NativeWeight, linear, pack_codes, tiled

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

OUT, COLUMNS, BITS, BLOCK = 20, 96, 4, 32
EDGES = st.sampled_from([-(2**63), -1, 0, 1, 3, 9, 2**31, 2**40, 2**62, 2**63 - 1])


def weight() -> NativeWeight:
    codes = torch.zeros(OUT, COLUMNS, dtype=torch.uint8)
    scale, zero = torch.ones(OUT, 3).half(), torch.ones(OUT, 3, dtype=torch.uint8)
    return NativeWeight(pack_codes(codes, BITS, BLOCK), tiled(scale), tiled(zero), None, (OUT, COLUMNS), BITS, BLOCK, 1)


def test_thousands_of_wrong_calls_end_in_exceptions() -> None:
    program = Path(__file__).with_name("native_fuzz.py")
    source = str(Path(bitwright.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(program), "2600", "7"], capture_output=True, text=True, check=False, cwd=source
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [line.split() for line in done.stdout.splitlines()]
    assert len(counts) == 12
    for name, refused, served in counts:
        assert int(refused) > 2, name
        assert int(served) > 10, name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 6), EDGES, st.booleans())
def test_a_wrong_number_of_the_geometry_is_refused(place: int, number: int, exact: bool) -> None:
    """Numbers that happen to fit are served; the others raise InputError."""
    right = weight()
    geometry = right.geometry()
    geometry[place] = number
    arguments = (right.codes, right.scale, right.zero, None, None, geometry, exact)
    linear(torch.zeros(1, COLUMNS), right)  # registers the operator
    try:
        y = torch.ops.bitwright.linear.default(torch.ones(2, COLUMNS), *arguments)
    except InputError:
        assert geometry != right.geometry()
    else:
        assert y.shape == (2, geometry[0])


@pytest.mark.parametrize(
    "change",
    [
        {"codes": torch.zeros(0, dtype=torch.uint8)},
        {"codes": torch.zeros(4, dtype=torch.int32)},
        {"codes": torch.zeros(4096, dtype=torch.uint8)[::2]},
        {"scale": torch.ones(2, 3, 16, dtype=torch.float64)},
        {"scale": torch.ones(1)},
        {"scale": torch.ones(2, 16, 3).half().transpose(1, 2)},
        {"zero": torch.zeros(0)},
        {"zero": torch.zeros(1, dtype=torch.uint8)},
        {"zero": torch.zeros(2, 3, 16, dtype=torch.int64)},
        {"table": torch.zeros(16, dtype=torch.float16)},
        {"levels": 1},
        {"levels": 2, "table": torch.zeros(16)},
    ],
    ids=str,
)
def test_wrong_tensors_are_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(InputError):
        linear(torch.zeros(1, COLUMNS), replace(weight(), **change))


def test_wrong_activations_and_biases_are_refused() -> None:
    right = weight()
    for x in (torch.tensor(1.0), torch.zeros(3, COLUMNS + 1), torch.zeros(0), torch.zeros(2, COLUMNS).double()):
        with pytest.raises(InputError):
            linear(x, right)
    for bias in (torch.zeros(OUT - 1), torch.zeros(0), torch.zeros(OUT, 1)):
        with pytest.raises(InputError):
            linear(torch.zeros(2, COLUMNS), right, bias)
    expected = linear(torch.ones(2, COLUMNS), right)
    assert torch.equal(linear(torch.ones(COLUMNS, 2).T, right), expected)
    assert torch.equal(linear(torch.ones(2, 2 * COLUMNS)[:, ::2], right, torch.zeros(2 * OUT)[::2]), expected)
    assert linear(torch.zeros(0, COLUMNS), right).shape == (0, OUT)
    odd = torch.zeros(4 * COLUMNS + 1, dtype=torch.uint8)[1:].view(torch.uint8)
    assert odd.data_ptr() % 2 == 1
    with pytest.raises(InputError):
        linear(torch.zeros(1, COLUMNS), replace(right, table=None, zero=odd[:1]))


def test_wrong_codes_cannot_be_packed() -> None:
    for codes in (torch.zeros(4), torch.zeros(4, 4), torch.zeros(0, 4, dtype=torch.uint8)):
        with pytest.raises(InputError):
            pack_codes(codes, BITS, BLOCK)
    for bits, block in ((0, 32), (9, 32), (4, 48), (3, 16), (4, 2**70), (-1, 32)):
        with pytest.raises(InputError):
            pack_codes(torch.zeros(4, 4, dtype=torch.uint8), bits, block)


def test_memory_that_is_not_there_is_an_error() -> None:
    for size, error in ((0, ValueError), (-1, ValueError), (2**62, MemoryError)):
        with pytest.raises(error):
            large_pages(size)
