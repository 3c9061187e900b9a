"""QuaRot: outlier-free 4-bit inference by Hadamard rotations."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax
from bitwright.stages.rounding import SecondOrder
from bitwright.stages.site import rule
from bitwright.stages.transforms.rotation import KeyRotation, OnlineRotation, ResidualRotation, ValueRotation


@recipe(
    "quarot",
    family="weight-activation",
    paper="Ashkboos et al. 2024, QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, arXiv:2404.00456",
    claim=Claim(
        "lm-stories260k",
        (
            Check("better_than", "kl", baseline="gptq-w4a4kv4", text="rotations help W4A4KV4 with planted outliers"),
        ),
        variants=(Variant("gptq-w4a4kv4", "quarot", (("rotate", False),)),),
        prepare="plant outliers",
    ),
)
def quarot(
    weights: Format = parse("int4 channel sym"),
    activations: Format = parse("int4 token sym dynamic"),
    keys: Format = parse("int4 token asym"),
    values: Format = parse("int4 token asym"),
    damping: float = 0.01,
    rotate: bool = True,
) -> Recipe:
    """Rotate the residual stream, the value heads, the inputs of output and down projections and the keys; then GPTQ.

    Norm gains are folded and the stream rotated by one randomised Hadamard matrix (nothing at run time); value heads
    are rotated inside the attention (folded); the inputs of the output and down projections and the keys of the cache
    are rotated online. Weights are then rounded by GPTQ, activations per token, keys and values per token and head.

    What differs from the paper: the output projection's online transform covers all its channels at once instead of
    the heads only; keys are turned back when the cache is read instead of rotating the queries; activations are
    coded without the paper's fixed clipping ratio of 0.9. ``rotate=False`` leaves all rotations out (the ablation).

    Cost: GPTQ's, one weight-sized transform per layer, ``O(in log in)`` per token and online transform.
    """
    rotations = (ResidualRotation(), ValueRotation(), OnlineRotation(), KeyRotation())
    return Recipe(
        transforms=rotations if rotate else (),
        weights=(rule("linear", Quantizer(weights, range=MinMax(), rounding=SecondOrder(damping=damping))),),
        activations=(rule("linear", Quantizer(activations)),),
        kv_cache=(rule("key", Quantizer(keys)), rule("value", Quantizer(values))),
    )
