"""Hadamard matrices are what their definition says, and the fast transform is the product with them."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.stages.transforms.hadamard import (
    apply_hadamard,
    apply_mean_keeping,
    hadamard_block,
    hadamard_matrix,
    is_product,
    random_signs,
)
from bitwright.stages.transforms.paley import prime_power


@pytest.mark.parametrize(
    "n", [1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 52, 60, 68, 76, 92, 96, 100, 108, 148, 256, 344]
)
def test_rows_are_orthogonal_signs(n: int) -> None:
    matrix = hadamard_matrix(n)
    assert matrix is not None
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n))


def test_every_order_below_92_and_none_that_cannot_exist() -> None:
    built = [n for n in range(1, 97) if hadamard_matrix(n) is not None]
    assert built == [1, 2, *range(4, 97, 4)]
    assert hadamard_matrix(0) is None
    assert hadamard_matrix(116) is None


def test_prime_powers() -> None:
    found = [q for q in range(2, 50) if prime_power(q)]
    assert found == [2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32, 37, 41, 43, 47, 49]
    assert prime_power(343) == (7, 3)


@pytest.mark.parametrize(
    ("dim", "block"),
    [
        (128, 128),
        (640, 640),
        (11008, 11008),
        (14336, 14336),
        (18944, 18944),
        (172, 4),
        (77, 1),
        (1000, 1000),
        (6, 2),
        (232, 8),
    ],
)
def test_the_largest_block(dim: int, block: int) -> None:
    found = hadamard_block(dim)
    assert found >= block
    assert dim % found == 0
    assert found == block or block == 1000
    rotated = apply_hadamard(torch.randn(2, dim, generator=torch.Generator().manual_seed(0)), found, seed=1)
    assert rotated.shape == (2, dim)


@pytest.mark.parametrize(
    ("dim", "size"), [(12, 12), (96, 12), (96, 96), (640, 128), (640, 640), (256, 256), (8192, 8192)]
)
@pytest.mark.parametrize("seed", [-1, 4])
def test_the_transform_is_orthogonal_and_has_an_inverse(dim: int, size: int, seed: int) -> None:
    x = torch.randn(3, 2, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = apply_hadamard(x, size, seed)
    torch.testing.assert_close(y.square().sum(-1), x.square().sum(-1))
    torch.testing.assert_close(apply_hadamard(y, size, seed, inverse=True), x)
    if dim <= 640:
        matrix = apply_hadamard(torch.eye(dim, dtype=torch.float64), size, seed)
        torch.testing.assert_close(y, x @ matrix)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(dim, dtype=torch.float64))
        blocks = matrix.reshape(dim // size, size, dim // size, size).abs()
        torch.testing.assert_close(blocks[0, :, 0], torch.full((size, size), size**-0.5, dtype=torch.float64))
        if dim > size:
            assert float(blocks[0, :, 1].max()) == 0


def test_powers_of_two_are_sylvesters() -> None:
    matrix = torch.ones(1, 1)
    for _ in range(8):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    torch.testing.assert_close(apply_hadamard(torch.eye(256), 256) * 16, matrix)


def test_rotating_weights_and_inputs_keeps_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(5, 60, generator=generator), torch.randn(4, 60, generator=generator)
    for size, seed in ((60, 3), (20, -1), (4, 9)):
        torch.testing.assert_close(apply_hadamard(x, size, seed) @ apply_hadamard(w, size, seed).T, x @ w.T)
    assert apply_hadamard(x.bfloat16(), 60).dtype == torch.bfloat16


def test_signs_depend_on_size_and_seed_alone() -> None:
    signs = random_signs(1000, 0)
    assert torch.equal(signs, random_signs(1000, 0))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
    assert not torch.equal(signs, random_signs(1000, 1))
    # Checkpoints store the seed only: these signs must never change.
    assert random_signs(12, 7).tolist() == [-1, 1, -1, 1, -1, 1, -1, 1, 1, 1, 1, 1]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="size=4"):
        apply_hadamard(torch.ones(2, 172), 172)
    with pytest.raises(InputError, match="size=60"):
        apply_hadamard(torch.ones(2, 60), 8)
    with pytest.raises(InputError, match="at least one"):
        hadamard_block(0)


@pytest.mark.parametrize("dim", [128, 12, 172, 6])
def test_a_mean_keeping_rotation_commutes_with_a_layer_norm(dim: int) -> None:
    size = hadamard_block(dim)
    q = apply_mean_keeping(torch.eye(dim, dtype=torch.float64), size, seed=3)
    torch.testing.assert_close(q @ q.T, torch.eye(dim, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.ones(dim, dtype=torch.float64))
    x = torch.randn(5, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    norm = torch.nn.functional.layer_norm
    torch.testing.assert_close(norm(x @ q, (dim,)), norm(x, (dim,)) @ q)
    torch.testing.assert_close(apply_mean_keeping(x.float(), size, 3), (x @ q).float(), rtol=1e-4, atol=1e-5)


def test_a_mean_keeping_rotation_spreads_every_channel() -> None:
    """One large channel becomes many of like size, as behind the plain transform (whose entries are all 1/16)."""
    rows = apply_mean_keeping(torch.eye(256), 256, seed=1)
    assert float(rows.abs().amax(1).max()) < 4.5 / 16
    assert float(rows.abs().mean(1).min()) > 0.7 / 16


def test_ones_that_stay_need_no_reflection() -> None:
    """A Hadamard matrix of order 1 without signs leaves everything, the ones too."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_mean_keeping(x, 1), x)


@pytest.mark.parametrize(
    ("dim", "inner", "expected"),
    [(32, 8, True), (5120, 128, True), (96, 8, True), (8, 8, True), (896, 64, False), (96, 12, False), (32, 0, False)],
)
def test_matrices_that_are_products_with_one_of_a_block(dim: int, inner: int, expected: bool) -> None:
    assert is_product(dim, inner) is expected
    if expected and dim < 1000:
        outer, block = hadamard_matrix(dim // inner), hadamard_matrix(inner)
        assert outer is not None
        assert block is not None
        both = apply_hadamard(apply_hadamard(torch.eye(dim), dim), inner)
        torch.testing.assert_close(both, torch.kron(outer / (dim // inner) ** 0.5, torch.eye(inner)))
