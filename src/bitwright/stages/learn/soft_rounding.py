"""AdaRound's soft rounding: between the two levels next to each weight, on any grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats import Codes, Format, QuantizedTensor

# The rectified sigmoid is stretched to (GAMMA, ZETA), so that it reaches 0 and 1 exactly (AdaRound, eq. 23).
ZETA, GAMMA = 1.1, -0.1
# sigmoid(2.3979) (zeta - gamma) + gamma = 1: a little before it the gradient is still there to come back with.
LIMIT = 2.39


def rectified_sigmoid(v: Tensor) -> Tensor:
    """``clamp(sigmoid(v) (zeta - gamma) + gamma, 0, 1)``."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The ``v`` with ``rectified_sigmoid(v) = h`` for ``0 <= h <= 1``."""
    share = ((h - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4)
    return torch.log(share / (1 - share))


class SoftWeight(nn.Module):
    """A weight whose rounding (and, if wanted, scale) is learned.

    ``soft()`` is ``scale * (low + h(v) (high - low) - zero)`` where ``low`` and ``high`` are the grid's levels on
    either side of the scaled weight; ``harden()`` takes ``high`` where ``h >= 1/2``. The scale of each group may be
    learned as ``scale * exp(theta)`` while the levels stay: it moves the values, not the choice of neighbours.

    Args:
        w: float weight ``[out, in]``.
        codes: the weight as rounded so far; its scales and zero points are taken over.
        scales: learn ``theta``. Refused for power-of-two and two-level scales, which cannot follow.
    """

    def __init__(self, w: Tensor, codes: Codes, scales: bool) -> None:
        super().__init__()
        self.format: Format = codes.format
        grid = self.format.grid
        if self.format.learned or grid.span > 1:
            raise InputError(f"soft rounding needs fixed levels for every weight; format '{self.format}' has none")
        self.layout = self.format.granularity.layout(codes.shape)
        self.groups = codes.scale.effective.clone()
        self.stored_zero = codes.zero
        scale = self.layout.expand(self.groups)
        zero = None if codes.zero is None else self.layout.expand(codes.zero.float())
        x = w / scale if zero is None else w / scale + zero
        levels = grid.levels()
        self.table = levels[torch.isfinite(levels)].unique().sort().values
        index = (torch.searchsorted(self.table, x.contiguous(), right=True) - 1).clamp(0, len(self.table) - 2)
        low, high = self.table[index], self.table[index + 1]
        self.low, self.step = low, high - low
        self.shift = torch.zeros(1) if zero is None else zero
        self.v = nn.Parameter(inverse_rectified_sigmoid(((x - low) / self.step).clamp(0.0, 1.0)))
        storable = self.format.scale.storage in ("fp16", "bf16", "fp32") and self.format.scale.outer is None
        self.learns_scale = scales and storable
        self.theta = nn.Parameter(torch.zeros_like(self.groups), requires_grad=self.learns_scale)

    def scale(self) -> Tensor:
        """Scales that broadcast to ``[out, in]``."""
        if not self.learns_scale:
            return self.layout.expand(self.groups)
        scale: Tensor = self.groups * self.theta.exp()
        return self.layout.expand(scale)

    def soft(self) -> Tensor:
        """The weight ``[out, in]`` as the loss sees it."""
        level: Tensor = self.low + rectified_sigmoid(self.v) * self.step - self.shift
        return level * self.scale()

    def undecided(self, beta: float) -> Tensor:
        """``sum(1 - |2 h - 1|^beta)``, AdaRound's regulariser (eq. 24)."""
        return (1 - (2 * rectified_sigmoid(self.v) - 1).abs().pow(beta)).sum()

    def rounding_variables(self) -> list[nn.Parameter]:
        """What decides the codes."""
        return [self.v]

    def scale_variables(self) -> list[nn.Parameter]:
        """What decides the scales."""
        return [self.theta] if self.learns_scale else []

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep ``v`` where its gradient is not lost: the rectified sigmoid is flat beyond 0 and 1."""
        self.v.clamp_(-LIMIT, LIMIT)

    @torch.no_grad()
    def harden(self) -> QuantizedTensor:
        """The decided weight."""
        level = torch.where(rectified_sigmoid(self.v) >= 0.5, self.low + self.step, self.low)
        codes = self.format.grid.encode(level)
        scale = self.groups * self.theta.exp() if self.learns_scale else self.groups
        return QuantizedTensor((Codes(codes, self.format, self.format.store_scale(scale), self.stored_zero),))


@dataclass(frozen=True)
class Annealing:
    """The regulariser's exponent falls from ``start`` to ``stop`` by a cosine after a share ``warm_up`` of steps."""

    start: float = 20.0
    stop: float = 2.0
    warm_up: float = 0.2

    def beta(self, share: float) -> float | None:
        """Exponent at ``share`` of the run; ``None`` while the regulariser is off."""
        if share < self.warm_up:
            return None
        import math

        done = (share - self.warm_up) / (1 - self.warm_up)
        return self.stop + (self.start - self.stop) * 0.5 * (1 + math.cos(math.pi * done))
