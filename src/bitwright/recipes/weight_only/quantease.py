"""QuantEase: coordinate descent on the layer's output error."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, Mse
from bitwright.stages.residuals import ThresholdedOutliers
from bitwright.stages.rounding import CoordinateDescent
from bitwright.stages.rounding.coordinate_descent import Start
from bitwright.stages.site import rule
from bitwright.statistics import Prefix


@recipe(
    "quantease",
    number=30,
    family="weight-only",
    paper="Behdin et al. 2023, QuantEase, arXiv:2309.01885",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "perplexity", baseline="gptq", at="int4 channel asym"),
            Check("better_than", "perplexity", baseline="gptq", at="int3 channel asym"),
            Check("better_than", "perplexity", baseline="rtn", at="int3 channel asym"),
            Check("ablation", "perplexity", baseline="plain", at="int3 channel asym", text="relaxed sweeps help"),
            Check("order", "perplexity", baseline="outliers < default", at="int3 channel asym"),
        ),
        variants=(
            Variant("gptq", "gptq"),
            Variant("plain", "quantease", (("relax", 0),)),
            Variant("outliers", "quantease", (("outliers", 0.01),)),
            Variant("default", "quantease"),
        ),
    ),
)
def quantease(
    weights: Format = parse("int4 g128 asym"),
    sweeps: int = 25,
    relax: int = 3,
    start: Start = "second-order",
    damping: float = 0.0,
    outliers: float = 0.0,
    prefix: Prefix = "layer",
    clip: bool = True,
    select: str = "linear,conv",
) -> Recipe:
    """Visit the columns in turn and give each the level nearest to its best value while all others stay.

    For column j that value is ``q_j + ((W - Q) S)_j / S_jj``, ``S = X X^T``; every ``relax``-th sweep leaves the
    columns unrounded. ``outliers`` is the share of entries kept in fp16 and learned by iterative hard thresholding.
    What differs from the paper: it starts from GPTQ's rounding (``start="weight"`` is the paper's), each row keeps the
    best rounding it met, ranges are clipped as in ``gptq`` (``clip=False``: the full range), and thresholding
    alternates with whole descents instead of single sweeps.

    Cost: ``sweeps * out * in^2`` multiply-adds; no factorisation but for the start.
    """
    rounding = CoordinateDescent(sweeps, relax, start, damping, prefix)
    residuals = (ThresholdedOutliers(outliers, prefix=prefix),) if outliers else ()
    quantizer = Quantizer(weights, range=Mse() if clip else MinMax(), rounding=rounding, residuals=residuals)
    return Recipe(weights=(rule(select, quantizer),))
