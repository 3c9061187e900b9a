"""Bias correction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EmpiricalBias:
    """Move every output channel's mean back to where the float network has it: ``b + E[y] - E[y_quantized]``.

    The empirical form of Nagel et al. 2019, section 4.2 (appendix D). It also takes out the shift that the layers
    before brought in, since the quantized mean is measured on the quantized stream. A layer without a bias gets one.
    """

    def correct(self, bias: Tensor | None, expected: Tensor, measured: Tensor) -> Tensor | None:
        """See the protocol."""
        before = torch.zeros_like(expected) if bias is None else bias
        return before + (expected - measured)
