"""The Hadamard kernel against the transform of the stages: powers of two, other sizes, signs, blocks, both ways."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.hadamard.triton import run
from bitwright.runtime.kernels.triton import hadamard as kernels
from bitwright.stages.transforms.hadamard import apply_hadamard

TOLERANCE = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compare(x: torch.Tensor, size: int, seed: int, inverse: bool, device: torch.device) -> None:
    wanted = apply_hadamard(x.float(), size, seed, inverse)
    found = run(x.to(device), size, seed, inverse)
    assert found.dtype == x.dtype
    assert found.shape == x.shape
    # Every value is a sum of the block's values over the root of its size.
    bound = x.float().abs().max() * size**0.5
    assert float((found.cpu().float() - wanted).abs().max()) <= TOLERANCE[x.dtype] * float(bound)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("seed", [-1, 3])
@pytest.mark.parametrize(
    ("dim", "size"),
    [
        (1, 1),
        (2, 2),
        (64, 64),
        (256, 64),
        (1024, 1024),
        (12, 12),
        (24, 12),
        (40, 40),
        (112, 56),
        (344, 344),
    ],
)
def test_every_size_signs_and_direction(dim: int, size: int, seed: int, inverse: bool, device: torch.device) -> None:
    compare(random(3, dim), size, seed, inverse, device)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(128,), (1, 128), (2, 3, 128), (70, 128)])
def test_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    compare(random(*shape).to(dtype), 128, 0, False, device)


@pytest.mark.parametrize(("dim", "limit"), [(256, 16), (768, 64)])
def test_powers_beyond_one_run_of_butterflies(
    dim: int, limit: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LONGEST", limit)
    order, inner = kernels.factors(dim) or (0, 0)
    assert (order, inner) == (dim // limit, limit)
    for inverse in (False, True):
        compare(random(2, dim), dim, 1, inverse, device)


def test_the_inverse_undoes_it(device: torch.device) -> None:
    x = random(5, 96).to(device)
    torch.testing.assert_close(run(run(x, 48, 7), 48, 7, True), x, rtol=1e-5, atol=1e-5)


def test_zero_large_and_strided_values(device: torch.device) -> None:
    x = random(6, 64)
    x[1] = 0
    x[2] *= 1e30
    compare(x, 64, 0, False, device)
    turned = random(64, 6).T
    assert not turned.is_contiguous()
    compare(turned, 64, 0, False, device)
    assert run(torch.empty(0, 64, device=device), 64, 0).shape == (0, 64)


def test_what_is_not_served_is_named(device: torch.device) -> None:
    with pytest.raises(InputError, match="blocks of 48 for 64"):
        run(random(1, 64).to(device), 48, -1)
    with pytest.raises(InputError, match="blocks of 3 "):
        run(random(1, 3).to(device), 3, -1)
    with pytest.raises(UnsupportedError, match="float64"):
        run(random(1, 64).double().to(device), 64, -1)
