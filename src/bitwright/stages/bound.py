"""A quantizer bound to one weight: the only thing that a rounding rule talks to.

A solver never knows the format. It opens a span of columns when its sweep enters it (the groups are fitted to the
weights as they then are), rounds columns through tiles, and takes the codes at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, FlatBlock, Format, Scale
from bitwright.formats.compiled import rounder
from bitwright.formats.layout import AxisLayout, Layout
from bitwright.formats.tables import CodebookGrid, middles_below
from bitwright.stages.lowered import Form, ScaledTile, Spans, SpanTile, TableTile, Tile, lower
from bitwright.stages.quantizer import RangeEstimator
from bitwright.statistics.blocks import BlockMoment

# Elements that are rounded at once: a few fp32 temporaries of this size stay in the cache.
_CHUNK = 1 << 17


class BoundQuantizer:
    """State of one weight's coding.

    Args:
        format: the number format.
        estimator: chooses scale and zero point of a group.
        w: the weight ``[out, in]``, read for its shape and for the outer scale of two-level formats.
        importance: weight of each column's squared error, ``[in]``, or second moments of neighbouring columns, handed
            to the estimator; ``None`` leaves it to the solver.
        codebook: ascending tables ``[rows, groups, levels]`` for formats with a learned table, codebooks
            ``[books, entries, span]`` for sums of learned vectors (kept in fp16).
        keep: ``[out, in]``, false where a weight is coded by another term; such weights do not stretch a range.

    Attributes:
        scale, zero: fp32 ``[rows, groups]``, the values as they are stored (``zero`` is ``None`` without zero points).
        codes: uint8 ``[out, in]``, the codes so far.
        spans: column ranges in which every row uses one group.
    """

    def __init__(
        self,
        format: Format,
        estimator: RangeEstimator,
        w: Tensor,
        importance: Tensor | BlockMoment | None = None,
        codebook: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> None:
        self.format = format
        self.estimator = estimator
        self.importance = importance
        self.keep = keep
        self.shape = (w.shape[0], w.shape[1])
        format.check_shape(self.shape)
        self.layout = format.granularity.layout(self.shape)
        rows, groups = self.layout.params_shape
        self.scale = torch.ones(rows, groups)
        self.zero = torch.zeros(rows, groups) if format.zero is not None else None
        self.spans = self.layout.spans()
        self._codes = torch.zeros(self.shape, dtype=torch.uint8)
        self._taken: Tensor | None = None
        self.codebook = None if codebook is None else codebook.to(torch.float16)
        self._tables = self.codebook.float().flatten(0, 1) if self.codebook is not None and self.learned else None
        self._form: Form | None = None
        if format.learned and not self.learned:
            self._form = Spans(format.grid, self.codebook)
        elif not self.learned:
            self._form = lower(format.grid)
        self._stored: Scale | None = None
        self._expanded: tuple[Tensor, Tensor | None] | None = None
        self._rows: tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None] | None = None
        if format.scale.outer is not None:
            self._fit_everything(w)

    @property
    def codes(self) -> Tensor:
        """See the class."""
        if self._taken is not None:
            self._codes, self._taken = self._taken.t().contiguous(), None
        return self._codes

    @property
    def learned(self) -> bool:
        """Whether values come from a learned table instead of a scale."""
        return isinstance(self.format.grid, CodebookGrid)

    @property
    def span(self) -> int:
        """Columns that are rounded together: 1, or the length of the format's vectors."""
        return self.format.grid.span

    def refuse_vectors(self, rule: str) -> None:
        """For rules that change one column at a time.

        Raises:
            InputError: a format of vectors.
        """
        if self.span > 1:
            raise InputError(f"{rule} rounds single weights, not the vectors of '{self.format}'; use SecondOrder")

    def replace(self, codebook: Tensor, scale: Tensor) -> None:
        """Take codebooks ``[books, entries, span]`` and scales ``[rows, groups]`` that a rule has learned anew."""
        self.codebook = codebook.to(torch.float16)
        self._form = Spans(self.format.grid, self.codebook)
        self._stored = self.format.store_scale(scale)
        self.scale = self._stored.effective
        self._forget()

    @property
    def refits(self) -> bool:
        """Whether groups can be fitted span after span.

        Not where scales share an outer scale, where values come from a table, or where flat blocks run over the ends
        of rows.
        """
        if self.format.scale.outer is not None or self.learned:
            return False
        return not isinstance(self.format.granularity, FlatBlock) or self._rows_end_groups

    @property
    def _rows_end_groups(self) -> bool:
        """Whether the format has flat blocks of which no one runs over the end of a row."""
        flat = isinstance(self.format.granularity, FlatBlock)
        return flat and self.shape[1] % self.layout.group_length == 0

    # -- parameters ---------------------------------------------------------------------------------------------

    def open_all(self, w: Tensor, importance: Tensor | None = None) -> None:
        """Fit every group to ``w[out, in]`` at once (a no-op where scales share an outer scale: that was done).

        ``importance[in]`` is what a squared error in each column costs the solver; it counts where the estimator has
        no importance of its own.
        """
        if self.format.scale.outer is None and not self.learned:
            self._fit_everything(w, importance)

    def open(self, start: int, stop: int, w: Tensor, importance: Tensor | None = None) -> None:
        """Fit the groups of the span of columns ``start..stop`` to their current weights ``w[out, stop - start]``.

        ``importance[in]`` as in :meth:`open_all`. A no-op where :attr:`refits` is false.
        """
        if not self.refits:
            return
        if (start, stop) == (0, self.shape[1]):
            self._fit_everything(w, importance)
            return
        scale, zero = self._fit(w, start, stop, importance)
        self._place(self.scale, self.format.store_scale(scale).effective, start, stop)
        stored = self.format.store_zero(zero)
        if self.zero is not None and stored is not None:
            self._place(self.zero, stored.to(torch.float32), start, stop)
        self._stored = None
        self._forget()

    def _fit_everything(self, w: Tensor, importance: Tensor | None = None) -> None:
        scale, zero = self._fit(w, 0, self.shape[1], importance)
        self._stored = self.format.store_scale(scale)
        self.scale = self._stored.effective
        stored = self.format.store_zero(zero)
        self.zero = None if stored is None else stored.to(torch.float32)
        self._forget()

    def _fit(self, w: Tensor, start: int, stop: int, importance: Tensor | None) -> tuple[Tensor, Tensor | None]:
        layout = self.format.granularity.layout((w.shape[0], w.shape[1]))
        g = layout.split(w)
        mask = layout.mask(g)
        if self.keep is not None:
            kept = layout.split(self.keep[:, start:stop].to(torch.float32)) > 0
            mask = kept if mask is None else mask & kept
        chosen = importance if self.importance is None else self.importance
        spread = None
        if isinstance(chosen, BlockMoment):
            spread = self._forms(layout, chosen, start, stop)
        elif chosen is not None:
            spread = self._spread(layout, chosen[start:stop])
        fitted = self.estimator.fit(g, self.format, mask, spread)
        return fitted.scale, fitted.zero

    def _spread(self, layout: Layout, columns: Tensor) -> Tensor:
        """The importance of ``columns`` in the shape of groups (one row stands for all where the groups allow it)."""
        if isinstance(layout, AxisLayout) and not layout.transposed:
            return AxisLayout((1, len(columns)), layout.size).split(columns.unsqueeze(0))
        return layout.split(columns.expand(self.shape[0], -1).contiguous())

    def _forms(self, layout: Layout, moment: BlockMoment, start: int, stop: int) -> Tensor:
        """The quadratic form of each group ``[1, groups, n, n]``; weights of columns where groups leave their row."""
        if not isinstance(layout, AxisLayout) or layout.transposed:
            return self._spread(layout, moment.diagonal[start:stop])
        # Padding is 0 in a layout and -1 among columns.
        place = torch.arange(start + 1, stop + 1).unsqueeze(0)
        return moment.of(AxisLayout((1, stop - start), layout.size).split(place)[0] - 1).unsqueeze(0)

    def _forget(self) -> None:
        """Drop what was derived from the parameters."""
        self._expanded = self._rows = None

    def _place(self, params: Tensor, part: Tensor, start: int, stop: int) -> None:
        if isinstance(self.layout, AxisLayout) and self.layout.transposed:
            params[start:stop] = part
            return
        index = self.layout.group_of_column(start)
        if self._rows_end_groups:
            params.view(self.shape[0], -1)[:, index] = part.reshape(-1)
        else:
            params[:, index : index + 1] = part

    def parameters(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point of the columns ``start..stop``, broadcastable to ``[out, stop - start]``."""
        scale, zero = self._expand()
        if scale.shape[1] > 1:
            scale = scale[:, start:stop]
            zero = None if zero is None else zero[:, start:stop]
        return scale, zero

    def _expand(self) -> tuple[Tensor, Tensor | None]:
        if self._expanded is None:
            zero = None if self.zero is None else self.layout.expand(self.zero)
            self._expanded = self.layout.expand(self.scale), zero
        return self._expanded

    def _per_column(self, columns: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """Scale and zero point of each column, ``[out or 1]``; views, not copies, where groups lie along the rows."""
        layout = self.layout
        if self._rows_end_groups or (isinstance(layout, AxisLayout) and not layout.transposed):
            if self._rows is None:
                out = self.shape[0]
                scale = self.scale.view(out, -1).t().contiguous().unbind()
                zero = None if self.zero is None else self.zero.view(out, -1).t().contiguous().unbind()
                self._rows = scale, zero
            groups = (columns // layout.group_length).tolist()
            scales, zeros = self._rows
            return [scales[i] for i in groups], None if zeros is None else [zeros[i] for i in groups]
        full = self._expand()
        parts = [None if p is None else p.expand(-1, self.shape[1])[:, columns].t().contiguous() for p in full]
        assert parts[0] is not None
        return list(parts[0].unbind()), None if parts[1] is None else list(parts[1].unbind())

    # -- what compiled sweeps read ------------------------------------------------------------------------------

    @property
    def form(self) -> Form | None:
        """The plain form of the grid, ``None`` for learned tables."""
        return self._form

    def parameter_sets(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The set of parameters of each column (int64), and the sets: scale and zero point ``[sets, out]``."""
        layout, out = self.layout, self.shape[0]
        if self._rows_end_groups or (isinstance(layout, AxisLayout) and not layout.transposed):
            groups, index = torch.unique(columns // layout.group_length, return_inverse=True)
            zero = None if self.zero is None else self.zero.view(out, -1)[:, groups].t()
            return index, self.scale.view(out, -1)[:, groups].t(), zero
        scale, zero = self._expand()
        if scale.shape[1] == 1:
            chosen, index = torch.zeros(1, dtype=torch.int64), torch.zeros_like(columns)
        else:
            chosen, index = columns, torch.arange(len(columns))
        picked = None if zero is None else zero.expand(out, -1)[:, chosen].t()
        return index, scale.expand(out, -1)[:, chosen].t(), picked

    def row_tables(self) -> Tensor | None:
        """Learned tables ``[sets, levels, out]``; ``None`` without, or where rows have no tables of their own."""
        if self._tables is None or not isinstance(self.layout, AxisLayout) or self.layout.transposed:
            return None
        return self._tables.view(*self.layout.params_shape, -1).permute(1, 2, 0)

    def row_borders(self) -> Tensor:
        """Where the levels of :meth:`row_tables` meet, ``[sets, levels - 1, out]``."""
        assert self._tables is not None
        return middles_below(self._tables).view(*self.layout.params_shape, -1).permute(1, 2, 0)

    def table_sets(self, columns: Tensor) -> Tensor:
        """The set of tables of each column."""
        return columns // self.layout.group_length

    def accept(self, codes: Tensor) -> None:
        """Keep the uint8 codes ``[out, in]`` of a sweep that rounded every column."""
        self._codes, self._taken = codes, None

    # -- rounding -----------------------------------------------------------------------------------------------

    def tile(self, columns: Tensor, importance: Tensor | None = None) -> Tile:
        """Prepare the columns (int64, in the order of the sweep) to be rounded one after another.

        ``importance[columns]``: what their squared errors cost, for formats that choose the codes of several columns
        together. Hand the tile back to :meth:`take` when all were.
        """
        count, out = len(columns), self.shape[0]
        if self._tables is not None:
            index = torch.arange(len(self._tables)).view(self.layout.params_shape)
            which = self.layout.expand(index)
            return TableTile(self._tables, which if which.shape[1] == 1 else which[:, columns], count, out)
        assert self._form is not None
        if isinstance(self._form, Spans):
            return SpanTile(self._form, self._per_column(columns)[0], out, importance)
        return ScaledTile(self.format.grid, self._form, *self._per_column(columns), out)

    def take(self, columns: Tensor, tile: Tile) -> None:
        """Keep the codes of a finished tile."""
        if self._taken is None:
            # Transposed while a sweep runs: columns are then written in one piece.
            self._taken = self._codes.t().contiguous()
        self._taken[columns] = tile.codes()

    def round(self, start: int, stop: int, w: Tensor) -> Tensor:
        """Code the columns ``start..stop``, ``w[out, stop - start]``, and return their dequantized values."""
        if (start, stop) == (0, self.shape[1]):
            return self._round_everything(w)
        if self._tables is not None:
            columns = torch.arange(start, stop)
            tile, value = self.tile(columns), torch.empty(stop - start, self.shape[0])
            for index in range(stop - start):
                tile.round(index, w[:, index], value[index])
            self.take(columns, tile)
            return value.t()
        scale, zero = self.parameters(start, stop)
        value, codes = self.nearest(w, scale, zero)
        self.codes[:, start:stop] = codes
        return value

    def _round_everything(self, w: Tensor) -> Tensor:
        compiled = rounder(self.format, w, self.layout)
        if compiled is not None and w.dtype == torch.float32:
            self._codes, value = compiled.both(self.scale, self.zero)
            self._taken = None
            return value
        value = torch.empty(self.shape)
        for rows in self.layout.row_chunks(_CHUNK):
            part = self.layout.of_rows(rows)
            g = part.split(w[rows[0] : rows[1]])
            scale = self.layout.params_of_rows(self.scale, rows)
            zero = None if self.zero is None else self.layout.params_of_rows(self.zero, rows)
            if self.codebook is not None and self.learned:
                codes, levels = self._search(g, self._of_rows(self.codebook, rows).float())
            else:
                codes = self.format.encode(g, scale, zero, self.codebook)
                levels = self.format.decode(codes, scale, zero, self.codebook)
            self.codes[rows[0] : rows[1]] = part.join(codes)
            value[rows[0] : rows[1]] = part.join(levels)
        return value

    def _of_rows(self, tables: Tensor, rows: tuple[int, int]) -> Tensor:
        index = torch.arange(tables.shape[0] * tables.shape[1]).view(self.layout.params_shape)
        chosen = self.layout.params_of_rows(index, rows)
        return tables.flatten(0, 1)[chosen]

    @staticmethod
    def _search(g: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.searchsorted(middles_below(tables).contiguous(), g.contiguous())
        return place.to(torch.uint8), tables.gather(-1, place)

    def nearest(self, w: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nearest level and code of ``w`` under explicit parameters of a format with fixed levels; keeps nothing."""
        coder = self._form if isinstance(self._form, Spans) else self.format.grid
        x = w / scale if zero is None else w / scale + zero
        codes = coder.encode(x)
        level = coder.decode(codes)
        return (level * scale if zero is None else (level - zero) * scale), codes

    def finish(self) -> Codes:
        """Return the codes with their parameters as they are stored."""
        scale = self._stored or self.format.store_scale(self.scale)
        return Codes(self.codes, self.format, scale, self.format.store_zero(self.zero), self.codebook)
