"""BRECQ: block reconstruction."""

from __future__ import annotations

from typing import Literal

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Data, Recipe, Variant, recipe
from bitwright.stages.learn.reconstruct import Reconstruct
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import Mse
from bitwright.stages.site import rule
from bitwright.stages.transforms.batchnorm import FoldBatchNorm

W3, W2 = "int3 channel sym", "int2 channel sym"


@recipe(
    "brecq",
    family="vision",
    paper="Li et al. 2021, BRECQ, arXiv:2102.05426",
    claim=Claim(
        "vision-resnet-cifar10",
        (
            Check("better_than", "error", baseline="rtn-mse", at=W3, margin=0.3, of_gap=True),
            Check("better_than", "error", baseline="rtn-mse", at=W2, margin=0.3, of_gap=True),
            Check("better_than", "error", baseline="adaround", at=W2),
        ),
        variants=(Variant("rtn-mse", "rtn-mse", (("select", "all"),)),),
        seeds=(0, 1, 2),
        note="Without the assets the claim runs on the embedded digits classifier. It has no chain of blocks, "
        "so its only block is the whole network, and 200 steps of soft rounding do not settle there; layer by layer "
        "(adaround) they do. The checks are meant for ResNet-20.",
    ),
)
def brecq(
    weights: Format = parse("int4 channel sym"),
    rounding: Literal["sigmoid", "offset"] = "sigmoid",
    loss: Literal["fisher", "mse"] = "fisher",
    steps: int = 200,
    batch: int = 16,
    tokens: int = 256,
    rate: float = 0.0,
    scale_rate: float = 0.0,
    regulariser: float = 0.3,
    select: str = "all",
) -> Recipe:
    """Learn the rounding of all weights of a block together, so that the block answers as the float one.

    The rectified sigmoid of AdaRound, block by block, errors weighed by squared gradients of the task loss (against
    the network's own prediction; mean 1 per image); BatchNorms are folded first. Different from the paper: hundreds
    of steps at a high, falling rate instead of 20,000; inputs are not quantized while learning; what is no block (the
    layers before and behind the chain) is learned layer by layer with the plain squared error.

    ``rounding="offset"`` is another mechanism: an offset before a straight-through rounding, with learned clipping
    (SignRound's variables, moved by Adam). It needs fewer steps on the blocks of a decoder; there ``tokens`` cuts the
    sequences while learning (a causal block answers the first positions alike), since attention is most of a step.
    ``rate`` and ``scale_rate`` are 0 for the mechanism's own: 0.2 and none, or ``2 / steps`` and ``1 / steps``.
    """
    if rounding == "offset":
        rate, scale_rate = rate or 2.0 / steps, scale_rate or 1.0 / steps
    learn = Reconstruct(
        "block", steps=steps, batch=batch, tokens=tokens, rounding=rounding, rate=rate or 0.2, scale_rate=scale_rate,
        regulariser=regulariser, loss=loss,
    )  # fmt: skip
    return Recipe(
        transforms=(FoldBatchNorm(),),
        weights=(rule(select, Quantizer(weights, range=Mse())),),
        learn=(learn,),
        data=Data(sequences=512),
    )
