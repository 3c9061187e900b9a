"""Compiled searches of vector codebooks against their definitions: equal codes, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from bitwright import native
from bitwright.errors import InputError
from bitwright.formats.lattice import base_points, e8_points, e8p_points
from bitwright.formats.search import half_norms, plain_beam_search, plain_nearest_e8p
from bitwright.native import vectors
from bitwright.native.loading import instruction_sets

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="no compiled kernels here")
SETS = instruction_sets()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awkward() -> torch.Tensor:
    """Vectors on borders between points, far away, tiny, zero, of both signs of zero."""
    points = e8p_points()[::997]
    middles = (points[1:] + points[:-1]) / 2
    far = normal(20, 8) * torch.tensor([1e3, 1e10, 1e35, 1e-30]).repeat(5).unsqueeze(1)
    return torch.cat([points, middles, far, torch.zeros(1, 8), torch.full((1, 8), -0.0), torch.full((1, 8), 0.25)])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_points_of_e8p_are_those_of_the_definition(name: str, count: int) -> None:
    base, kernels = base_points(), native.library(name)
    half = half_norms(base)
    x = normal(count, 8, seed=count) * 1.4
    found = vectors.nearest_e8p(x, base, half, kernels)
    assert found is not None
    assert torch.equal(found, plain_nearest_e8p(x, base, half))


@pytest.mark.parametrize("name", SETS)
def test_borders_and_extremes_of_e8p(name: str) -> None:
    base = base_points()
    half, x = half_norms(base), awkward()
    found = vectors.nearest_e8p(x, base, half, native.library(name))
    assert found is not None
    assert torch.equal(found, plain_nearest_e8p(x, base, half))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("count", "books", "entries", "span", "beam"),
    [(1, 1, 1, 2, 1), (70, 1, 256, 8, 1), (65, 2, 256, 8, 1), (33, 2, 256, 8, 4), (20, 3, 17, 5, 7), (9, 4, 3, 8, 100),
     (5, 1, 5000, 8, 3), (0, 2, 16, 4, 2), (130, 2, 65, 16, 2)],
)  # fmt: skip
def test_beams_are_those_of_the_definition(
    name: str, count: int, books: int, entries: int, span: int, beam: int
) -> None:
    x, codebooks = normal(count, span, seed=count), normal(books, entries, span, seed=entries)
    half = half_norms(codebooks)
    found = vectors.beam_search(x, codebooks, half, beam, native.library(name))
    assert found is not None
    assert torch.equal(found, plain_beam_search(x, codebooks, half, beam))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("beam", [1, 3, 8])
def test_equal_candidates_go_in_the_order_of_their_places(name: str, beam: int) -> None:
    book = torch.randint(-2, 3, (2, 100, 4), generator=torch.Generator().manual_seed(1)).float()
    x = torch.randint(-3, 4, (60, 4), generator=torch.Generator().manual_seed(2)).float()
    half = half_norms(book)
    found = vectors.beam_search(x, book, half, beam, native.library(name))
    assert found is not None
    assert torch.equal(found, plain_beam_search(x, book, half, beam))


@pytest.mark.parametrize("name", SETS)
def test_the_short_vectors_of_e8_are_found(name: str) -> None:
    points = e8_points().unsqueeze(0)
    x = torch.cat([points[0], awkward()])
    half = half_norms(points)
    found = vectors.beam_search(x, points, half, 1, native.library(name))
    assert found is not None
    assert torch.equal(found[:256, 0], torch.arange(256, dtype=torch.int32))
    assert torch.equal(found, plain_beam_search(x, points, half, 1))


def test_the_number_of_threads_changes_nothing() -> None:
    x, books = normal(1000, 8), normal(2, 256, 8, seed=1)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 3, 8):
        torch.set_num_threads(count)
        found.append(vectors.beam_search(x, books, half_norms(books), 4))
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found if other is not None)


@pytest.mark.parametrize("name", SETS)
def test_vectors_that_are_no_numbers_do_no_harm(name: str) -> None:
    kernels = native.library(name)
    x = torch.full((3, 8), float("nan"))
    books = torch.full((2, 16, 8), float("nan"))
    index = vectors.beam_search(x, books, half_norms(books), 2, kernels)
    codes = vectors.nearest_e8p(x, base_points(), half_norms(base_points()), kernels)
    assert index is not None
    assert codes is not None
    assert bool(((index >= 0) & (index < 16)).all())
    assert bool(((codes >= 0) & (codes < 65536)).all())


def test_what_does_not_fit_is_refused() -> None:
    x, books = normal(4, 8), normal(2, 16, 8)
    half = half_norms(books)
    for change in ((x, books, half[:1], 1), (x[:, :4], books[:, :, :4].contiguous(), half, 0), (x, books[:0], half, 1)):
        with pytest.raises(InputError):
            vectors.beam_search(*change)
    with pytest.raises(InputError):
        vectors.beam_search(x.double(), books, half, 1)
    with pytest.raises(InputError):
        vectors.nearest_e8p(x, base_points()[:9], half_norms(base_points()))
    with pytest.raises(InputError):
        vectors.nearest_e8p(x, -base_points(), half_norms(base_points()))
    with pytest.raises(InputError):
        vectors.nearest_e8p(x[:, :7], base_points(), half_norms(base_points()))
