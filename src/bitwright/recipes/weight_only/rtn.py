"""Round to nearest: the baseline that every other recipe has to beat."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax
from bitwright.stages.rounding import Nearest
from bitwright.stages.site import rule


@recipe(
    "rtn",
    family="weight-only",
    paper="folklore; the baseline of every post-training paper",
    claim=Claim(
        "lm-stories260k",
        (
            Check("at_most", "kl", margin=0.002, at="int8 channel asym", text="8 bits are nearly lossless"),
            Check("at_most", "spearman_loss", margin=0.005, at="int8 channel sym", asset="embedding-stsb"),
            Check("at_most", "embedding_error", margin=0.001, at="int8 channel sym", asset="embedding-stsb"),
        ),
    ),
)
def rtn(weights: Format = parse("int4 g128 asym"), activations: str = "", select: str = "linear,conv") -> Recipe:
    """Round every weight to the nearest level of its group's min-max range; no data are read.

    ``activations`` (a dynamic format, e.g. ``int8 token dynamic``) codes the layers' inputs too: the baseline of the
    weight-activation recipes.
    """
    inputs = (rule(select, Quantizer(parse(activations))),) if activations else ()
    return Recipe(weights=(rule(select, Quantizer(weights, range=MinMax(), rounding=Nearest())),), activations=inputs)
