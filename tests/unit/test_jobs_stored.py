"""Whether tensors are numbers: equal to asking each element."""

from __future__ import annotations

import pytest
import torch

from bitwright.jobs.stored import PIECE, all_finite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 57344.0, 0.0])
@pytest.mark.parametrize("place", [0, PIECE - 1, PIECE, PIECE + 4])
def test_one_bad_value_anywhere_is_found(dtype: torch.dtype, value: float, place: int) -> None:
    x = torch.ones(PIECE + 5, dtype=dtype)
    x[place] = value
    assert all_finite(x) == bool(torch.isfinite(x.float()).all())


def test_integers_and_empty_tensors_are_finite() -> None:
    assert all_finite(torch.full((3,), 255, dtype=torch.uint8))
    assert all_finite(torch.empty(0, 4))
    nan = torch.full((2, 2), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert not all_finite(nan)
    assert not all_finite(torch.tensor(float("nan")))
