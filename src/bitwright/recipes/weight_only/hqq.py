"""HQQ: half-quadratic quantization."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import HalfQuadratic
from bitwright.stages.rounding import Nearest
from bitwright.stages.site import rule


@recipe(
    "hqq",
    family="weight-only",
    paper="Badri and Shaji 2023, Half-Quadratic Quantization, mobiusml.github.io/hqq_blog",
    claim=Claim(
        "lm-stories260k",
        (Check("better_than", "perplexity", baseline="rtn float zero"),),
        variants=(
            Variant("rtn float zero", "rtn", (("weights", "int3 g64 zero=fp16"),)),
            Variant("hqq", "hqq", (("weights", "int3 g64 zero=fp16"),)),
        ),
        formats=("int3 g64 zero=fp16",),
    ),
)
def hqq(
    weights: Format = parse("int4 g64 zero=fp16"),
    norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    steps: int = 20,
    select: str = "linear,conv",
) -> Recipe:
    """Move each group's float zero point so that the p-norm of the error falls, p < 1: outliers may keep their error.

    Per step ``e <- shrink_p(w - r)`` and ``z <- mean(q - (w - e)/s)`` (half-quadratic splitting); no data are read.
    What differs from the published code: every group keeps the best zero point it met, where the code stops all groups
    together; the first zero point is not rounded at 4 bits.

    Cost: about ``steps`` roundings of the weight.
    """
    estimator = HalfQuadratic(norm, beta, kappa, steps)
    return Recipe(weights=(rule(select, Quantizer(weights, range=estimator, rounding=Nearest())),))
