"""AWQ's clip: the range of each group that moves the layer's output least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats import Format
from bitwright.formats.granularity import Channel, Group
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.stages.ranges.chunks import outer_of, pieces, weighted_sum
from bitwright.stages.ranges.minmax import group_limits
from bitwright.statistics import Prefix, Statistic
from bitwright.statistics.blocks import BlockHessian, BlockMoment


@dataclass(frozen=True)
class OutputClip:
    """Shrink each group's largest magnitude to the share with the smallest error of the output (Lin et al. 2023).

    A group's part of the output is ``x_g . w_g``. Over all tokens its mean squared error is exactly the quadratic form
    ``(q(w_g) - w_g)^T E[x_g x_g^T] (q(w_g) - w_g)``, so a diagonal block of the input's second moment is all that is
    needed; the published code evaluates the products on a sample of 512 tokens instead. Shares are ``1 - i / steps``
    down to, and without, ``smallest``, as there: ten by default. Both ends of the range are cut to the same magnitude.

    Args:
        steps, smallest: the grid of shares.
        block: channels whose correlations are kept; groups that lie inside a block are scored exactly, beyond it
            channels count as uncorrelated. 0 keeps all. Groups that do not run along one row (flat blocks, 2-D
            blocks, the other axis) are scored by the mean squares alone.
        prefix: stream of the inputs.
    """

    steps: int = 20
    smallest: float = 0.5
    block: int = 128
    prefix: Prefix = "float"

    @staticmethod
    def of(format: Format) -> OutputClip:
        """The estimator whose blocks are the groups of ``format`` where these run along rows."""
        groups = format.granularity
        if isinstance(groups, Channel) and groups.axis == 0:
            return OutputClip(block=0)
        return OutputClip(block=groups.size if isinstance(groups, Group) and groups.axis == 1 else 1)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Diagonal blocks of the input's second moment."""
        return (BlockHessian(self.block, self.prefix),)

    def importance(self, context: WeightContext) -> BlockMoment:
        """The blocks; the bound quantizer hands each group its own."""
        moment: BlockMoment = context.read(BlockHessian(self.block, self.prefix))
        return moment

    def shares(self) -> list[float]:
        """Shares of the largest magnitude, 1 first."""
        count = round((1.0 - self.smallest) * self.steps)
        return [1.0 - i / self.steps for i in range(max(count, 1))]

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``; ``importance`` is quadratic forms ``[1, groups, n, n]`` or weights of columns."""
        low, high = group_limits(g, mask)
        outer = format.fit_outer(*format.scale_from_range(low, high))
        forms = importance if importance is not None and importance.ndim == 4 else None
        for piece in pieces(g, mask, None if forms is not None else importance):
            at = piece.rows, piece.groups
            form = None if forms is None else forms[0, piece.groups]
            used = outer_of(format, outer, piece.rows)
            low[at], high[at] = self._search(piece.g, format, used, low[at], high[at], piece.weight, form)
        return Fitted(*format.scale_from_range(low, high))

    def _search(
        self, g: Tensor, format: Format, outer: Tensor | None, low: Tensor, high: Tensor, weight: Tensor | None,
        form: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The best ends ``[rows, groups]`` of one piece."""
        peak = torch.maximum(low.abs(), high.abs())
        ends, best = (low, high), torch.full_like(low, torch.inf)
        for share in self.shares():
            limit = peak * share
            trial = torch.maximum(low, -limit), torch.minimum(high, limit)
            scale, zero = format.scale_from_range(*trial)
            stored = format.store_scale(scale, outer).effective
            delta = format.round(g, stored, format.store_zero(zero)).sub_(g)
            if form is None:
                error = weighted_sum(delta.square_(), weight)
            else:
                error = form_error(delta if weight is None else delta.mul_(weight), form)
            better = error < best
            best = torch.where(better, error, best)
            ends = torch.where(better, trial[0], ends[0]), torch.where(better, trial[1], ends[1])
        return ends


def form_error(delta: Tensor, form: Tensor) -> Tensor:
    """``delta^T M delta`` of each group: ``delta[rows, groups, n]``, ``form[groups, n, n]`` -> ``[rows, groups]``."""
    by_group = delta.transpose(0, 1)
    return (by_group @ form).mul_(by_group).sum(-1).t()
