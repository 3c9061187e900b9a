"""AWQ: activation-aware weight quantization."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax
from bitwright.stages.site import rule
from bitwright.stages.transforms.activation_aware import ActivationAwareScaling


@recipe(
    "awq",
    number=104,
    family="weight-only",
    paper="Lin et al. 2023, AWQ, arXiv:2306.00978",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "perplexity", baseline="rtn", at="int4 g32 asym"),
            Check("better_than", "perplexity", baseline="rtn", at="int3 g32 asym"),
        ),
    ),
)
def awq(weights: Format = parse("int4 g128 asym"), points: int = 20, select: str = "linear,conv") -> Recipe:
    """Scale salient input channels up before the rounding by ``mean|x|^alpha``, folded into what writes them.

    Cost: per pair ``points`` runs of its block on a few batches.
    """
    return Recipe(
        transforms=(ActivationAwareScaling(points=points),),
        weights=(rule(select, Quantizer(weights, range=MinMax())),),
    )
