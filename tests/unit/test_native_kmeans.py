"""Compiled one-dimensional k-means against the form on torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.buffers import span
from bitwright.native.kmeans import kmeans
from bitwright.stages.codebooks import weighted_kmeans as stage

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()


def lines_of(lines: int, n: int, seed: int = 0) -> stage._Lines:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(lines, n, generator=generator)
    values[:, : n // 5] = values[:, :1]  # equal values, and weights of nothing
    weights = torch.exp(1.5 * torch.randn(lines, n, generator=generator))
    weights[:, n // 2 : n // 2 + n // 8] = 0
    return stage._Lines.of(values, weights)


def explained(lines: stage._Lines, centres: Tensor) -> Tensor:
    mass, moment = lines.clusters(centres.double())
    return (2 * centres * moment - centres.double().square() * mass).sum(-1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("levels", "n"), [(2, 40), (3, 7), (8, 400), (16, 300), (16, 9), (64, 900)])
def test_finds_what_torch_finds(levels: int, n: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(7, n)
    places = stage._grid(lines, max(64, 8 * levels))
    found = kmeans(lines.values, lines.mass, lines.moment, places, levels, 50, 4, library(name))
    assert found is not None
    assert bool((found.diff(dim=-1) >= 0).all())
    best, worth = lines.descend(stage._best_on_grid(lines, places, levels), 50)
    for _ in range(4):
        tried, explains = lines.descend(stage._swap(lines, best), 50)
        wins = explains > worth
        best, worth = torch.where(wins[:, None], tried, best), torch.where(wins, explains, worth)
    ours = explained(lines, found)
    assert bool((ours >= worth * (1 - 1e-6)).all())
    assert torch.allclose(ours, worth, rtol=2e-3)
    assert int((found - best.float()).abs().amax(-1).le(1e-6).sum()) >= 5


def test_instruction_sets_and_threads_agree_in_every_bit() -> None:
    lines = lines_of(20, 200)
    places = stage._grid(lines, 128)
    found = [kmeans(lines.values, lines.mass, lines.moment, places, 16, 50, 4, library(name)) for name in SETS]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found.append(kmeans(lines.values, lines.mass, lines.moment, places, 16, 50, 4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, found[0]) for a in found)


def test_broken_numbers_end_somewhere() -> None:
    """NaN and infinity give some table; nothing is read outside of a line."""
    for bad in (float("nan"), float("inf")):
        values = torch.tensor([[0.0, 1.0, 2.0, bad]]).double()
        prefix = torch.tensor([[0.0, 1.0, 2.0, bad, bad]]).double()
        places = torch.arange(5)[None]
        assert kmeans(values, prefix, prefix, places, 3, 5, 4) is not None
    assert kmeans(values.flip(1), prefix.flip(1), prefix, places.flip(1), 3, 5, 4) is not None


@pytest.mark.parametrize(
    "changes", [{0: 3}, {0: -1}, {1: 0}, {1: 5}, {2: 5}, {3: 1}, {3: 257}, {4: -1}, {0: 1 << 60}, {11: 0}]
)
def test_wrong_sizes_are_refused(changes: dict[int, int]) -> None:
    values, prefix, centres = torch.zeros(2, 4).double(), torch.zeros(2, 5).double(), torch.zeros(2, 3)
    places = torch.arange(5).repeat(2, 1)
    arguments = [2, 4, 4, 3, 5, 1, span(values), span(prefix), span(prefix), span(places), span(centres), 1]
    for place, value in changes.items():
        arguments[place] = value
    with pytest.raises(ValueError):
        library().kmeans(*arguments)
    places[1, 4] = 5
    with pytest.raises(ValueError):
        library().kmeans(2, 4, 4, 3, 5, 1, span(values), span(prefix), span(prefix), span(places), span(centres), 1)
