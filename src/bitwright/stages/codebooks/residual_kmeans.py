"""Codebooks of vectors by k-means, one on what the others leave: the start of AQLM.

Egiazarian et al. 2024 (arXiv:2401.06118, section 3.2): the first codebook is the k-means of the scaled vectors of the
weight, the second that of their residuals, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import AdditiveGrid, Format
from bitwright.formats.search import beam_search
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.ranges.root_mean_square import RootMeanSquare
from bitwright.statistics import Hessian, Prefix, Statistic


def vector_kmeans(x: Tensor, mass: Tensor, entries: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return ``[entries, d]`` centres of ``x[n, d]`` with ``mass[n] >= 0``, by Lloyd's algorithm from random vectors.

    A centre that loses all its vectors moves to the vector that costs most (the second one to the second, ...).
    """
    order = torch.randperm(len(x), generator=generator)
    # With fewer vectors than entries some are there several times: their copies stay empty.
    centres = x[order.repeat(-(-entries // len(x)))[:entries]].clone()
    for _ in range(steps):
        place = beam_search(x, centres.unsqueeze(0)).view(-1).to(torch.int64)
        weight = torch.zeros(entries).index_add_(0, place, mass)
        moment = torch.zeros_like(centres).index_add_(0, place, x * mass.unsqueeze(1))
        moved = torch.where(weight.unsqueeze(1) > 0, moment / weight.clamp(min=1e-30).unsqueeze(1), centres)
        empty = torch.nonzero(weight == 0).view(-1)
        if len(empty):
            cost = (x - moved[place]).square().sum(1) * mass
            worst = cost.argsort(descending=True, stable=True)[: len(empty)]
            moved[empty[: len(worst)]] = x[worst]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


@dataclass(frozen=True)
class ResidualKMeans:
    """Codebooks ``[books, entries, d]`` for a format of additive vectors.

    Args:
        hessian: weigh a vector by the mean second moment of its columns' inputs; else all count alike.
        steps: most steps of Lloyd's algorithm for each codebook.
        sample: most vectors that are clustered, as a multiple of the entries (drawn at random).
        prefix: stream of the second moments.
    """

    hessian: bool = True
    steps: int = 25
    sample: int = 256
    prefix: Prefix = "layer"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Hessian of the input, where it counts."""
        return (Hessian(self.prefix),) if self.hessian else ()

    def fit(self, w: Tensor, format: Format, keep: Tensor | None, context: WeightContext) -> Tensor:
        """Return the codebooks of ``w[out, in]``; a vector counts by the share of its weights that ``keep`` keeps.

        Raises:
            InputError: for a format of another grid.
        """
        grid = format.grid
        if not isinstance(grid, AdditiveGrid):
            raise InputError(f"codebooks of vectors belong to formats such as 'vq2x8d8', not to '{format}'")
        format.check_shape(tuple(w.shape))
        layout = format.granularity.layout((w.shape[0], w.shape[1]))
        g = layout.split(w)
        scale = format.store_scale(RootMeanSquare().fit(g, format, layout.mask(g), None).scale).effective
        x = (w / layout.expand(scale)).reshape(-1, grid.span)
        mass = self._mass(w, keep, context).reshape(-1, grid.span).mean(1)
        generator = torch.Generator().manual_seed(context.seed)
        entries = 1 << grid.index_bits
        if len(x) > self.sample * entries:
            chosen = torch.randperm(len(x), generator=generator)[: self.sample * entries]
            x, mass = x[chosen], mass[chosen]
        books = []
        for _ in range(grid.books):
            centres = vector_kmeans(x, mass, entries, self.steps, generator).to(torch.float16).float()
            books.append(centres)
            x = x - centres[beam_search(x, centres.unsqueeze(0)).view(-1).to(torch.int64)]
        return torch.stack(books)

    def _mass(self, w: Tensor, keep: Tensor | None, context: WeightContext) -> Tensor:
        mass = torch.ones_like(w)
        if self.hessian:
            moment = context.read(Hessian(self.prefix)).matrix.diagonal()
            mean = float(moment.mean())
            # Columns without signal still have weights to represent.
            mass = mass * (moment / mean).clamp(min=1e-4) if mean > 0 else mass
        return mass if keep is None else mass * keep
