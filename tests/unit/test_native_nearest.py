"""Compiled rounding to nearest against the definition on torch, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import nearest as formats_nearest
from bitwright.formats import parse
from bitwright.formats.compiled import Rounder, rounder
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.buffers import NOTHING, span
from bitwright.native.nearest import Groups, ToIntegers, group_limits, round_groups, serving
from bitwright.stages import bound
from bitwright.stages.ranges import MinMax
from bitwright.stages.ranges.minmax import group_limits as stage_limits

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()
TEXTS = ["int8 channel", "int4 g128", "int4 g16 asym", "int3 g20", "int3 g20 asym", "int2 g16 narrow", "int1 g16",
         "int1 g16 asym", "uint4 channel", "int4 tensor", "int8 token dynamic", "int4 g32 asym scale=e8m0",
         "int4 g16 zero=fp16", "nf4 b64", "nf4 b64 scale=double", "nf3 g48", "fp4-bnb b12", "pot4 channel", "apot4 g32",
         "lloyd3 channel", "ternary channel", "binary g16", "table[-3,-1,0.5,2] channel", "table[0,1,3] channel",
         "mxfp4", "e2m1 g16", "e2m2 g16", "nvfp4", "mxint8"]  # fmt: skip
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit, signs of zeros too."""
    whole = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(whole), b.view(whole))


