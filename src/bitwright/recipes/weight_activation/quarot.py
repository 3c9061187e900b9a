"""QuaRot: outlier-free 4-bit inference by Hadamard rotations."""

from __future__ import annotations

from dataclasses import replace

from bitwright.formats import Format, IntGrid, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, Mse
from bitwright.stages.rounding import SecondOrder
from bitwright.stages.site import rule
from bitwright.stages.transforms.rotation import KeyRotation, OnlineRotation, ResidualRotation, ValueRotation


@recipe(
    "quarot",
    family="weight-activation",
    paper="Ashkboos et al. 2024, QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, arXiv:2404.00456",
    claim=Claim(
        "lm-stories260k",
        (Check("better_than", "kl", baseline="gptq-w4a4kv4", text="rotations help W4A4KV4 with planted outliers"),),
        variants=(Variant("gptq-w4a4kv4", "quarot", (("rotate", False),)),),
        prepare="plant outliers",
    ),
)
def quarot(
    weights: Format = parse("int4 channel sym"),
    activations: Format = parse("int4 token sym dynamic"),
    keys: Format = parse("int4 token asym"),
    values: Format = parse("int4 token asym"),
    input_clip: float = 0.9,
    cache_clip: float = 0.95,
    clip: bool = True,
    damping: float = 0.01,
    rotate: bool = True,
) -> Recipe:
    """Rotate the residual stream, the value heads, the inputs of output and down projections and the keys; then GPTQ.

    Norm gains are folded and the stream rotated by one randomised Hadamard matrix (nothing at run time); value heads
    are rotated inside the attention (folded); the inputs of the output projections (across heads) and of the down
    projections and the keys of the cache are rotated online. Weights are then rounded by GPTQ, activations per token,
    keys and values per token and head. Section 5: inputs cover 0.9 and the cache 0.95 of their measured range, weights
    the share with the least squared error (``clip=False``: all of it).

    What differs from the paper: keys are turned back when the cache is read instead of rotating the queries; the
    weights' clip counts an error by what GPTQ cannot make up for; every head has a range of its own, where the paper
    groups 128 values (heads of few channels lose by a clip that large ones gain by). The paper counts a share of the
    step ``max|x| / (2^(b-1) - 1)``, this library's ``sym`` has ``max|x| / (2^(b-1) - 1/2)``: ``input_clip`` is
    converted, 1 leaves the format as it is. ``rotate=False`` leaves all rotations out (the ablation).

    Cost: GPTQ's, one weight-sized transform per layer, ``O(in log in)`` per token and online transform.
    """
    rotations = (ResidualRotation(), ValueRotation(), OnlineRotation(), KeyRotation())
    weight = Quantizer(weights, range=Mse() if clip else MinMax(), rounding=SecondOrder(damping=damping))
    return Recipe(
        transforms=rotations if rotate else (),
        weights=(rule("linear", weight),),
        activations=(rule("linear", Quantizer(covering(activations, input_clip))),),
        kv_cache=(
            rule("key", Quantizer(covering(keys, cache_clip))),
            rule("value", Quantizer(covering(values, cache_clip))),
        ),
    )


def covering(format: Format, share: float) -> Format:
    """The format that covers the ``share`` of a measured range as the paper counts it; a share it already has stays."""
    if share == 1 or format.clip != 1:
        return format
    grid = format.grid
    if isinstance(grid, IntGrid) and grid.signed and not grid.narrow and grid.bits > 1:
        share *= (2**grid.bits - 1) / (2**grid.bits - 2)
    return replace(format, clip=round(share, 4))
