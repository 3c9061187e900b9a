"""The quantizer of an activation: one format, with stored parameters (static) or measured on every input (dynamic)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Format, granularity


def is_static(fmt: Format) -> bool:
    """Whether the scale of an activation is stored: ``static`` per tensor or per channel; everything else measures."""
    stored = isinstance(fmt.granularity, granularity.Tensor | granularity.Channel)
    return fmt.time == "static" and stored


def static_size(fmt: Format, features: int) -> int:
    """Return how many stored scales an input of ``features`` channels has: 1 per tensor, ``features`` per channel."""
    return 1 if isinstance(fmt.granularity, granularity.Tensor) else features


@dataclass(frozen=True)
class ActivationQuantizer:
    """Rounds ``x[..., features]`` to a format and back: ``x_hat = dequantize(quantize(x))``, in the dtype of x.

    Args:
        format: with ``token`` or ``gN`` granularity every row, or group of N neighbours along the last axis, gets the
            scale of its own range; ``tensor dynamic`` uses the range of the whole input of a call, so that a result
            then depends on what else is in the batch. Outer scales (NVFP4) span the call as well.
        scale: stored scales of a static format, ``[1]`` or ``[features]``; ``None`` for a dynamic one.
        zero: stored zero points, of the same size, for asymmetric formats.

    Raises:
        InputError: a static format without its scale (or zero), or a scale for a dynamic one.
    """

    format: Format
    scale: Tensor | None = None
    zero: Tensor | None = None

    def __post_init__(self) -> None:
        static = is_static(self.format)
        if static != (self.scale is not None):
            mend = "give the calibrated scale, or add 'dynamic'" if static else "drop the scale, or remove 'dynamic'"
            raise InputError(f"the input format '{self.format}' and its scale do not fit together; {mend}")
        if static and (self.zero is not None) != self.format.asymmetric:
            mend = "give the zero point" if self.format.asymmetric else "drop the zero point"
            raise InputError(f"the input format '{self.format}' and its zero point do not fit together; {mend}")

    @property
    def static(self) -> bool:
        """Whether the parameters are stored."""
        return self.scale is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded; channels lie on the last axis.

        Raises:
            InputError: if a stored scale does not belong to the number of channels.
        """
        if self.scale is None:
            return x if x.numel() == 0 else self.format.fake_quantize(x)
        features = x.shape[-1]
        if self.scale.numel() not in (1, features):
            raise InputError(f"{self.scale.numel()} input scales do not fit {features} channels; give 1 or {features}")
        return self._static(x, self.scale.reshape(-1).float(), self.zero)

    def _static(self, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        work = x.float() / scale
        if zero is None:
            return self.format.grid.round(work).mul_(scale).to(x.dtype)
        shift = zero.reshape(-1).float()
        return self.format.grid.round(work.add_(shift)).sub_(shift).mul_(scale).to(x.dtype)

    @staticmethod
    def of(fmt: Format, low: Tensor, high: Tensor) -> ActivationQuantizer:
        """Return the static quantizer of a range: ``low`` and ``high`` are ``[1]`` or ``[features]``."""
        scale, zero = fmt.scale_from_range(low.reshape(-1, 1), high.reshape(-1, 1))
        stored = fmt.store_scale(scale).effective.reshape(-1)
        kept = fmt.store_zero(zero)
        return ActivationQuantizer(fmt, stored, None if kept is None else kept.reshape(-1))
