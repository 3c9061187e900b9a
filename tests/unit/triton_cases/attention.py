"""Attention over a coded cache against attention over the decoded one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.runtime import TABLE
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.attention import reference, triton
from bitwright.runtime.manifest import CacheSide
from bitwright.runtime.states import StateCoder, States
from bitwright.stages.transforms import OnlineOperation

TOLERANCE = {torch.float32: 2.0**-18, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def states(text: str | None, x: Tensor, window: int = 0, online: tuple[OnlineOperation, ...] = ()) -> States:
    """Coded tokens of ``x[batch, heads, tokens, dim]``; those in the window stay float."""
    found = States(None if text is None else StateCoder(CacheSide(parse(text), online), TABLE), window)
    found.append(x)
    return found


def compare(
    key: str | None, value: str | None, device: torch.device, *, dtype: torch.dtype = torch.float32,
    shape: tuple[int, int, int, int] = (1, 2, 70, 16), repeat: int = 2, queries: int = 1, window: int = 0,
    online: tuple[OnlineOperation, ...] = (), **options: Any,
) -> None:  # fmt: skip
    batch, heads, _, dim = shape
    keys = states(key, random(*shape, seed=1).to(device, dtype), window, online)
    values = states(value, random(*shape, seed=2).to(device, dtype), window, online)
    q = random(batch, heads * repeat, queries, dim, seed=3).to(device, dtype)
    splits = options.pop("splits", 0)
    wanted = reference.run(q, keys, values, **options)
    found = triton.run(q, keys, values, splits=splits, **options)
    assert found.dtype == dtype
    assert found.shape == q.shape
    assert float((found.float() - wanted.float()).abs().max()) <= TOLERANCE[dtype] * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("int8 token", "int8 token"), ("int4 g16 asym", "int4 g8 asym"), ("int4 g32 axis=0 asym", "int8 token"),
        ("int2 g16 axis=0 asym", "int2 g16 asym"), ("int4 g8 axis=0", "int4 g16 asym"), ("int8 g64 axis=0", None),
        (None, "int2 g16 asym"), (None, None),
    ],
)  # fmt: skip
def test_keys_and_values_of_any_width(key: str | None, value: str | None, device: torch.device) -> None:
    compare(key, value, device, queries=2, shape=(2, 2, 36, 16))


@pytest.mark.parametrize(
    "text", ["int3 g16 asym", "int5 token", "int6 g8 axis=0", "int7 g8 axis=0 asym", "int1 asym token"]
)
def test_codes_that_straddle_bytes(text: str, device: torch.device) -> None:
    compare(text, text, device)


@pytest.mark.parametrize("text", ["e4m3 token", "e5m2 token", "mxfp4", "mxfp8_e4m3", "mxint8", "nvfp4", "nf4 g16"])
def test_other_grids_and_scales(text: str, device: torch.device) -> None:
    compare(text, text, device, shape=(1, 1, 20, 32))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("repeat", "queries"), [(4, 8), (3, 30)])
def test_grouped_queries_and_dtypes(repeat: int, queries: int, dtype: torch.dtype, device: torch.device) -> None:
    compare("int4 g16 asym", "int4 g16 asym", device, dtype=dtype, repeat=repeat, queries=queries)


@pytest.mark.parametrize(("tokens", "dim"), [(1, 8), (65, 20), (200, 64)])
@pytest.mark.parametrize("splits", [0, 2, 1000])
def test_lengths_head_sizes_and_splits(tokens: int, dim: int, splits: int, device: torch.device) -> None:
    compare("int8 token", "int8 token", device, shape=(1, 2, tokens, dim), splits=splits)


@pytest.mark.parametrize("window", [5, 40, 100])
def test_float_tokens_at_the_end(window: int, device: torch.device) -> None:
    compare("int4 g16 axis=0", "int8 token", device, window=window, queries=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rotated_before_coding(dtype: torch.dtype, device: torch.device) -> None:
    turn = OnlineOperation("hadamard", (("size", 16), ("seed", 3)))
    compare("int4 g16 asym", "int4 g16 asym", device, window=9, online=(turn,), dtype=dtype)


def test_what_a_query_sees(device: torch.device) -> None:
    compare("int8 token", "int8 token", device, queries=5, causal=False, scale=0.3)
    for window in (1, 7, 64):
        keys, values = (states("int8 token", random(1, 1, 70, 16, seed=s).to(device)) for s in (1, 2))
        q = random(1, 2, 5, 16, seed=3).to(device)
        found = triton.run(q, keys, values, window=window, splits=2)
        torch.testing.assert_close(found, reference.run(q, keys, values, window=window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_masks(shape: tuple[int, int], device: torch.device) -> None:
    seen = random(*shape, 3, 70, seed=5).to(device) > 0
    seen[0, 0, 0] = False  # this query sees nothing
    compare("int8 token", "int4 g8 asym", device, shape=(2, 2, 70, 16), queries=3, mask=seen)
    bias = random(*shape, 3, 70, seed=6).to(device)
    compare("int8 token", "int4 g8 asym", device, shape=(2, 2, 70, 16), queries=3, mask=bias, splits=2)


def test_large_scores_and_equal_bits(device: torch.device) -> None:
    keys, values = (states("int8 token", 100 * random(1, 1, 150, 16, seed=s).to(device)) for s in (1, 2))
    q = 100 * random(1, 1, 1, 16, seed=3).to(device)
    found = triton.run(q, keys, values, splits=3)
    torch.testing.assert_close(found, reference.run(q, keys, values), rtol=1e-4, atol=1e-3)
    assert torch.equal(found, triton.run(q, keys, values, splits=3))


def test_what_is_not_served_is_named(device: torch.device) -> None:
    keys, values = (states("int8 token", random(1, 2, 20, 16, seed=s).to(device)) for s in (1, 2))
    q = random(1, 2, 1, 16).to(device)
    for wrong in (q[0], q[..., :8], random(1, 3, 1, 16).to(device), random(1, 2, 21, 16).to(device)):
        with pytest.raises(InputError, match="do not fit"):
            triton.run(wrong, keys, values)
    with pytest.raises(InputError, match="do not fit together"):
        triton.run(q, keys, states("int8 token", random(1, 2, 19, 16).to(device)))
    with pytest.raises(InputError, match="is empty"):
        triton.run(q, keys, States(None, 0))
    with pytest.raises(InputError, match="mask of shape"):
        triton.run(q, keys, values, mask=torch.ones(1, 1, 1, 19, device=device))
    with pytest.raises(UnsupportedError, match="float64"):
        triton.run(q.double(), keys, values)
    large = [states("int8 token", random(1, 1, 2, 264, seed=s).to(device)) for s in (1, 2)]
    with pytest.raises(UnsupportedError, match="up to 256"):
        triton.run(random(1, 1, 1, 264).to(device), large[0], large[1])


def test_parts_that_are_too_small_are_refused(device: torch.device) -> None:
    from bitwright.runtime.kernels.triton.attend import Side, attend, side_of

    q = random(1, 2, 1, 16).to(device)
    good = side_of(states("int4 g8 asym", random(1, 2, 20, 16).to(device)), q.dtype)
    for index in range(3):
        part = good.parts[index]
        assert part is not None
        parts = [*good.parts[:index], part[:, :1].contiguous(), *good.parts[index + 1 :]]
        with pytest.raises(InputError, match="fewer values"):
            attend(q, Side(good.tail, tuple(parts), good.form, 1.0), good, 1.0, True, 0, None)
    for index, value in ((0, 9), (1, 3), (2, 5), (4, 1)):
        form = (*good.form[:index], value, *good.form[index + 1 :])
        with pytest.raises(InputError, match=r"contradicts|do not fit rows"):
            attend(q, good, Side(good.tail, good.parts, form, 1.0), 1.0, True, 0, None)
