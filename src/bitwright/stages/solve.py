"""From a float weight and a quantizer to a quantized tensor."""

from __future__ import annotations

import math

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import CodebookGrid, Codes, LowRank, QuantizedTensor, Sparse
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.ranges.minmax import MinMax
from bitwright.stages.rounding.nearest import Nearest


def quantize_weight(w: Tensor, quantizer: Quantizer, context: WeightContext | None = None) -> QuantizedTensor:
    """Quantize ``w[out, in]`` (fp32).

    Terms are kept in the order codes, then residuals as the recipe lists them; a ``before`` residual is taken out of
    the weight first and its positions neither stretch the range nor count in the codebook.

    Raises:
        InputError: if the weight has NaN or Inf, or the quantizer's format and codebook do not fit together.
    """
    context = context or WeightContext()
    low, high = w.aminmax()
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        raise InputError(f"{context.where} holds NaN or Inf; repair the checkpoint before quantizing it")
    learned = isinstance(quantizer.format.grid, CodebookGrid)
    if learned != (quantizer.codebook is not None):
        raise InputError(
            f"format '{quantizer.format}' and codebook {quantizer.codebook!r} do not fit together; "
            "a lut format needs a codebook learner and no other format takes one"
        )
    w = w.float()
    removed: list[Sparse | LowRank] = []
    rest = w
    keep: Tensor | None = None
    for residual in quantizer.residuals:
        if residual.when == "before":
            term = residual.fit(rest, context)
            removed.append(term)
            part = term.dequantize()
            rest = rest - part
            if isinstance(term, Sparse):
                keep = (part == 0) if keep is None else keep & (part == 0)
    estimator = quantizer.range or MinMax()
    codebook = quantizer.codebook.fit(rest, quantizer.format, keep, context) if quantizer.codebook else None
    bound = BoundQuantizer(quantizer.format, estimator, rest, estimator.importance(context), codebook, keep)
    rounding = quantizer.rounding or Nearest()
    value = rounding.solve(rest, bound, context)
    terms: list[Codes | Sparse | LowRank] = [bound.finish(), *removed]
    for residual in quantizer.residuals:
        if residual.when == "after":
            term = residual.fit(rest - value, context)
            terms.append(term)
            value = value + term.dequantize()
    return QuantizedTensor(tuple(terms))
