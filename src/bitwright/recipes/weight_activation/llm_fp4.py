"""LLM-FP4: 4-bit floating-point weights and activations."""

from __future__ import annotations

from bitwright.formats import Format, MiniFloat, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax
from bitwright.stages.ranges.activation import InputMinMax
from bitwright.stages.ranges.float_search import FloatSearch, InputFloatSearch
from bitwright.stages.site import rule
from bitwright.stages.transforms.exponent_shift import ExponentShift


@recipe(
    "llm-fp4",
    number=4,
    family="weight-activation",
    paper="Liu et al. 2023, LLM-FP4, arXiv:2310.16836",
    claim=Claim(
        "lm-stories260k",
        (
            Check("order", "perplexity", baseline="llm-fp4 < searched < min-max",
                  text="shifted and searched beats searched beats min-max FP4"),
            Check("better_than", "perplexity", baseline="int4", text="searched and shifted FP4 beats INT4"),
        ),
        variants=(
            Variant("searched", "llm-fp4", (("shift", False),)),
            Variant("min-max", "llm-fp4", (("shift", False), ("search", False))),
            Variant("int4", "llm-fp4", (
                ("shift", False), ("search", False), ("weights", "int4 channel narrow"),
                ("activations", "int4 tensor narrow static"),
            )),
        ),
        prepare="plant outliers",
    ),
)  # fmt: skip
def llm_fp4(
    weights: Format = parse("e2m1 channel"),
    activations: Format = parse("e2m1 tensor static"),
    shift: bool = True,
    search: bool = True,
) -> Recipe:
    """Search split and clip of FP4 weights and activations; shift quiet channels by powers of two.

    Weights get a split per tensor and a clip per output row, activations one split and one clip per tensor (static);
    the per-channel integer exponents of activations are folded into the layers around them. ``search=False`` is
    min-max, ``shift=False`` leaves the exponents out.

    What differs from the paper: the search is one-sided per tensor, scored with the input's mean squares (weights) and
    a histogram (activations), instead of alternating over the layer's output on samples.

    Cost: two sweeps of the float model and two of the quantized one; searches of a few hundred roundings per tensor.
    """
    exponent = activations.grid.exponent if isinstance(activations.grid, MiniFloat) else 2
    weight = Quantizer(weights, range=FloatSearch() if search else MinMax())
    reading = Quantizer(activations, range=InputFloatSearch() if search else InputMinMax())
    return Recipe(
        transforms=(ExponentShift(2**exponent - 1),) if shift else (),
        weights=(rule("linear", weight),),
        activations=(rule("linear", reading),),
    )
