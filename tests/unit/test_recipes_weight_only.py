"""The weight-only recipes on one small layer: every grid runs, and the methods come in the order that they claim."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.recipes import load_recipe, recipe_info
from bitwright.recipes.registry import with_weight_format
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.residuals import LowRankError, Outliers, ThresholdedOutliers
from bitwright.stages.solve import quantize_weight
from bitwright.statistics import ChannelMeans, CrossHessian, Hessian
from bitwright.statistics.channel import Moments
from bitwright.statistics.fisher import Fisher
from tests.unit.layer_problem import Layer, correlated_layer

RECIPES = ["rtn", "rtn-mse", "hqq", "gptq", "gptaq", "quantease", "squeezellm", "lorc"]
NUMBERS = {"gptq": 59, "gptaq": 205, "quantease": 30, "squeezellm": 34, "lorc": 38}
GRIDS = ["int4 g16 asym", "int3 channel", "nf4 b16", "e2m1 g16", "mxfp4", "int2 g16 zero=fp16"]


def quantizer(recipe: str, text: str = "", **arguments: object) -> Quantizer:
    built = load_recipe(recipe, arguments)
    if text:
        built = with_weight_format(built, parse(text))
    (only,) = built.weights
    assert only.quantizer is not None
    return only.quantizer


def context(layer: Layer) -> WeightContext:
    """Results for whatever a recipe may ask for."""
    generator = torch.Generator().manual_seed(5)
    fisher = layer.h.diagonal() * torch.exp(torch.randn(layer.w.shape, generator=generator))
    power = layer.h.diagonal()
    base = layer.context()
    moments = Moments(mean=torch.zeros_like(power), mean_abs=power.sqrt(), mean_square=power, count=512)
    return WeightContext(
        "layer", {**base.statistics, ChannelMeans("float"): moments, Fisher(): fisher, Fisher(100): fisher}, 0
    )


def run(recipe: str, layer: Layer, text: str = "", **arguments: object) -> QuantizedTensor:
    chosen = quantizer(recipe, text, **arguments)
    assert set(chosen.needs) <= set(context(layer).statistics)
    return quantize_weight(layer.w, chosen, context(layer))


@pytest.mark.parametrize("text", GRIDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_codes_every_grid_that_it_can(recipe: str, text: str) -> None:
    layer = correlated_layer(out=12, columns=36)
    if recipe == "squeezellm":
        text = "lut3 channel" if text.startswith("int") else "lut2 g12"
    if recipe == "hqq" and "zero=fp16" not in text:
        with pytest.raises(InputError, match="zero=fp16"):
            run(recipe, layer, text)
        return
    result = run(recipe, layer, text)
    value = result.dequantize()
    assert torch.equal(value, run(recipe, layer, text).dequantize())  # nothing is random
    tensors, meta = result.to_tensors()
    assert torch.equal(QuantizedTensor.from_tensors(tensors, meta).dequantize(), value)
    zero = layer.loss(torch.zeros_like(layer.w))
    assert layer.loss(value) < 0.6 * zero


@pytest.mark.parametrize("recipe", RECIPES)
def test_catalogue_entry(recipe: str) -> None:
    info = recipe_info(recipe)
    assert info.number == NUMBERS.get(recipe)
    assert info.family == "weight-only"
    assert info.claim is not None
    assert info.summary.endswith((".", ":"))
    for variant in info.claim.variants:
        load_recipe(variant.recipe, dict(variant.arguments))


@pytest.mark.parametrize("text", ["int4 channel asym", "int3 channel asym", "int3 g16 asym", "nf4 g16"])
def test_order_of_the_methods(text: str) -> None:
    """Output errors, summed over three layers: quantease < gptq < rtn, and clipping helps rtn's weight error."""
    sums = dict.fromkeys(["rtn", "gptq", "quantease"], 0.0)
    weight_error = dict.fromkeys(["rtn", "rtn-mse"], 0.0)
    for seed in range(3):
        layer = correlated_layer(seed=seed)
        for recipe in sums:
            sums[recipe] += layer.loss(run(recipe, layer, text).dequantize())
        for recipe in weight_error:
            weight_error[recipe] += float((run(recipe, layer, text).dequantize() - layer.w).square().sum())
    assert sums["quantease"] < sums["gptq"] < sums["rtn"]
    assert weight_error["rtn-mse"] < weight_error["rtn"]


def test_quantease_is_below_gptq_in_every_row() -> None:
    layer = correlated_layer()
    near = layer.row_loss(run("gptq", layer, "int3 channel asym").dequantize())
    eased = layer.row_loss(run("quantease", layer, "int3 channel asym").dequantize())
    assert bool((eased <= near * (1 + 1e-5)).all())
    assert float(eased.sum()) < 0.95 * float(near.sum())


def test_quantease_with_outliers_beats_a_split_of_the_same_size() -> None:
    learned, split = 0.0, 0.0
    for seed in range(3):
        layer = correlated_layer(seed=seed)
        learned += layer.loss(run("quantease", layer, "int3 channel asym", outliers=0.02).dequantize())
        chosen = quantizer("gptq", "int3 channel asym")
        parts = Quantizer(chosen.format, chosen.range, chosen.rounding, residuals=(Outliers(0.02, 0.0),))
        split += layer.loss(quantize_weight(layer.w, parts, context(layer)).dequantize())
    assert learned < 0.8 * split


def test_squeezellm_slots() -> None:
    """Weighted by Fisher information: dense and sparse < dense < unweighted < uniform, by the loss they minimise."""
    layer = correlated_layer(out=32, columns=96)
    fisher = context(layer).read(Fisher())
    variants = {
        "sparse": {},
        "dense": {"magnitude": 0.0, "sensitive": 0.0},
        "unweighted": {"fisher": False, "magnitude": 0.0, "sensitive": 0.0},
    }
    errors = [
        float(((run("squeezellm", layer, "lut3 channel", **v).dequantize() - layer.w).square() * fisher).sum())
        for v in variants.values()
    ]
    uniform = run("rtn", layer, "int3 channel asym").dequantize()
    errors.append(float(((uniform - layer.w).square() * fisher).sum()))
    assert errors == sorted(errors)
    assert quantizer("squeezellm", fisher=False, magnitude=0.0).needs == ()
    assert quantizer("squeezellm", fisher=False, magnitude=0.0).residuals == ()


def test_lorc_slots() -> None:
    layer = correlated_layer()
    assert quantizer("lorc").needs == ()
    assert quantizer("lorc", base="gptq").needs == (Hessian("layer"),)
    assert quantizer("lorc", rank=3, storage="int8").residuals == (LowRankError(3, "int8"),)
    for base in ("rtn", "gptq"):
        plain = run(base, layer, "int3 channel asym").dequantize()
        errors = [float((plain - layer.w).norm())]
        for rank in (2, 8):
            value = run("lorc", layer, "int3 channel asym", base=base, rank=rank).dequantize()
            errors.append(float((value - layer.w).norm()))
        assert errors == sorted(errors, reverse=True)
    with pytest.raises(InputError, match="did you mean 'gptq'"):
        load_recipe("lorc", {"base": "gtpq"})


def test_arguments_reach_the_slots() -> None:
    assert quantizer("gptaq").needs == (Hessian("layer"), CrossHessian("layer"))
    assert quantizer("rtn-mse", importance="mean square").needs == (ChannelMeans("float"),)
    assert quantizer("quantease", outliers=0.01).residuals == (ThresholdedOutliers(0.01),)
    assert str(quantizer("hqq").format) == "int4 g64 asym zero=fp16"