def matrix(rows: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal values with zeros of both signs, ties, and rows of tiny, large and equal values."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=random)
    w[torch.rand(rows, columns, generator=random) < 0.1] = 0.0
    w[torch.rand(rows, columns, generator=random) < 0.1] = -0.0
    w = w * torch.tensor([1.0, 1e-3, 300.0, 1.0])[torch.arange(rows) % 4, None]
    w[rows // 2] = (w[rows // 2] * 2).round() / 2
    return w.to(dtype)


def compiled(text: str, w: Tensor, name: str) -> tuple[Rounder, Tensor, Tensor | None]:
    """The rounder of a matrix with stored scales and zero points from its own ranges."""
    fmt = parse(text)
    layout = fmt.granularity.layout(tuple(w.shape))
    found = rounder(fmt, w, layout, library(name))
    assert found is not None
    limits = found.limits()
    assert limits is not None
    g = layout.split(w)
    assert torch.equal(limits[0], g.amin(-1).float())
    assert torch.equal(limits[1], g.amax(-1).float())
    raw, zero = fmt.scale_from_range(*limits)
    return found, fmt.store_scale(raw).effective, fmt.store_zero(zero)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", TEXTS)
def test_equals_the_definition(text: str, name: str) -> None:
    """Codes and values, for shapes that groups and vectors divide or not, and every float type."""
    fmt = parse(text)
    for seed, (rows, columns) in enumerate([(4, 64), (5, 96), (7, 45), (3, 1), (1, 130)]):
        for dtype in TYPES:
            w = matrix(rows, columns, seed, dtype)
            found, scale, zero = compiled(text, w, name)
            layout = found.layout
            g = layout.split(w)
            assert torch.equal(found.codes(scale, zero), layout.join(fmt.encode(g, scale, zero)))
            assert same(found.values(scale, zero), layout.join(fmt.round(g, scale, zero)).to(dtype))
            codes, values = found.both(scale, zero)
            assert torch.equal(codes, found.codes(scale, zero))
            assert same(values, found.values(scale, zero))


@pytest.mark.parametrize("name", SETS)
def test_ties_and_extremes(name: str) -> None:
    """Halves go to the even level, what is far outside to the ends, under scales down to the smallest."""
    steps = torch.cat([torch.arange(-20, 21) / 2.0, torch.tensor([-0.0, 1e30, -1e30, 7.4999995, -8.500001])])
    for size in (1.0, 0.1, torch.finfo(torch.float32).tiny, 1e-5):
        for text in ("int4 tensor", "uint4 tensor", "e2m1 tensor", "nf4 tensor", "table[-3,-1,0.5,2] tensor"):
            fmt, w = parse(text), (steps * size)[None]
            layout = fmt.granularity.layout((1, len(steps)))
            found = rounder(fmt, w, layout, library(name))
            assert found is not None
            scale = torch.tensor([[size]])
            assert torch.equal(found.codes(scale, None), layout.join(fmt.encode(layout.split(w), scale)))
            assert same(found.values(scale, None), layout.join(fmt.round(layout.split(w), scale)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 320), st.integers(0, 99), st.sampled_from(TYPES))
def test_limits_are_the_extremes(lines: int, length: int, size: int, seed: int, dtype: torch.dtype) -> None:
    x = torch.randn(lines, length, generator=torch.Generator().manual_seed(seed)).to(dtype)
    groups = Groups(lines, length, size)
    for name in SETS:
        low, high = group_limits(x, groups, library(name))
        for index, part in enumerate(x.float().split(size, dim=1)):
            assert torch.equal(low[:, index], part.amin(1))
            assert torch.equal(high[:, index], part.amax(1))


@pytest.mark.parametrize("name", SETS)
def test_long_groups_are_cut_for_threads(name: str) -> None:
    """A group of more values than a thread takes at once."""
    w = matrix(3, 150_001, 0, torch.float32)
    for text in ("int4 tensor", "int8 channel", "nf4 channel"):
        found, scale, zero = compiled(text, w, name)
        fmt, g = parse(text), found.layout.split(w)
        assert torch.equal(found.codes(scale, zero), found.layout.join(fmt.encode(g, scale, zero)))


@pytest.mark.parametrize("place", [0, 17, 63])
def test_nan_and_infinity_are_seen(place: int) -> None:
    """Ranges are torch's, NaN included; a matrix is refused, activations are torch's."""
    for value in (float("nan"), float("inf"), -float("inf")):
        x = matrix(4, 64, 0, torch.float32)
        x[2, place] = value
        for name in SETS:
            low, high = group_limits(x, Groups(4, 64, 16), library(name))
            wanted = x.view(4, 4, 16)
            assert torch.equal(low.nan_to_num(9e9), wanted.amin(-1).nan_to_num(9e9))
            assert torch.equal(high.nan_to_num(9e9), wanted.amax(-1).nan_to_num(9e9))
        with pytest.raises(InputError, match="NaN or Inf"):
            parse("int4 g16").quantize(x)
        fmt = parse("int8 token dynamic")
        if value == value:
            with pytest.raises(InputError, match="scale of inf"):
                fmt.fake_quantize(x)
            continue
        g = x.view(4, 1, 64)
        scale = fmt.store_scale(fmt.scale_from_range(g.amin(-1), g.amax(-1))[0]).effective
        assert same(fmt.fake_quantize(x).nan_to_num(9e9), fmt.round(g, scale).view(4, 64).nan_to_num(9e9))


def test_formats_use_it_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same codes and activations with and without; gradients and other devices stay with torch."""
    w = matrix(33, 96, 1, torch.float32)
    texts = [*TEXTS, "int4 block16x24", "int5 g24 axis=0 asym", "e4m3 channel", "mxfp6_e2m3"]
    fast = [(parse(text).quantize(w), parse(text).fake_quantize(w)) for text in texts]
    monkeypatch.setattr(formats_nearest, "rounder", lambda *given: None)
    for text, (codes, values) in zip(texts, fast, strict=True):
        plain = parse(text).quantize(w)
        assert torch.equal(codes.codes, plain.codes)
        assert torch.equal(codes.scale.stored, plain.scale.stored)
        assert same(values, parse(text).fake_quantize(w))
    assert serving(w.clone().requires_grad_()) is None
    assert serving(w.double()) is None
    assert serving(torch.empty(2, 2, device="meta")) is None


@pytest.mark.parametrize("text", ["int4 g16 asym", "nf4 b64", "e2m1 channel", "int4 tensor"])
def test_the_bound_quantizer_rounds_with_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole weights under scales that were fitted some other way."""
    w = matrix(12, 64, 3, torch.float32)
    found = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(bound, "rounder", lambda *given: None)
        quantizer = bound.BoundQuantizer(parse(text), MinMax(), w)
        quantizer.open_all(w * 0.8)
        found.append((quantizer.round(0, 64, w), quantizer.codes))
    assert same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_range_stage_takes_it() -> None:
    g = matrix(6, 60, 2, torch.float32).view(6, 5, 12)
    for part in (g, g[:, 1:3], g[..., :7]):
        low, high = stage_limits(part, None)
        assert torch.equal(low, part.amin(-1))
        assert torch.equal(high, part.amax(-1))


def test_wrong_buffers_are_refused() -> None:
    x, kernels = torch.randn(4, 32), library()
    rule, one = ToIntegers(-8.0, 7.0), torch.ones(4)
    with pytest.raises(InputError, match="do not fit"):
        group_limits(x, Groups(5, 32, 16), kernels)
    with pytest.raises(InputError, match="scale holds"):
        round_groups(x, Groups(4, 32, 16), rule, one, None, kernels, codes=torch.empty(4, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="codes holds"):
        round_groups(x, Groups(4, 32, 32), rule, one, None, kernels, codes=torch.empty(4, 31, dtype=torch.uint8))
    with pytest.raises(InputError, match="neither"):
        round_groups(x, Groups(4, 32, 32), rule, one, None, kernels)
    with pytest.raises(InputError, match="8 bits"):
        round_groups(x, Groups(4, 32, 32), ToIntegers(-200.0, 100.0), one, None, kernels, values=x.clone())
    with pytest.raises(ValueError, match="shape"):
        kernels.group_limits(4, 32, 0, 0, span(x), span(one), span(one), 1)
    with pytest.raises(ValueError, match="float type"):
        kernels.group_limits(4, 32, 32, 7, span(x), span(one), span(one), 1)
    with pytest.raises(ValueError, match="levels"):
        kernels.round_to_levels(4, 32, 32, span(one), 65, span(x), span(x), span(x), 0, span(x), NOTHING, span(x), 1)
