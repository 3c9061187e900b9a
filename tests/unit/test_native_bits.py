"""Compiled bit streams against the definition, for every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats.packing import _pack_by_words, _unpack_by_words
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.bits import pack_bits, unpack_bits
from bitwright.native.buffers import span

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(SETS), st.integers(1, 8), st.integers(0, 5), st.integers(0, 1300), st.integers(0, 99))
def test_streams_equal_the_plain_ones(name: str, bits: int, rows: int, n: int, seed: int) -> None:
    """Batches of words, their tails, ragged ends of rows."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, n), dtype=torch.uint8, generator=random)
    packed = pack_bits(codes, bits, library(name))
    assert packed is not None
    assert torch.equal(packed, _pack_by_words(codes, bits))
    assert torch.equal(_unpack_by_words(packed, bits, n), codes)
    found = unpack_bits(packed, bits, n, library(name))
    assert found is not None
    assert torch.equal(found, codes)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_chunks_and_threads_meet_without_a_gap(name: str, bits: int) -> None:
    """More codes than one chunk of work holds, in one row and in many; nothing is written behind the end."""
    kernels = library(name)
    for rows, n in ((1, 150_003), (1500, 100), (7, 70_001)):
        codes = torch.randint(0, 1 << bits, (rows, n), dtype=torch.uint8)
        width = (n * bits + 7) // 8
        wanted = _pack_by_words(codes, bits)
        for threads in (1, 3):
            packed = torch.full((rows * width + 16,), 0xA5, dtype=torch.uint8)
            place = packed[: rows * width]
            kernels.pack_bits(rows, n, bits, span(codes), span(place), threads)
            assert torch.equal(place.view(rows, width), wanted)
            assert bool((packed[rows * width :] == 0xA5).all())
            found = torch.full((rows * n + 16,), 0xA5, dtype=torch.uint8)
            kernels.unpack_bits(rows, n, bits, span(wanted), span(found[: rows * n]), threads)
            assert torch.equal(found[: rows * n].view(rows, n), codes)
            assert bool((found[rows * n :] == 0xA5).all())


@pytest.mark.parametrize("name", SETS)
def test_results_larger_than_the_cache(name: str) -> None:
    """They are stored past it, from wherever they start."""
    kernels = library(name)
    count = (34 << 20) + 13
    packed = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for bits, start in ((4, 0), (3, 1)):
        n = count * 8 // bits
        codes = torch.empty(n + 64, dtype=torch.uint8)[start : start + n]
        kernels.unpack_bits(1, n, bits, span(packed), span(codes), 2)
        some = torch.randint(0, n, (100_000,), generator=torch.Generator().manual_seed(1))
        place = some * bits
        word = packed[place // 8].int() | packed[(place // 8 + 1).clamp_(max=count - 1)].int() << 8
        assert torch.equal(codes[some].int(), word >> place % 8 & (1 << bits) - 1)
        again = torch.full((count + 64,), 0xA5, dtype=torch.uint8)
        kernels.pack_bits(1, n, bits, span(codes), span(again[start : start + count]), 2)
        assert torch.equal(again[start : start + n * bits // 8], packed[: n * bits // 8])
        assert bool((again[start + count :] == 0xA5).all())
        assert bool((again[:start] == 0xA5).all())


@pytest.mark.parametrize(
    "shape", [(2, 8, 0), (2, 8, 9), (-1, 8, 4), (2, -8, 4), (3, 8, 4), (2, 17, 4), (1 << 40, 1 << 40, 4)]
)
def test_wrong_sizes_are_refused(shape: tuple[int, int, int]) -> None:
    codes, packed = torch.zeros(16, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    kernels = library()
    with pytest.raises(ValueError):
        kernels.pack_bits(*shape, span(codes), span(packed), 1)
    with pytest.raises(ValueError):
        kernels.unpack_bits(*shape, span(packed), span(codes), 1)
