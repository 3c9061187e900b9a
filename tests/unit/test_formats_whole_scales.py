"""Whole scales below a scale for a row (QServe): every weight is an 8-bit integer times the row's scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, QuantizedTensor, parse
from bitwright.formats.scales import PROTECTED
from bitwright.runtime.rows import dequantize_rows
from bitwright.runtime.weight import PackedWeight
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges.mse import Mse
from bitwright.stages.solve import quantize_weight

TEXT = "int4 g32 asym scale=int8"


def weights(rows: int = 64, columns: int = 256, seed: int = 0) -> Tensor:
    """Rows of every shape: normal, lopsided, with one large value, tiny groups beside large ones, zeros."""
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    w[1], w[2], w[3] = w[1].abs(), -w[2].abs(), 0
    w[4, 5], w[5, :32], w[6] = 40, 0, w[6] * 1e-6
    w[7, :64] *= 1e-3
    return w


def integers(codes: Codes) -> Tensor:
    """The weights as multiples of the rows' scales."""
    low = int(codes.format.grid.min_level)
    zero = torch.full_like(codes.scale.stored, -low) if codes.zero is None else codes.zero
    whole = codes.format.granularity.layout(codes.shape)
    level = codes.codes.int() - whole.expand(zero).int()
    return level * whole.expand(codes.scale.stored).int()


@pytest.mark.parametrize(
    "text", [TEXT, "int4 g128 asym scale=int8", "int3 g16 scale=int8", "int2 channel asym scale=int8"]
)
def test_text_bits_and_saving(text: str) -> None:
    fmt = parse(text)
    assert str(fmt) == text
    assert parse(str(fmt)) == fmt
    codes = fmt.quantize(weights())
    q = QuantizedTensor((codes,))
    tensors, meta = q.to_tensors()
    assert q.storage_bits() == 8 * sum(t.nbytes for t in tensors.values()) == fmt.storage_bits((64, 256))
    assert tensors["scale"].dtype == torch.uint8
    assert (tensors["scale_outer"].dtype, tensors["scale_outer"].shape) == (torch.float16, (64,))
    back = QuantizedTensor.from_tensors(tensors, meta)
    assert torch.equal(back.dequantize(), q.dequantize())
    assert torch.equal(codes.dequantize(), integers(codes) * codes.scale.outer.float().view(-1, 1))  # type: ignore[union-attr]


def test_bits_by_hand() -> None:
    # 4 bits, 8 + 4 for each 128, 16 for the row.
    assert parse("int4 g128 asym scale=int8").bits_per_weight((64, 4096)) == pytest.approx(4 + 12 / 128 + 16 / 4096)


def possible(codes: Codes) -> Tensor:
    """The farthest integer that any code of a group could stand for."""
    assert codes.zero is not None
    zero = codes.zero.int()
    return torch.maximum(zero, 15 - zero) * codes.scale.stored.int()


def test_the_protective_range_keeps_eight_bits_where_127_does_not() -> None:
    """From 119 on no code of any group leaves 8 bits; from 127 on some do."""
    fmt = parse(TEXT)
    overflows = {PROTECTED: 0, 127: 0}
    for seed in range(20):
        w = weights(seed=seed)
        g = fmt.granularity.layout((64, 256)).split(w)
        scale, zero = fmt.scale_from_range(g.amin(-1), g.amax(-1))
        outer = fmt.fit_outer(scale, zero)
        assert outer is not None
        for most in overflows:
            by_row = (outer.float() * PROTECTED / most).half()
            stored, stored_zero = fmt.store_scale(scale, by_row), fmt.store_zero(zero)
            codes = Codes(torch.zeros(64, 256, dtype=torch.uint8), fmt, stored, stored_zero)
            overflows[most] += int((possible(codes) > 127).sum())
    assert overflows[PROTECTED] == 0
    assert overflows[127] > 0


@pytest.mark.parametrize("make", ["nearest", "search", "bound"])
def test_every_way_of_fitting_keeps_eight_bits(make: str) -> None:
    for seed in range(5):
        w, fmt = weights(seed=seed), parse(TEXT)
        if make == "nearest":
            codes = fmt.quantize(w)
        else:
            ranges = {"range": Mse()} if make == "search" else {}
            codes = quantize_weight(w, Quantizer(fmt, **ranges)).codes  # type: ignore[arg-type, assignment]
        assert int(possible(codes).max()) <= 127
        assert int(integers(codes).abs().max()) <= 127


def test_the_second_level_costs_little() -> None:
    """Rounding scales to whole numbers adds a few percent to the error of float scales, at fewer bits."""
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    plain, whole = (parse(f"int4 g128 asym{tail}") for tail in ("", " scale=int8"))
    errors = [float((fmt.quantize(w).dequantize() - w).square().mean()) for fmt in (plain, whole)]
    assert errors[1] < 1.06 * errors[0]
    assert whole.bits_per_weight((64, 4096)) < plain.bits_per_weight((64, 4096))


def test_rows_can_be_taken_alone() -> None:
    q = QuantizedTensor((parse(TEXT).quantize(weights()),))
    tensors, meta = q.to_tensors()
    packed = PackedWeight(tensors, meta, q.shape, q.normal_form, TEXT)
    rows = torch.tensor([3, 60, 1])
    assert torch.equal(dequantize_rows(packed, rows, torch.float32), q.dequantize()[rows])


@pytest.mark.parametrize(
    "text", ["int8 g32 scale=int8", "nf4 g32 scale=int8", "int4 g32 axis=0 scale=int8", "int4 tensor scale=int8",
             "int4 token dynamic scale=int8", "int4 b32 scale=int8", "int4 g32 zero=fp16 scale=int8"]
)  # fmt: skip
def test_what_would_not_keep_eight_bits_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="whole scales"):
        parse(text)


def test_damage_is_found() -> None:
    tensors, meta = QuantizedTensor((parse(TEXT).quantize(weights()),)).to_tensors()
    for name, wrong in (
        ("scale_outer", tensors["scale_outer"].float()),
        ("scale_outer", tensors["scale_outer"][:-1]),
        ("scale", torch.zeros_like(tensors["scale"])),
    ):
        with pytest.raises(InputError):
            QuantizedTensor.from_tensors({**tensors, name: wrong}, meta)
