"""AdaRound: learned rounding, layer by layer."""

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
    "adaround",
    family="vision",
    paper="Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv:2004.10568",
    claim=Claim(
        "vision-resnet-cifar10",
        (
            Check("better_than", "error", baseline="rtn-mse", at=W3, margin=0.3, of_gap=True),
            Check("better_than", "kl", baseline="rtn-mse", at=W3, margin=0.3),
            Check("better_than", "error", baseline="rtn-mse", at=W2, margin=0.3, of_gap=True),
        ),
        variants=(Variant("rtn-mse", "rtn-mse", (("select", "all"),)),),
        seeds=(0, 1, 2),
    ),
)
def adaround(
    weights: Format = parse("int4 channel sym"),
    rounding: Literal["sigmoid", "offset"] = "sigmoid",
    steps: int = 200,
    batch: int = 16,
    rate: float = 0.2,
    regulariser: float = 0.1,
    select: str = "all",
) -> Recipe:
    """Learn for every weight whether it rounds up or down, so that each layer answers as in the float network.

    The rectified sigmoid and the annealed regulariser of the paper, with its asymmetric reconstruction (inputs from
    the quantized network, outputs from the float one); BatchNorms are folded first. Different: hundreds of steps at a
    high, falling rate instead of 10,000 at 0.001; the activation function behind the layer is not part of the loss;
    inputs are not quantized while learning.
    """
    learn = Reconstruct("layer", steps=steps, batch=batch, rounding=rounding, rate=rate, regulariser=regulariser)
    return Recipe(
        transforms=(FoldBatchNorm(),),
        weights=(rule(select, Quantizer(weights, range=Mse())),),
        learn=(learn,),
        data=Data(sequences=512),
    )
