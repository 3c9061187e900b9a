"""GPTAQ (GPTQv2): second-order rounding towards the float model's outputs."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, Mse
from bitwright.stages.rounding import Asymmetric
from bitwright.stages.rounding.second_order import Order
from bitwright.stages.site import rule
from bitwright.statistics import Prefix


@recipe(
    "gptaq",
    number=205,
    family="weight-only",
    paper="Li et al. 2025, GPTAQ, arXiv:2504.02692",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "perplexity", baseline="gptq", at="int3 g32 asym"),
            Check("better_than", "perplexity", baseline="gptq", at="int2 g32 asym"),
        ),
        variants=(Variant("gptq", "gptq"),),
        seeds=(0, 1, 2),
    ),
)
def gptaq(
    weights: Format = parse("int4 g128 asym"),
    damping: float = 0.01,
    order: Order = "activation",
    prefix: Prefix = "layer",
    alpha: float = 1.0,
    clip: bool = True,
    select: str = "linear,conv",
) -> Recipe:
    """GPTQ whose target is the output on the float model's inputs: each column also undoes its own input's error.

    Minimises ``||Q X - W X_float||`` column by column: besides GPTQ's update, column k adds ``w_k P_k`` to the free
    columns, ``P = triu((X_float - X) X^T R^T, 1) R``, ``H^-1 = R^T R``. What differs from the paper: the LDL form (same
    result, one triangular solve instead of two products with an inverse); ``alpha=1`` is the paper's formula,
    the published code takes 0.25; ranges are clipped as in ``gptq`` (``clip=False``: the full range).

    Cost: as ``gptq`` and ``out * in^2 / 2 + in^3 / 2`` multiply-adds more; both streams pass through the model.
    """
    rounding = Asymmetric(damping=damping, order=order, prefix=prefix, alpha=alpha)
    return Recipe(weights=(rule(select, Quantizer(weights, range=Mse() if clip else MinMax(), rounding=rounding)),))
