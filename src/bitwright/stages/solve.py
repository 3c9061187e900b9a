"""From a float weight and a quantizer to a quantized tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import AdditiveGrid, Codes, Format, LowRank, QuantizedTensor, Sparse
from bitwright.formats.tensor import Term
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import FormatChooser, Quantizer, RangeEstimator, Residual, WeightContext
from bitwright.stages.ranges.minmax import MinMax
from bitwright.stages.ranges.root_mean_square import RootMeanSquare
from bitwright.stages.residuals.sparse import Refitted
from bitwright.stages.rounding.nearest import Nearest


def quantize_weight(w: Tensor, quantizer: Quantizer, context: WeightContext | None = None) -> QuantizedTensor:
    """Quantize ``w[out, in]`` (fp32).

    A ``before`` residual is taken out of the weight first; the positions of a sparse one neither stretch a range nor
    count in a codebook. After the rounding it is fitted again to what the codes leave, so that no error stays where
    the grid has no zero; rounding and fitting alternate for as many rounds as the residual asks for. The terms are in
    the order codes, ``before`` residuals, ``after`` residuals.

    Raises:
        InputError: if the weight has NaN or Inf, or the quantizer's format and codebook do not fit together.
    """
    context = context or WeightContext()
    _check(w, quantizer, context)
    w = w.float()
    if _plain(quantizer):
        return QuantizedTensor((quantizer.format.quantize(w),))
    removed = _take_out(w, quantizer, context)
    rounds = max([residual.rounds for residual, _ in removed if isinstance(residual, Refitted)], default=1)
    for _ in range(rounds):
        codes, value = _round(w, removed, quantizer, context)
        removed = _fit_again(w - value, removed, context) if removed else removed
    terms: list[Term] = [codes, *(term for _, term in removed)]
    after = [residual for residual in quantizer.residuals if residual.when == "after"]
    if after:
        rest = w - QuantizedTensor(tuple(terms)).dequantize()
    for residual in after:
        term = residual.fit(rest, context)
        terms.append(term)
        rest = rest - term.dequantize()
    return QuantizedTensor(tuple(terms))


def _check(w: Tensor, quantizer: Quantizer, context: WeightContext) -> None:
    low, high = w.aminmax()
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        raise InputError(f"{context.where} holds NaN or Inf; repair the checkpoint before quantizing it")
    learned = quantizer.format.learned
    if learned != (quantizer.codebook is not None):
        raise InputError(
            f"format '{quantizer.format}' and codebook {quantizer.codebook!r} do not fit together; "
            "a lut or vq format needs a codebook learner and no other format takes one"
        )
    if isinstance(quantizer.format.grid, AdditiveGrid) and not isinstance(quantizer.range, RootMeanSquare | None):
        raise InputError(f"'{quantizer.format}' learns its codebooks on weights of unit size; leave the range out")


def default_range(format: Format) -> RangeEstimator:
    """Absmax; for codebooks of vectors, which are learned on weights of unit size, the root of the mean square."""
    return RootMeanSquare() if isinstance(format.grid, AdditiveGrid) else MinMax()


def _plain(quantizer: Quantizer) -> bool:
    """Whether the format's own absmax rounding gives the same codes in one fused pass."""
    parts = (quantizer.range or MinMax(), quantizer.rounding or Nearest())
    return parts == (MinMax(), Nearest()) and quantizer.codebook is None and not quantizer.residuals


Removed = list[tuple[Residual, Sparse | LowRank]]


def _take_out(w: Tensor, quantizer: Quantizer, context: WeightContext) -> Removed:
    removed: Removed = []
    rest = w
    for residual in quantizer.residuals:
        if residual.when == "before":
            term = residual.fit(rest, context)
            removed.append((residual, term))
            rest = rest - term.dequantize()
    return removed


def _round(w: Tensor, removed: Removed, quantizer: Quantizer, context: WeightContext) -> tuple[Codes, Tensor]:
    """Code what the removed terms leave; return the codes and their values."""
    keep: Tensor | None = None
    rest = w
    for _, term in removed:
        rest = rest - term.dequantize()
        if isinstance(term, Sparse):
            keep = w.new_ones(w.shape, dtype=torch.bool) if keep is None else keep
            keep[term.rows.long(), term.cols.long()] = False
    estimator = quantizer.range or default_range(quantizer.format)
    codebook = quantizer.codebook.fit(rest, quantizer.format, keep, context) if quantizer.codebook else None
    importance = estimator.importance(context)
    format = quantizer.format
    if isinstance(estimator, FormatChooser):
        format = estimator.choose(rest, format, importance if isinstance(importance, Tensor) else None)
    bound = BoundQuantizer(format, estimator, rest, importance, codebook, keep)
    value = (quantizer.rounding or Nearest()).solve(rest, bound, context)
    return bound.finish(), value


def _fit_again(rest: Tensor, removed: Removed, context: WeightContext) -> Removed:
    """Fit the removed terms that can be to ``rest``, the weight less the values of the codes."""
    fitted: Removed = []
    for _, term in removed:
        rest = rest - term.dequantize()
    for residual, term in removed:
        if isinstance(residual, Refitted) and isinstance(term, Sparse):
            own = rest + term.dequantize()
            term = residual.refit(term, own, context)
            rest = own - term.dequantize()
        fitted.append((residual, term))
    return fitted
