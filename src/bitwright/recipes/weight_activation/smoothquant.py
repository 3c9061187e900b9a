"""SmoothQuant: 8-bit weights and activations by moving outliers into the weights."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.site import rule
from bitwright.stages.transforms.smoothing import Smoothing


@recipe(
    "smoothquant",
    family="weight-activation",
    paper="Xiao et al. 2022, SmoothQuant, arXiv:2211.10438",
    claim=Claim(
        "lm-stories260k",
        (Check("better_than", "kl", baseline="w8a8", text="smoothing helps W8A8 where channels have outliers"),),
        variants=(
            Variant("w8a8", "rtn", (("weights", "int8 channel sym"), ("activations", "int8 token sym dynamic"))),
        ),
        prepare="plant outliers",
    ),
)
def smoothquant(
    weights: Format = parse("int8 channel sym"),
    activations: Format = parse("int8 token sym dynamic"),
    alpha: float = 0.5,
) -> Recipe:
    """Divide activations by ``s = max|x|^alpha / max|w|^(1-alpha)`` per channel, multiply weights; then round both.

    The scales are folded into the norms, so nothing runs online. The paper's O1 to O3 differ in how activations are
    scaled; the default here is O1 (per token, dynamic), ``activations="int8 tensor static"`` gives O3.

    Cost: one sweep of the float model; no memory beyond two vectors per layer.
    """
    return Recipe(
        transforms=(Smoothing(alpha),),
        weights=(rule("linear", Quantizer(weights)),),
        activations=(rule("linear", Quantizer(activations)),),
    )
