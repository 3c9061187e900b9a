"""One-dimensional weighted k-means per row: SqueezeLLM's non-uniform levels.

Kim et al. 2023 (arXiv:2306.07629, equation 5): the levels of an output row minimise ``sum_i F_i (w_i - q(w_i))^2`` with
the diagonal Fisher information F. In one dimension clusters are intervals of the sorted values, so a Lloyd step is two
look-ups in prefix sums, whatever the number of weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bitwright.formats import Format
from bitwright.native.kmeans import kmeans
from bitwright.stages.quantizer import WeightContext
from bitwright.statistics import Statistic
from bitwright.statistics.fisher import Fisher

# Weights that are sorted at once: prefix sums are fp64.
_CHUNK = 1 << 20

# The first clusters have borders on a grid of so many cells; lines whose grids are searched at once.
_CELLS = 64
_LINES = 32


@dataclass(frozen=True, eq=False)
class _Lines:
    """Sorted ``values[lines, n]`` (fp64) and prefix sums ``[lines, n + 1]`` of mass and moment."""

    values: Tensor
    mass: Tensor
    moment: Tensor

    @classmethod
    def of(cls, values: Tensor, weights: Tensor) -> _Lines:
        ordered, order = values.double().sort(dim=-1)
        w = weights.double().gather(-1, order)
        start = torch.zeros(len(values), 1, dtype=torch.float64)
        return cls(ordered, torch.cat([start, w.cumsum(-1)], -1), torch.cat([start, (w * ordered).cumsum(-1)], -1))

    def clusters(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and moment of the values nearest to each of the ascending ``centres[lines, k]``."""
        middle = (centres[:, 1:] + centres[:, :-1]) / 2
        inner = torch.searchsorted(self.values, middle.contiguous(), right=True)
        first = torch.nn.functional.pad(inner, (1, 0))
        last = torch.nn.functional.pad(inner, (0, 1), value=self.values.shape[1])
        mass = self.mass.gather(-1, last) - self.mass.gather(-1, first)
        return mass, self.moment.gather(-1, last) - self.moment.gather(-1, first)

    def descend(self, centres: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Lloyd's algorithm; returns the centres and what they explain of the second moment (larger is better)."""
        for _ in range(steps):
            mass, moment = self.clusters(centres)
            # A cluster without mass keeps its centre.
            moved = torch.where(mass > 0, moment / mass.clamp(min=1e-300), centres).sort(dim=-1).values
            if torch.equal(moved, centres):
                break
            centres = moved
        mass, moment = self.clusters(centres)
        explained = (2 * centres * moment - centres.square() * mass).sum(-1)
        return centres, explained


def weighted_kmeans(values: Tensor, weights: Tensor, levels: int, steps: int = 50, swaps: int = 4) -> Tensor:
    """Return ascending centres ``[lines, levels]`` (fp32) of ``values[lines, n]`` with ``weights[lines, n] >= 0``.

    Deterministic and nearly exact: the best clusters whose borders lie on a grid of the sorted values (dynamic
    programming; with few values the grid holds all of them and the answer is exact), then Lloyd's algorithm, then
    ``swaps`` times the two neighbours that are cheapest to merge are merged and the costliest cluster is split, where
    that helps. A line without any mass is clustered unweighted.

    Compiled kernels do the same in the same precision; where two choices explain equally much to the last bits of fp64
    they may take the other one.
    """
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, torch.ones_like(weights))
    # The mean mass is brought to 1: the result does not depend on it, and tiny gradients do not underflow.
    weights = weights.double() / weights.double().mean(-1, keepdim=True)
    lines = _Lines.of(values, weights)
    places = _grid(lines, max(_CELLS, 8 * levels))
    compiled = kmeans(lines.values, lines.mass, lines.moment, places, levels, steps, swaps)
    if compiled is not None:
        return compiled
    best, explained = lines.descend(_best_on_grid(lines, places, levels), steps)
    for _ in range(swaps):
        tried, explained_tried = lines.descend(_swap(lines, best), steps)
        wins = explained_tried > explained
        best = torch.where(wins.unsqueeze(-1), tried, best)
        explained = torch.where(wins, explained_tried, explained)
    return best.float()


def _grid(lines: _Lines, cells: int) -> Tensor:
    """Ascending places ``[lines, cells + 1]`` in 0..n.

    Cells hold equal shares of the cube root of the density, the measure in which the best levels of high-resolution
    theory are evenly spread (Panter and Dite 1951); places are between values, so none is cut.
    """
    count, n = lines.values.shape
    if n <= cells:
        return torch.arange(n + 1).expand(count, -1)
    mass = lines.mass.diff(dim=-1)
    width = torch.nn.functional.pad(lines.values.diff(dim=-1), (1, 0))
    measure = (mass * width.square()).pow(1 / 3).cumsum(-1)
    wanted = measure[:, -1:] * (torch.arange(1, cells, dtype=torch.float64) / cells)
    inner = torch.searchsorted(measure, wanted)
    ends = torch.zeros(count, 1, dtype=torch.int64)
    return torch.cat([ends, inner, ends + n], -1)


