"""A quantizer bound to one weight: the only thing that a rounding rule talks to.

A solver never knows the format. It opens a span of columns when its sweep enters it (the groups are fitted to the
weights as they then are), rounds tiles of columns, and takes the codes at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats import Block, CodebookGrid, Codes, Format, Scale
from bitwright.stages.quantizer import RangeEstimator


class BoundQuantizer:
    """State of one weight's coding.

    Args:
        format: the number format.
        estimator: chooses scale and zero point of a group.
        w: the weight ``[out, in]``, read for its shape and for the outer scale of two-level formats.
        importance: weight of each column's squared error, ``[in]``, handed to the estimator.
        codebook: tables ``[rows, levels]`` for formats with a learned table.
        keep: ``[out, in]``, false where a weight is coded by another term; such weights do not stretch a range.
    """

    def __init__(
        self,
        format: Format,
        estimator: RangeEstimator,
        w: Tensor,
        importance: Tensor | None = None,
        codebook: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> None:
        self.format = format
        self.estimator = estimator
        self.importance = importance
        self.codebook = codebook
        self.keep = keep
        self.shape = (w.shape[0], w.shape[1])
        self.layout = format.granularity.layout(self.shape)
        rows, groups = self.layout.params_shape
        self.scale = torch.ones(rows, groups)
        self.zero = torch.zeros(rows, groups) if format.zero is not None else None
        self.spans = self.layout.spans()
        self.codes = torch.zeros(self.shape, dtype=torch.uint8)
        self._stored: Scale | None = None
        # A span of columns owns column ``index`` of the parameters only where groups run along the input.
        self._refits = format.scale.outer is None and self.layout.params_shape[1] == len(self.spans) and (
            self.layout.params_shape[0] in (1, self.shape[0]) or isinstance(format.granularity, Block)
        )
        if not self._refits:
            self._fit_everything(w)

    @property
    def refits(self) -> bool:
        """Whether groups can be fitted one at a time (not where scales share an outer scale)."""
        return self._refits

    def _fit_everything(self, w: Tensor) -> None:
        g = self.layout.split(w)
        mask = self._mask(g, w)
        fitted = self.estimator.fit(g, self.format, mask, self._spread(g, w))
        stored = self.format.store_scale(fitted.scale)
        self._stored = stored
        self.scale, self.zero = stored.effective, fitted.zero

    def _mask(self, g: Tensor, w: Tensor) -> Tensor | None:
        layout = self.format.granularity.layout((w.shape[0], w.shape[1]))
        mask = layout.mask(g)
        if self.keep is not None and w.shape[1] == self.shape[1]:
            kept = layout.split(self.keep.to(torch.float32)) > 0
            mask = kept if mask is None else mask & kept
        return mask

    def _spread(self, g: Tensor, w: Tensor, start: int = 0) -> Tensor | None:
        if self.importance is None:
            return None
        layout = self.format.granularity.layout((w.shape[0], w.shape[1]))
        columns = self.importance[start : start + w.shape[1]]
        return layout.split(columns.expand(w.shape[0], -1).contiguous())

    def open_all(self, w: Tensor) -> None:
        """Fit every group to ``w[out, in]`` at once."""
        if self.refits:
            self._fit_everything(w)

    def open(self, start: int, stop: int, w: Tensor) -> None:
        """Fit the groups of one span of columns to the current weights ``w[out, stop - start]``.

        A no-op where scales share an outer scale: those were fitted to the whole weight when the quantizer was bound.
        """
        if not self.refits:
            return
        if (start, stop) == (0, self.shape[1]):
            self.open_all(w)
            return
        index = self.spans.index((start, stop))
        layout = self.format.granularity.layout((w.shape[0], w.shape[1]))
        g = layout.split(w)
        mask = layout.mask(g)
        if self.keep is not None:
            kept = layout.split(self.keep[:, start:stop].to(torch.float32)) > 0
            mask = kept if mask is None else mask & kept
        fitted = self.estimator.fit(g, self.format, mask, self._spread(g, w, start))
        self._stored = None
        self.scale[:, index : index + 1] = self.format.store_scale(fitted.scale).effective
        if self.zero is not None and fitted.zero is not None:
            self.zero[:, index : index + 1] = fitted.zero

    def parameters(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point of the columns ``start..stop``, broadcastable to ``[out, stop - start]``."""
        scale = self.layout.expand(self.scale)
        zero = None if self.zero is None else self.layout.expand(self.zero)
        if scale.shape[1] > 1:
            scale = scale[:, start:stop]
            zero = None if zero is None else zero[:, start:stop]
        return scale, zero

    def round(self, start: int, stop: int, w: Tensor) -> Tensor:
        """Code the columns ``w[out, stop - start]`` and return their dequantized values."""
        scale, zero = self.parameters(start, stop)
        value, codes = self.nearest(w, scale, zero)
        self.codes[:, start:stop] = codes
        return value

    def nearest(self, w: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nearest level and code of ``w`` under explicit parameters; keeps nothing."""
        grid = self.format.grid
        if isinstance(grid, CodebookGrid):
            return self._nearest_in_table(w)
        x = w / scale if zero is None else w / scale + zero
        codes = grid.encode(x)
        level = grid.decode(codes)
        return (level * scale if zero is None else (level - zero) * scale), codes

    def _nearest_in_table(self, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.codebook is None:
            raise ValueError("a codebook format needs a learned table")
        table = self.codebook.expand(w.shape[0], -1).contiguous()
        middle = (table[:, 1:] + table[:, :-1]) / 2
        codes = torch.searchsorted(middle, w.contiguous())
        return table.gather(1, codes), codes.to(torch.uint8)

    def finish(self) -> Codes:
        """Return the codes with their parameters as they are stored."""
        stored = self._stored if self._stored is not None else self.format.store_scale(self.scale)
        return Codes(self.codes, self.format, stored, self.format.store_zero(self.zero), self.codebook)
