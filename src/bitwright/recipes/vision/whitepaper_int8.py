"""The post-training pipeline of the quantization white paper."""

from __future__ import annotations

from typing import Literal

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Data, Recipe, Variant, recipe
from bitwright.stages.corrections import Correction, EmpiricalBias
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, Mse
from bitwright.stages.ranges.activation import InputMinMax, InputMse
from bitwright.stages.site import rule
from bitwright.stages.transforms import Transform
from bitwright.stages.transforms.batchnorm import FoldBatchNorm
from bitwright.stages.transforms.equalization import CrossLayerEqualization

W4 = "int4 channel sym"


@recipe(
    "whitepaper-int8",
    family="vision",
    number=40,
    paper="Nagel et al. 2021, A White Paper on Neural Network Quantization, arXiv:2106.08295",
    claim=Claim(
        "vision-resnet-cifar10",
        (
            Check("at_most", "error", margin=8.6, text="8-bit weights and inputs lose at most 0.3 points (float 8.27)"),
            Check("better_than", "kl", baseline="min-max"),
            Check("better_than", "error", baseline="min-max", at=W4, margin=0.3, of_gap=True),
            Check("better_than", "kl", baseline="min-max", at=W4, margin=0.3),
            Check("order", "kl", baseline="searched ranges < min-max", at=W4),
            Check("ablation", "kl", baseline="without bias correction", at=W4),
        ),
        variants=(
            Variant("min-max", "whitepaper-int8", (("ranges", "minmax"), ("equalize", False), ("correct", False))),
            Variant("searched ranges", "whitepaper-int8", (("equalize", False), ("correct", False))),
            Variant("without bias correction", "whitepaper-int8", (("correct", False),)),
        ),
        seeds=(0, 1, 2),
    ),
)
def whitepaper_int8(
    weights: Format = parse("int8 channel sym"),
    activations: Format = parse("int8 tensor asym static"),
    ranges: Literal["mse", "minmax"] = "mse",
    equalize: bool = True,
    correct: bool = True,
    select: str = "all",
) -> Recipe:
    """Fold BatchNorm, equalize ranges across layers, search ranges, correct biases; static inputs.

    Weights are symmetric per output channel, inputs asymmetric per tensor with ranges fitted on the calibration data.
    The paper's AdaRound step is the recipe ``adaround`` (``--set learn=adaround``); outputs of the last layer are not
    coded, so its cross-entropy range for logits has no place.

    Cost: a few forward passes over the data per layer.
    """
    transforms: tuple[Transform, ...] = (FoldBatchNorm(),)
    if equalize:
        transforms = (*transforms, CrossLayerEqualization())
    corrections: tuple[Correction, ...] = (EmpiricalBias(),) if correct else ()
    searched = ranges == "mse"
    return Recipe(
        transforms=transforms,
        weights=(rule(select, Quantizer(weights, range=Mse() if searched else MinMax())),),
        activations=(rule(select, Quantizer(activations, range=InputMse() if searched else InputMinMax())),),
        corrections=corrections,
        data=Data(sequences=256),
    )
