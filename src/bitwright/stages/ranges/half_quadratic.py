"""Half-quadratic quantization (HQQ): a float zero point under a norm that forgives outliers.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog).
Minimise ``sum |w - r(z)|^p`` with p < 1 over the zero point z; ``r = (q - z) s`` and ``q = clamp(round(w/s + z))``.
With an auxiliary error e and a penalty beta the problem splits (half-quadratic splitting):
``e <- shrink(w - r)``, the generalised soft threshold ``sign(x) max(|x| - |x|^(p-1)/beta, 0)``, then
``z <- mean(q - (w - e) / s)`` in closed form; beta grows by kappa each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Format
from bitwright.stages.quantizer import Fitted, WeightContext
from bitwright.stages.ranges.chunks import Piece, pieces, weighted_sum
from bitwright.stages.ranges.minmax import group_limits
from bitwright.statistics import Statistic


@dataclass(frozen=True)
class HalfQuadratic:
    """Min-max scale, zero point by half-quadratic splitting.

    Each group keeps the zero point with the smallest ``sum |w - r|^p`` it met (the published code stops all groups
    when their mean error no longer falls), so no group ends worse than with its min-max range.

    Args:
        norm: p.
        beta, kappa, steps: first penalty, its growth per step, number of steps.
    """

    norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    steps: int = 20

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Nothing: no data are read."""
        return ()

    def importance(self, context: WeightContext) -> Tensor | None:
        """All columns count alike."""
        return None

    def fit(self, g: Tensor, format: Format, mask: Tensor | None, importance: Tensor | None) -> Fitted:
        """Fit ``g[rows, groups, n]``.

        Raises:
            InputError: if the format has no float zero point.
        """
        if format.zero is None or format.zero.storage == "code":
            raise InputError(f"half-quadratic ranges move a float zero point, which '{format}' lacks; add zero=fp16")
        scale, zero = format.scale_from_range(*group_limits(g, mask))
        assert zero is not None
        stored = format.store_scale(scale).effective
        for piece in pieces(g, mask, None):
            at = piece.rows, piece.groups
            zero[at] = self._search(piece, format, stored[at], zero[at])
        return Fitted(scale, zero)

    def _search(self, piece: Piece, format: Format, scale: Tensor, zero: Tensor) -> Tensor:
        g, weight = piece.g, piece.weight
        count = float(g.shape[-1]) if weight is None else weight.sum(-1).clamp(min=1.0)
        best, best_error = zero, torch.full_like(zero, torch.inf)
        beta, step = self.beta, scale.unsqueeze(-1)
        for _ in range(self.steps + 1):
            stored = format.store_zero(zero)
            assert stored is not None
            rounded = format.round(g, scale, stored)
            error = g - rounded
            size = error.abs()
            # |e|^(p-1) serves both the objective and the threshold; the floor keeps 0 * infinity out.
            power = size.clamp(min=1e-20).pow_(self.norm - 1.0)
            objective = weighted_sum(size * power, weight)
            better = objective < best_error
            best_error = torch.where(better, objective, best_error)
            best = torch.where(better, zero, best)
            kept = error.sign() * size.sub_(power.div_(beta)).clamp_(min=0.0)
            # q - (w - e)/s with q = r/s + z.
            shift = (rounded - g + kept) / step
            zero = stored.float() + weighted_sum(shift, weight) / count
            beta *= self.kappa
        return best
