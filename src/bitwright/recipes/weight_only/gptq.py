"""GPTQ: second-order rounding with error feedback."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, Mse
from bitwright.stages.rounding import SecondOrder
from bitwright.stages.rounding.second_order import Order
from bitwright.stages.site import rule
from bitwright.statistics import Prefix


@recipe(
    "gptq",
    number=59,
    family="weight-only",
    paper="Frantar et al. 2022, GPTQ, arXiv:2210.17323",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "perplexity", baseline="rtn", at="int4 channel asym"),
            Check("better_than", "perplexity", baseline="rtn", at="int3 channel asym"),
            Check("better_than", "perplexity", baseline="rtn", at="int2 channel asym"),
            Check("better_than", "perplexity", baseline="rtn-mse", at="int3 channel asym"),
            Check("ablation", "perplexity", baseline="full range", at="int3 channel asym", text="clipping helps"),
            *(
                Check("better_than", metric, baseline="rtn", margin=0.5, at=at, asset="embedding-stsb")
                for metric, at in (
                    ("embedding_error", "int4 channel asym"),
                    ("embedding_error", "int3 channel asym"),
                    ("spearman_loss", "int3 channel asym"),
                    ("spearman_loss", "int2 g64 asym"),
                )
            ),
        ),
        variants=(Variant("full range", "gptq", (("clip", False),)),),
    ),
)
def gptq(
    weights: Format = parse("int4 g128 asym"),
    damping: float = 0.01,
    order: Order = "activation",
    prefix: Prefix = "layer",
    clip: bool = True,
    select: str = "linear,conv",
) -> Recipe:
    """Round columns in turn; push each column's rounding error onto the columns that are still free.

    ``order="activation"`` takes the columns with the largest second moment first and keeps the groups where they are;
    ``prefix`` chooses the inputs of the Hessian (``layer``: quantized up to the layer before, as the published code).
    What differs from the paper: the sweep is written in its LDL form, which needs no inverse (same result), and each
    range is clipped where its error is smallest, weighted with what the later columns cannot make up for;
    ``clip=False`` is the paper's full range.

    Cost per layer: ``in^3/3 + out * in^2 / 2`` multiply-adds, about 40 roundings of the weight for the ranges,
    ``in^2`` floats of memory, one more forward pass per group of layers that share an input.
    """
    rounding = SecondOrder(damping=damping, order=order, prefix=prefix)
    return Recipe(weights=(rule(select, Quantizer(weights, range=Mse() if clip else MinMax(), rounding=rounding)),))
