"""Static ranges from histograms, and the vision recipes on the digits network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitwright.data.images import zoo_digits
from bitwright.evaluation import image_scores
from bitwright.evaluation.images import class_logits
from bitwright.formats import parse
from bitwright.jobs.opening import Job
from bitwright.jobs.regrouping import make_groups
from bitwright.jobs.run import JobResult
from bitwright.jobs.run import run as run_job
from bitwright.recipes import load_recipe
from bitwright.recipes.registry import with_weight_format
from bitwright.stages.ranges.activation import ActivationRange, InputMinMax, InputMse
from bitwright.statistics import Statistic
from bitwright.zoo import load_digits_model


def gathered(estimator: InputMse | InputMinMax, x: torch.Tensor) -> dict[Statistic, object]:
    (request,) = estimator.needs
    collector = request.open(x.shape[1])
    collector.update(x)
    return {request: collector.result()}


def error_of(estimator: InputMse | InputMinMax, text: str, x: torch.Tensor) -> float:
    format, scale, zero = estimator.fit_statistics(parse(text), gathered(estimator, x))
    stored = None if zero is None else format.store_zero(zero.view(1, 1))
    rounded = format.round(x.reshape(1, 1, -1), scale.view(1, 1), stored)
    return float((rounded.flatten() - x.flatten()).square().mean())


@pytest.mark.parametrize("text", ["int4 tensor asym static", "int8 tensor asym static", "int4 tensor sym static"])
@pytest.mark.parametrize("kind", ["relu", "normal", "outlier"])
def test_searched_input_range_beats_the_extremes(text: str, kind: str) -> None:
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    x = x.relu() if kind == "relu" else x
    if kind == "outlier":
        x[0, 0] = 12.0
    searched, exact = error_of(InputMse(), text, x), error_of(InputMinMax(), text, x)
    assert isinstance(InputMse(), ActivationRange)
    assert searched <= exact * 1.01
    if "int4" in text and kind == "outlier":
        assert searched < 0.8 * exact


def test_a_constant_zero_input_gets_a_usable_scale() -> None:
    statistics = gathered(InputMse(), torch.zeros(4, 3))
    _, scale, zero = InputMse().fit_statistics(parse("int8 tensor asym static"), statistics)
    assert 0 < float(scale) < float("inf")
    assert zero is not None
    assert scale.shape == zero.shape == (1,)


def test_groups_put_rows_together_and_leave_a_short_rest_out() -> None:
    batches = [{"x": torch.arange(8).view(4, 2) + 10 * i} for i in range(3)]
    groups = make_groups(batches, 5)
    assert len(groups) == 2
    rows = [row for batch in groups.batches(batches) for row in batch["x"].tolist()]
    assert rows == [row for batch in batches for row in batch["x"].tolist()][:10]
    assert len(make_groups(batches, 0)) == 3
    assert make_groups(batches, 100).take(lambda i: batches[i]["x"], 0).shape == (12, 2)


def test_groups_never_mix_shapes_and_cut_sequences() -> None:
    batches = [{"ids": torch.zeros(2, 6)}, {"ids": torch.zeros(2, 5)}, {"ids": torch.zeros(4, 5)}]
    groups = make_groups(batches, 4, tokens=3)
    assert [b["ids"].shape for b in groups.batches(batches)] == [(2, 3), (4, 3)]


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    return load_digits_model()


def quantized(
    digits: nn.Module, recipe: str, weights: str, images: int = 64, **arguments: object
) -> tuple[JobResult, float]:
    """Run a recipe on a copy; returns the job's result and the KL to the float network."""
    module = copy.deepcopy(digits)
    built = with_weight_format(load_recipe(recipe, arguments), parse(weights))
    data = zoo_digits("train").first(images).for_module(module)
    result = run_job(Job(module, built, data))
    test = zoo_digits("test").first(200).for_module(module)
    scores = image_scores(module, test, class_logits(digits, test))
    assert scores.kl is not None
    return result, scores.kl


def test_white_paper_pipeline_is_close_to_float_and_each_part_helps(digits: nn.Module) -> None:
    result, full = quantized(digits, "whitepaper-int8", "int4 channel sym")
    assert result.units[0].removed == ("bn1", "bn2", "bn3", "bn4")
    assert all(m.input_scale is not None for m in result.units[0].modules.values())
    assert result.events == []
    assert full < 0.1
    for part in ({"correct": False}, {"equalize": False}, {"ranges": "minmax", "equalize": False, "correct": False}):
        assert quantized(digits, "whitepaper-int8", "int4 channel sym", **part)[1] > full


@pytest.mark.parametrize(("recipe", "arguments"), [("adaround", {"rate": 0.3}), ("brecq", {"rounding": "offset"})])
def test_learned_rounding_beats_nearest(digits: nn.Module, recipe: str, arguments: dict[str, object]) -> None:
    _, nearest = quantized(digits, "rtn-mse", "int4 channel sym", select="all")
    result, learned = quantized(digits, recipe, "int4 channel sym", steps=60, **arguments)
    assert learned < 0.7 * nearest
    assert set(result.coded) == {"conv1", "depthwise", "pointwise", "conv2", "fc"}
