"""The contract of a correction."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Correction(Protocol):
    """Adjusts a layer's bias once its weight is quantized, layer after layer in call order."""

    def correct(self, bias: Tensor | None, expected: Tensor, measured: Tensor) -> Tensor | None:
        """Return the new bias ``[out]``.

        ``expected[out]`` is the mean output of the layer in the float model, ``measured[out]`` the mean output of the
        quantized layer on the quantized stream, both over all calibration tokens (positions).
        """
