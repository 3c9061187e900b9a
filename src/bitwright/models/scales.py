"""Random channel scales for proofs: powers of two, so that scaling a float is exact and only a wrong claim can move
the output; their wide spread drives a saturating or curved activation out of any range where it looks linear."""

from __future__ import annotations

import torch


def power_scales(count: int, powers: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` scales 2^k, k drawn evenly from -powers .. powers, at least one of them not 1."""
    exponents = torch.randint(-powers, powers + 1, (count,), generator=generator)
    if count:
        exponents[0] = powers
    return torch.exp2(exponents.float())
