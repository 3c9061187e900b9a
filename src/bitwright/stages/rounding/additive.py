"""Additive codebooks fitted to a layer's outputs: AQLM.

Egiazarian et al. 2024 (arXiv:2401.06118, section 3): with the second moments H of the inputs the error of the outputs
is ``tr((W - Q) H (W - Q)^T)``, Q the scaled sums of codebook entries. Codes and codebooks are improved in turn. Given
all other vectors of a row, the error is a quadratic form of one vector: with ``H_ii = L L^T`` and its minimum at
``q* = w_i + H_ii^-1 ((W - Q) H - (W - Q)_i H_ii)_i`` it is ``|(q - q*) L|^2``, so the best code is the nearest sum of
the codebooks times L, which a beam search looks for. Given the codes, codebooks and scales follow by Adam.

What differs from the paper: one vector of every row is searched at a time, where the published code goes through the
codebooks of a vector one by one; a code is only changed where that lowers the error.

Cost of a round: ``sweeps * out * in^2 + 2 * steps * out * in^2`` multiply-adds and, for every vector of the weight, a
beam search of ``beam * books * 2^B * d``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import AdditiveGrid
from bitwright.formats.search import beam_search
from bitwright.formats.vectors import join_words, split_words
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.rounding.coordinate_descent import descent_matrix
from bitwright.statistics import Hessian, Prefix, Statistic


@dataclass(frozen=True)
class AdditiveDescent:
    """Alternate a beam search over the codes with gradient steps on codebooks and scales.

    Args:
        rounds: alternations, at most.
        beam: sums that a search keeps; 1 is the greedy one.
        steps: Adam steps on codebooks and scales in each round; 0 leaves them as they are.
        rate: their learning rate.
        tolerance: stop where a round lowers the error by less than this share.
        damping: share of the mean diagonal added to the diagonal of H.
        prefix: stream of the Hessian.
    """

    rounds: int = 10
    beam: int = 8
    steps: int = 100
    rate: float = 3e-3
    tolerance: float = 0.005
    damping: float = 0.01
    prefix: Prefix = "layer"

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise InputError("additive descent inverts blocks of the Hessian; give a damping above 0, e.g. 0.01")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The Hessian of the input."""
        return (Hessian(self.prefix),)

    def solve(self, w: Tensor, bound: BoundQuantizer, context: WeightContext) -> Tensor:
        """Round ``w[out, in]``.

        Raises:
            InputError: for a format without additive codebooks.
        """
        if not isinstance(bound.format.grid, AdditiveGrid) or bound.codebook is None:
            raise InputError(f"additive descent needs codebooks to learn, which '{bound.format}' has not")
        h = descent_matrix(context.read(Hessian(self.prefix)).matrix, self.damping)
        bound.open_all(w)
        bound.round(0, w.shape[1], w)
        state = _State(w, h, bound, self.beam)
        before = state.loss()
        for _ in range(self.rounds):
            if self.steps:
                state.learn(self.steps, self.rate)
            state.search()
            after = state.loss()
            if after > before * (1 - self.tolerance):
                break
            before = after
        state.finish()
        return state.value()


class _State:
    """Codes as indices ``[out, spans, books]``, codebooks and scales as they are stored."""

    def __init__(self, w: Tensor, h: Tensor, bound: BoundQuantizer, beam: int) -> None:
        assert isinstance(bound.format.grid, AdditiveGrid)
        assert bound.codebook is not None
        self.w, self.h, self.bound, self.beam = w, h, bound, beam
        self.grid = bound.format.grid
        self.books = bound.codebook.float()
        self.index = self.grid.indices(join_words(bound.codes, self.grid.span, self.grid.bits))

    def sums(self, books: Tensor) -> Tensor:
        """The sums of the entries, without scales, ``[out, in]``."""
        total = books[0][self.index[..., 0]]
        for m in range(1, len(books)):
            total = total + books[m][self.index[..., m]]
        return total.flatten(1)

    def spread(self, scale: Tensor) -> Tensor:
        """Scales that broadcast to ``[out, in]``."""
        return self.bound.layout.expand(scale)

    def value(self) -> Tensor:
        """The weight as it is stored."""
        return self.sums(self.books) * self.spread(self.bound.scale)

    def loss(self) -> float:
        """``tr((W - Q) H (W - Q)^T)``."""
        error = self.w - self.value()
        return float(((error @ self.h) * error).sum(dtype=torch.float64))

    def search(self) -> None:
        """Search one vector of every row at a time, from the first to the last."""
        span, value = self.grid.span, self.value()
        error = self.w - value
        scale = self.spread(self.bound.scale)
        for start in range(0, self.w.shape[1], span):
            here = slice(start, start + span)
            block = self.h[here, here]
            lower = torch.linalg.cholesky(block)
            pull = error @ self.h[:, here] - error[:, here] @ block
            wanted = self.w[:, here] + torch.cholesky_solve(pull.t(), lower).t()
            size = scale[:, start : start + 1] if scale.shape[1] > 1 else scale
            x, books = (wanted / size) @ lower, self.books @ lower
            found = beam_search(x, books, self.beam).to(torch.int64)
            place = start // span
            better = _distance(x, books, found) < _distance(x, books, self.index[:, place])
            self.index[:, place] = torch.where(better.unsqueeze(1), found, self.index[:, place])
            entries = sum(self.books[m][self.index[:, place, m]] for m in range(len(self.books)))
            error[:, here] = self.w[:, here] - entries * size

    def learn(self, steps: int, rate: float) -> None:
        """Adam on codebooks and scales; what they were stays where the stored result is no better."""
        before, kept = self.loss(), (self.books, self.bound.scale)
        books = self.books.clone().requires_grad_()
        # Scales move by a factor, so that large and small rows learn alike.
        factor = torch.zeros_like(self.bound.scale).requires_grad_()
        size = before if before > 0 else 1.0
        optimizer = torch.optim.Adam([books, factor], lr=rate, betas=(0.9, 0.95))
        with torch.enable_grad():
            for _ in range(steps):
                error = self.w - self.sums(books) * self.spread(self.bound.scale * factor.exp())
                loss = ((error @ self.h) * error).sum() / size
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self._take(books.detach(), self.bound.scale * factor.detach().exp())
        if not self.loss() < before:
            self._take(*kept)

    def _take(self, books: Tensor, scale: Tensor) -> None:
        self.bound.replace(books, scale)
        assert self.bound.codebook is not None
        self.books = self.bound.codebook.float()

    def finish(self) -> None:
        """Hand the codes to the quantizer."""
        self.bound.accept(split_words(self.grid.words(self.index), self.grid.span, self.grid.bits))


def _distance(x: Tensor, books: Tensor, index: Tensor) -> Tensor:
    rest = x
    for m in range(len(books)):
        rest = rest - books[m][index[:, m]]
    return rest.square().sum(1)
