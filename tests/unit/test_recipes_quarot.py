"""What QuaRot's recipe makes of its parameters."""

from __future__ import annotations

import pytest
import torch

from bitwright.formats import parse
from bitwright.recipes import load_recipe
from bitwright.recipes.base import Recipe
from bitwright.recipes.weight_activation.quarot import covering
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import MinMax, Mse


def _quantizers(recipe: Recipe) -> list[Quantizer]:
    rules = (*recipe.weights, *recipe.activations, *recipe.kv_cache)
    return [rule.quantizer for rule in rules if rule.quantizer is not None]


def test_inputs_and_cache_cover_the_published_shares() -> None:
    weight, reading, key, value = _quantizers(load_recipe("quarot"))
    assert (weight.range, weight.format.clip) == (Mse(), 1.0)
    step, _ = reading.format.scale_from_range(torch.tensor([-14.0]), torch.tensor([10.0]))
    assert float(step) == pytest.approx(0.9 * 14 / 7, rel=1e-4)  # the paper's step of four signed bits
    for coded in (key, value):
        step, zero = coded.format.scale_from_range(torch.tensor([-2.0]), torch.tensor([3.0]))
        assert float(step) == pytest.approx(0.95 * 5 / 15)
        assert zero is not None


def test_a_share_of_one_and_a_share_in_the_format_stay() -> None:
    plain = {"input_clip": 1.0, "cache_clip": 1.0, "clip": False}
    weight, *others = _quantizers(load_recipe("quarot", plain))
    assert weight.range == MinMax()
    assert [q.format.clip for q in others] == [1.0, 1.0, 1.0]
    given = load_recipe("quarot", {"activations": "int8 token dynamic clip=0.8"}).activations[0].quantizer
    assert given is not None
    assert given.format.clip == 0.8


@pytest.mark.parametrize(
    ("text", "clip"),
    [("int4 token", 0.9643), ("int8 token", 0.9035), ("int4 token narrow", 0.9), ("int4 token asym", 0.9),
     ("e2m1 token", 0.9), ("int1 token", 0.9)],
)  # fmt: skip
def test_shares_are_converted_where_the_steps_differ(text: str, clip: float) -> None:
    assert covering(parse(text), 0.9).clip == clip
