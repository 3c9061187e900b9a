"""BRECQ: block reconstruction."""

from __future__ import annotations

from typing import Literal

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Data, Recipe, recipe
from bitwright.stages.learn.reconstruct import Reconstruct
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import Mse
from bitwright.stages.site import rule


@recipe(
    "brecq",
    family="vision",
    paper="Li et al. 2021, BRECQ, arXiv:2102.05426",
    claim=Claim(
        "vision-resnet-cifar10",
        (
            Check("better_than", "error", baseline="rtn-mse", at="int3 channel sym"),
            Check("better_than", "error", baseline="rtn-mse", at="int2 channel sym"),
        ),
    ),
)
def brecq(
    weights: Format = parse("int4 channel asym"),
    steps: int = 400,
    rate: float = 0.02,
    scale_rate: float = 0.0,
    loss: Literal["mse", "fisher"] = "fisher",
    select: str = "all",
) -> Recipe:
    """Learn the rounding of all weights of a block together, so that the block answers as the float one."""
    learn = Reconstruct("block", steps=steps, rate=rate, scale_rate=scale_rate, loss=loss)
    return Recipe(
        weights=(rule(select, Quantizer(weights, range=Mse())),),
        learn=(learn,),
        data=Data(sequences=1024),
    )
