"""Learned offsets before the rounding, with learned clipping: SignRound's mechanism (the one of AutoRound)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats import Codes, Format, IntGrid, QuantizedTensor

# How far a clip factor may move: a range must neither collapse nor run away from the values.
NARROWEST, WIDEST = 0.3, 1.3


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """``rounded`` forward, the identity of ``x`` backward."""
    return x + (rounded - x).detach()


class OffsetWeight(nn.Module):
    """A weight on an integer grid whose offsets ``v`` and clip factors are learned through straight-through rounding.

    ``soft()`` is ``scale (clamp(round(w / scale + v) + zero) - zero)``, so it always is a weight that can be stored:
    nothing is decided afterwards. The range of a group runs from ``low * shrink_low`` to ``high * shrink_high``; scale
    and zero point follow from it (a symmetric range has one factor). ``|v| <= reach``.

    Source: Cheng et al. 2023, SignRound, eq. 3-5 (arXiv:2309.05516). Different there: ranges start at the extreme
    values and only shrink; here they start where the range estimator put them and may also widen a little.

    Args:
        w: float weight ``[out, in]``.
        codes: the weight as rounded so far; its ranges are the start, and with ``keep_codes`` also its codes are.
        scales: learn the clip factors.
        keep_codes: start with offsets that give the codes of ``codes`` (a second-order rounding) instead of ``v = 0``.
    """

    def __init__(self, w: Tensor, codes: Codes, scales: bool, keep_codes: bool = False) -> None:
        super().__init__()
        self.format: Format = codes.format
        grid = self.format.grid
        if not isinstance(grid, IntGrid):
            raise InputError(f"learned offsets need an integer grid, not '{self.format}'; use rounding=sigmoid")
        self.levels = (float(grid.min_level), float(grid.max_level))
        self.layout = self.format.granularity.layout(codes.shape)
        self.w = w
        self.scale0 = codes.scale.effective.clone()
        self.zero0 = None if codes.zero is None else codes.zero.float()
        self.stored_zero = codes.zero
        storable = self.format.scale.storage in ("fp16", "bf16", "fp32") and self.format.scale.outer is None
        self.learns_scale = scales and storable
        self.shrink_low = nn.Parameter(torch.ones_like(self.scale0), requires_grad=self.learns_scale)
        self.shrink_high = nn.Parameter(torch.ones_like(self.scale0), requires_grad=self.learns_scale)
        self.reach = 0.5
        v = torch.zeros_like(w)
        if keep_codes:
            v, self.reach = self._offsets_of(codes), 1.0
        self.v = nn.Parameter(v)

    def _offsets_of(self, codes: Codes) -> Tensor:
        """The smallest offsets, with a little slack, that round the weight to the levels of ``codes``."""
        scale, zero = self._scaling()
        x = self.w / self.layout.expand(scale)
        shift = 0.0 if zero is None else self.layout.expand(zero)
        distance = codes.dequantize() / self.layout.expand(scale) - x
        inside = (x + shift > self.levels[0]) & (x + shift < self.levels[1])
        needed = distance.sign() * (distance.abs() - 0.45).clamp_min(0.0)
        return torch.where(inside, needed, torch.zeros_like(x)).clamp(-1.0, 1.0)

    def _scaling(self) -> tuple[Tensor, Tensor | None]:
        """Scale as stored and zero point of every group, differentiable in the clip factors."""
        if not self.learns_scale:
            return self.scale0, self.zero0
        if self.zero0 is None:
            scale = self.scale0 * self.shrink_high
            return straight_through(self.format.store_scale(scale.detach()).effective, scale), None
        low = (self.levels[0] - self.zero0) * self.scale0 * self.shrink_low
        high = (self.levels[1] - self.zero0) * self.scale0 * self.shrink_high
        scale = ((high - low) / (self.levels[1] - self.levels[0])).clamp_min(1e-8)
        scale = straight_through(self.format.store_scale(scale.detach()).effective, scale)
        zero = self.levels[0] - low / scale
        if self.format.zero is not None and self.format.zero.storage == "code":
            return scale, straight_through(zero.detach().round().clamp(*self.levels), zero)
        stored = self.format.store_zero(zero.detach())
        assert stored is not None
        return scale, straight_through(stored.float(), zero)

    def _level(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        x = self.w / self.layout.expand(scale) + self.v
        if zero is not None:
            x = x + self.layout.expand(zero)
        return straight_through(x.detach().round(), x).clamp(*self.levels)

    def soft(self) -> Tensor:
        """The weight ``[out, in]``, exactly as it would be stored."""
        scale, zero = self._scaling()
        level = self._level(scale, zero)
        if zero is not None:
            level = level - self.layout.expand(zero)
        return level * self.layout.expand(scale)

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the variables in their ranges; called after every step."""
        self.v.clamp_(-self.reach, self.reach)
        self.shrink_low.clamp_(NARROWEST, WIDEST)
        self.shrink_high.clamp_(NARROWEST, WIDEST)

    def rounding_variables(self) -> list[nn.Parameter]:
        """What decides the codes."""
        return [self.v]

    def scale_variables(self) -> list[nn.Parameter]:
        """What decides the scales."""
        return [self.shrink_low, self.shrink_high] if self.learns_scale else []

    def undecided(self, beta: float) -> Tensor:
        """Nothing is undecided."""
        return torch.zeros(())

    @torch.no_grad()
    def harden(self) -> QuantizedTensor:
        """The weight as it is stored; dequantized it equals :meth:`soft`."""
        scale, zero = self._scaling()
        codes = self.format.grid.encode(self._level(scale, zero))
        stored_zero = self.stored_zero if zero is None or not self.learns_scale else self.format.store_zero(zero)
        return QuantizedTensor((Codes(codes, self.format, self.format.store_scale(scale), stored_zero),))
