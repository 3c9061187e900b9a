"""Round to nearest in ranges that were searched for the smallest error."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import Mse
from bitwright.stages.ranges.mse import Importance
from bitwright.stages.rounding import Nearest
from bitwright.stages.site import rule
from bitwright.statistics import Prefix


@recipe(
    "rtn-mse",
    family="weight-only",
    paper="folklore; the clipping search of most post-training papers",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "perplexity", baseline="rtn", at="int4 channel asym"),
            Check("better_than", "perplexity", baseline="rtn", at="int3 channel asym"),
        ),
    ),
)
def rtn_mse(
    weights: Format = parse("int4 g128 asym"),
    importance: Importance = "solver",
    prefix: Prefix = "float",
    select: str = "linear,conv",
) -> Recipe:
    """Clip each group where its squared rounding error is smallest, then round to nearest.

    ``importance="mean square"`` weighs a column's error with the mean square of its input; by default no data are read.

    Cost: about 60 roundings of the weight.
    """
    estimator = Mse(importance_from=importance, prefix=prefix)
    return Recipe(weights=(rule(select, Quantizer(weights, range=estimator, rounding=Nearest())),))
