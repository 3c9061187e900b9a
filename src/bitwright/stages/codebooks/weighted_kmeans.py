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
from bitwright.stages.quantizer import WeightContext
from bitwright.statistics import Statistic
from bitwright.statistics.fisher import Fisher

# Weights that are sorted at once: prefix sums are fp64.
_CHUNK = 1 << 20


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
        return cls(
            ordered, torch.cat([start, w.cumsum(-1)], -1), torch.cat([start, (w * ordered).cumsum(-1)], -1)
        )

    def clusters(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and moment of the values nearest to each of the ascending ``centres[lines, k]``."""
        middle = (centres[:, 1:] + centres[:, :-1]) / 2
        inner = torch.searchsorted(self.values, middle.contiguous(), right=True)
        ends = torch.nn.functional.pad(inner, (1, 0)), torch.nn.functional.pad(inner, (0, 1), value=self.values.shape[1])
        return tuple(t.gather(-1, ends[1]) - t.gather(-1, ends[0]) for t in (self.mass, self.moment))  # type: ignore[return-value]

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


def weighted_kmeans(values: Tensor, weights: Tensor, levels: int, steps: int = 50, swaps: int = 8) -> Tensor:
    """Return ascending centres ``[lines, levels]`` (fp32) of ``values[lines, n]`` with ``weights[lines, n] >= 0``.

    Deterministic: Lloyd's algorithm from three starts (equal mass, the cube-root density of high-resolution theory,
    equal steps), the best of each line kept; then ``swaps`` times the two neighbours that are cheapest to merge are
    merged and the costliest cluster is split, where that helps. A line without any mass is clustered unweighted.
    """
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, torch.ones_like(weights))
    # The mean mass is brought to 1: the result does not depend on it, and tiny gradients do not underflow.
    weights = weights.double() / weights.double().mean(-1, keepdim=True)
    lines = _Lines.of(values, weights)
    best, explained = lines.descend(_equal_mass(lines, levels), steps)
    for start in (_cube_root(lines, levels), _equal_steps(lines, levels)):
        best, explained = _better(best, explained, *lines.descend(start, steps))
    for _ in range(swaps):
        best, explained = _better(best, explained, *lines.descend(_swap(lines, best), steps))
    return best.float()


def _better(a: Tensor, explained_a: Tensor, b: Tensor, explained_b: Tensor) -> tuple[Tensor, Tensor]:
    wins = explained_b > explained_a
    return torch.where(wins.unsqueeze(-1), b, a), torch.where(wins, explained_b, explained_a)


def _shares(levels: int) -> Tensor:
    return (torch.arange(levels, dtype=torch.float64) + 0.5) / levels


def _at_shares(lines: _Lines, cumulated: Tensor, levels: int) -> Tensor:
    wanted = cumulated[:, -1:] * _shares(levels)
    place = torch.searchsorted(cumulated, wanted.contiguous()).clamp(max=lines.values.shape[1] - 1)
    return lines.values.gather(-1, place)


def _equal_mass(lines: _Lines, levels: int) -> Tensor:
    return _at_shares(lines, lines.mass[:, 1:].contiguous(), levels)


def _cube_root(lines: _Lines, levels: int) -> Tensor:
    """Levels whose density is the cube root of the values' density (Panter and Dite 1951)."""
    mass = lines.mass.diff(dim=-1)
    width = torch.nn.functional.pad(lines.values.diff(dim=-1), (1, 0))
    return _at_shares(lines, (mass * width.square()).pow(1 / 3).cumsum(-1), levels)


def _equal_steps(lines: _Lines, levels: int) -> Tensor:
    low, high = lines.values[:, :1], lines.values[:, -1:]
    return low + (high - low) * _shares(levels)


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
