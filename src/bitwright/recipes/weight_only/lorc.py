"""LoRC: low-rank compensation of the rounding error (ZeroQuant-V2)."""

from __future__ import annotations

from typing import Literal

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer, RangeEstimator, Rounding
from bitwright.stages.ranges import MinMax, Mse
from bitwright.stages.residuals import LowRankError
from bitwright.stages.rounding import Nearest, SecondOrder
from bitwright.stages.site import rule


@recipe(
    "lorc",
    number=38,
    family="weight-only",
    paper="Yao et al. 2023, ZeroQuant-V2, arXiv:2303.08302",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "perplexity", baseline="rtn", at="int4 channel asym"),
            Check("better_than", "perplexity", baseline="rtn", at="int3 channel asym"),
            Check("order", "perplexity", baseline="rank 16 < rank 8 < rank 4 < rtn", at="int3 channel asym"),
            Check("order", "perplexity", baseline="lorc gptq < gptq", at="int3 channel asym"),
        ),
        variants=(
            Variant("rtn", "rtn"),
            Variant("gptq", "gptq"),
            Variant("rank 4", "lorc", (("rank", 4),)),
            Variant("rank 8", "lorc"),
            Variant("rank 16", "lorc", (("rank", 16),)),
            Variant("lorc gptq", "lorc", (("base", "gptq"),)),
        ),
    ),
)
def lorc(
    weights: Format = parse("int4 g128 asym"),
    rank: int = 8,
    storage: Literal["fp16", "int8"] = "fp16",
    base: Literal["rtn", "gptq"] = "rtn",
    select: str = "linear,conv",
) -> Recipe:
    """Round by ``base``, then add the leading ``rank`` directions of the error: ``Q + (U S^1/2)(S^1/2 V^T)``.

    The factors are kept in fp16, or with one scale per direction in int8. LoRC reads no data (``base="gptq"`` does).

    Cost: a singular value decomposition per weight (its leading part only for large ones);
    ``rank * (out + in)`` more stored numbers.
    """
    bases: dict[str, tuple[RangeEstimator, Rounding]] = {
        "rtn": (MinMax(), Nearest()),
        "gptq": (Mse(), SecondOrder(order="activation")),
    }
    estimator, rounding = bases[base]
    residual = LowRankError(rank, storage)
    quantizer = Quantizer(weights, range=estimator, rounding=rounding, residuals=(residual,))
    return Recipe(weights=(rule(select, quantizer),))