def _best_on_grid(lines: _Lines, places: Tensor, levels: int) -> Tensor:
    """Centres of the ``levels`` clusters with borders on the grid ``places`` that explain most."""
    mass, moment = lines.mass.gather(-1, places), lines.moment.gather(-1, places)
    parts = zip(mass.split(_LINES), moment.split(_LINES), strict=True)
    borders = torch.cat([_best_borders(m, s, levels) for m, s in parts])
    mass, moment = mass.gather(-1, borders).diff(dim=-1), moment.gather(-1, borders).diff(dim=-1)
    # An empty cluster gets the value at its place.
    at = places.gather(-1, borders[:, 1:]).sub_(1).clamp_(min=0)
    return torch.where(mass > 0, moment / mass.clamp(min=1e-300), lines.values.gather(-1, at)).sort(dim=-1).values


def _best_borders(mass: Tensor, moment: Tensor, levels: int) -> Tensor:
    """Indices ``[lines, levels + 1]`` of the grid places between the clusters, by dynamic programming.

    ``gain[a, b]`` is what one cluster from place a to place b explains of the second moment; the best m clusters up to
    b are the best m - 1 up to some a and one more.
    """
    count, size = mass.shape
    held = (mass.unsqueeze(1) - mass.unsqueeze(2)).clamp(min=0)
    gain = (moment.unsqueeze(1) - moment.unsqueeze(2)).square_() / held.clamp(min=1e-300)
    gain.masked_fill_(held <= 0, 0.0)
    gain.masked_fill_(torch.ones(size, size, dtype=torch.bool).tril(-1), -torch.inf)
    best, chosen = gain[:, 0], []
    for _ in range(levels - 1):
        best, before = (best.unsqueeze(2) + gain).max(dim=1)
        chosen.append(before)
    place = torch.full((count, 1), size - 1)
    borders = [place]
    for before in reversed(chosen):
        place = before.gather(-1, place)
        borders.append(place)
    borders.append(torch.zeros_like(place))
    return torch.cat(borders[::-1], -1)


def _swap(lines: _Lines, centres: Tensor) -> Tensor:
    """Merge the two neighbours whose merger costs least, split the cluster with the largest cost of its own."""
    mass, _ = lines.clusters(centres)
    gap = centres.diff(dim=-1)
    left, right = mass[:, :-1], mass[:, 1:]
    merger = left * right / (left + right).clamp(min=1e-300) * gap.square()
    first = merger.argmin(-1, keepdim=True)
    # Within a cluster the values spread over about half the gaps beside it: cost ~ mass * width^2 / 12.
    edges = torch.cat([lines.values[:, :1], (centres[:, 1:] + centres[:, :-1]) / 2, lines.values[:, -1:]], -1)
    width = edges.diff(dim=-1)
    cost = (mass * width.square()).scatter(-1, first, -1.0).scatter(-1, first + 1, -1.0)
    widest = cost.argmax(-1, keepdim=True)
    masses = mass.gather(-1, first) + mass.gather(-1, first + 1)
    joined = (
        centres.gather(-1, first) * mass.gather(-1, first) + centres.gather(-1, first + 1) * mass.gather(-1, first + 1)
    ) / masses.clamp(min=1e-300)
    joined = torch.where(masses > 0, joined, centres.gather(-1, first))
    centre, spread = centres.gather(-1, widest), width.gather(-1, widest) / 4
    result = centres.scatter(-1, first, joined).scatter(-1, first + 1, centre + spread)
    return result.scatter(-1, widest, centre - spread).sort(dim=-1).values


@dataclass(frozen=True)
class WeightedKMeans:
    """The levels of each group (a row for ``lutN channel``) by weighted k-means.

    Args:
        weight: ``fisher``: mean squared gradient of the loss; ``none``: every weight counts alike.
        fisher: the request for the Fisher information.
        steps: most Lloyd steps from each start.
    """

    weight: Literal["fisher", "none"] = "fisher"
    fisher: Fisher = field(default_factory=Fisher)
    steps: int = 50

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Fisher information, where it is used."""
        return (self.fisher,) if self.weight == "fisher" else ()

    def fit(self, w: Tensor, format: Format, keep: Tensor | None, context: WeightContext) -> Tensor:
        """Return ascending tables ``[rows, groups, levels]``; weights where ``keep`` is false do not count."""
        layout = format.granularity.layout((w.shape[0], w.shape[1]))
        weight = context.read(self.fisher) if self.weight == "fisher" else torch.ones_like(w)
        if keep is not None:
            weight = weight * keep
        g, mass = layout.split(w), layout.split(weight)
        mask = layout.mask(g)
        if mask is not None:
            mass = mass * mask
        values, mass = g.flatten(0, 1), mass.flatten(0, 1)
        levels = 1 << format.grid.bits
        size = max(1, _CHUNK // values.shape[1])
        parts = zip(values.split(size), mass.split(size), strict=True)
        tables = torch.cat([weighted_kmeans(v, m, levels, self.steps) for v, m in parts])
        return tables.view(g.shape[0], g.shape[1], levels)
