"""Packed codes are one little-endian stream of bits per row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.formats import pack, packed_columns, unpack


def by_one_long_integer(row: list[int], bits: int) -> bytes:
    stream = sum(code << (bits * place) for place, code in enumerate(row))
    return stream.to_bytes((len(row) * bits + 7) // 8, "little")


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 70), st.integers(0, 999))
def test_pack_is_the_stream_and_unpack_its_inverse(bits: int, rows: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, n), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_columns(n, bits))
    assert [bytes(row.tolist()) for row in packed] == [by_one_long_integer(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack(packed, bits, n), codes)


def test_the_order_of_four_bits_is_low_nibble_first() -> None:
    assert pack(torch.arange(8, dtype=torch.uint8).view(1, 8), 4).tolist() == [[0x10, 0x32, 0x54, 0x76]]


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_largest_codes_keep_to_their_place(bits: int) -> None:
    codes = torch.full((1, 16), (1 << bits) - 1, dtype=torch.uint8)
    assert pack(codes, bits).tolist() == [[255] * (2 * bits)]
    assert torch.equal(unpack(pack(codes, bits), bits, 16), codes)


def test_strided_codes_and_fresh_results() -> None:
    codes = torch.arange(16, dtype=torch.uint8).view(4, 4).t()
    assert torch.equal(unpack(pack(codes, 8), 8, 4), codes)
    assert pack(codes.contiguous(), 8).data_ptr() != codes.data_ptr()
    assert torch.equal(unpack(pack(codes, 4), 4, 4), codes)


@given(st.integers(1, 8), st.integers(0, 3), st.integers(0, 34), st.integers(0, 3), st.integers(1, 3), st.booleans())
def test_views_into_larger_matrices_pack_as_their_copies(
    bits: int, rows: int, n: int, start: int, step: int, turned: bool
) -> None:
    """Any offset and stride, also those of a single row, which no copy straightens."""
    shape = (start + rows * step, start + n * step + 1)
    whole = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    if turned:
        whole = whole.t().contiguous().t()
    codes = whole[start::step, start : start + n * step : step]
    plain = torch.tensor(codes.tolist(), dtype=torch.uint8).view(codes.shape)
    packed = pack(codes, bits)
    assert torch.equal(packed, pack(plain, bits))
    wide = torch.cat([packed, packed[:, :1]], 1)[:, : packed.shape[1]]
    assert torch.equal(unpack(wide, bits, n), plain)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pack(torch.zeros(2, 4, dtype=torch.uint8), 9),
        lambda: pack(torch.zeros(2, 4), 4),
        lambda: pack(torch.zeros(4, dtype=torch.uint8), 4),
        lambda: unpack(torch.zeros(2, 4, dtype=torch.uint8), 0, 4),
        lambda: unpack(torch.zeros(2, 4, dtype=torch.uint8), 4, 9),
        lambda: unpack(torch.zeros(2, 4), 4, 8),
    ],
)
def test_other_shapes_and_widths_are_refused(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]
