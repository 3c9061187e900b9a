"""AWQ: activation-aware weight quantization."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, OutputClip
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
def awq(
    weights: Format = parse("int4 g128 asym"),
    points: int = 20,
    clip: bool = True,
    unclipped: str = "",
    select: str = "linear,conv",
) -> Recipe:
    """Scale salient input channels up by ``mean|x|^alpha`` before the rounding; clip each group by its output's error.

    The scales are folded into what writes the channels; the clip then shrinks each group's range to one of ten shares
    from 1 to 0.55 (Lin et al. 2023, section 3.2; ``clip=False`` leaves it out).

    What differs from the published code: the clip's error is exact from second moments instead of a sample of tokens
    (see :class:`~bitwright.stages.ranges.OutputClip`). The code leaves query and key projections unclipped by their
    names; names mean nothing here, so all layers are clipped unless ``unclipped`` selects some (``*q_proj,*k_proj``).

    Cost: per pair ``points`` runs of its part of the block on a few batches; ten roundings and small products per
    weight; one further sweep of the float model.
    """
    chosen = Quantizer(weights, range=OutputClip.of(weights) if clip else MinMax())
    rules = [rule(select, chosen)]
    if clip and unclipped:
        rules.append(rule(unclipped, Quantizer(weights, range=MinMax())))
    return Recipe(transforms=(ActivationAwareScaling(points=points),), weights=tuple(rules))
