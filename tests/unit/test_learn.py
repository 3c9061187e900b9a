"""Learned rounding: variables, their gradients, and the loop on a layer of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.events import Events
from bitwright.formats import Codes, parse
from bitwright.stages.learn.base import LearnTask, batches_in_random_order
from bitwright.stages.learn.offset_rounding import OffsetWeight
from bitwright.stages.learn.reconstruct import Reconstruct
from bitwright.stages.learn.soft_rounding import (
    Annealing,
    SoftWeight,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.ranges import Mse
from bitwright.stages.solve import quantize_weight

FORMATS = ["int3 channel asym", "int3 g8 sym", "int3 channel narrow", "e2m1 channel", "int4 g8 asym zero=fp16"]
INTEGERS = [text for text in FORMATS if text.startswith("int")]


def weight(rows: int = 6, columns: int = 20, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def coded(w: Tensor, text: str) -> Codes:
    codes = quantize_weight(w, Quantizer(parse(text), range=Mse()), WeightContext()).terms[0]
    assert isinstance(codes, Codes)
    return codes


def task(text: str, batches: int = 6, seed: int = 0) -> LearnTask:
    """A linear layer on correlated inputs, where rounding to nearest is far from the best."""
    w = weight(12, 16, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    mix = torch.eye(16) + 0.8 * torch.randn(16, 16, generator=generator)
    inputs = [torch.randn(64, 16, generator=generator) @ mix for _ in range(batches)]
    quantizer = Quantizer(parse(text), range=Mse())

    def forward(weights: Mapping[str, Tensor], index: int) -> Tensor:
        return inputs[index] @ weights.get("layer", w).t()

    return LearnTask(
        "layer", {"layer": w}, {"layer": quantize_weight(w, quantizer, WeightContext())}, {"layer": quantizer}, {},
        batches, forward, lambda i: inputs[i] @ w.t(), lambda i: None, 0, Events(), lambda done, total: None,
    )  # fmt: skip


def distance(problem: LearnTask, weights: Mapping[str, Tensor]) -> float:
    return sum(float((problem.forward(weights, i) - problem.target(i)).square().mean()) for i in range(problem.inputs))


def test_rectified_sigmoid_reaches_both_ends_and_has_its_inverse() -> None:
    h = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(h)), h)
    assert rectified_sigmoid(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("text", FORMATS)
def test_soft_weight_starts_at_the_float_weight_inside_the_range(text: str) -> None:
    w = weight()
    codes = coded(w, text)
    soft = SoftWeight(w, codes, scales=False)
    inside = (soft.v.abs() < 2.3).detach()
    torch.testing.assert_close(soft.soft().detach()[inside], w[inside], atol=1e-5, rtol=1e-4)
    assert inside.float().mean() > 0.5


@pytest.mark.parametrize("text", FORMATS)
def test_a_decided_soft_weight_is_the_hard_one(text: str) -> None:
    soft = SoftWeight(weight(), coded(weight(), text), scales=False)
    up = torch.rand(soft.v.shape, generator=torch.Generator().manual_seed(3)) > 0.5
    soft.v.data = torch.where(up, 9.0, -9.0)
    torch.testing.assert_close(soft.harden().dequantize(), soft.soft().detach(), atol=1e-6, rtol=1e-6)
    assert soft.undecided(2.0).item() == 0.0


@pytest.mark.parametrize("text", FORMATS)
def test_an_unmoved_soft_weight_hardens_to_nearest(text: str) -> None:
    w = weight()
    codes = coded(w, text)
    hard = SoftWeight(w, codes, scales=False).harden().dequantize()
    # Ties between two levels may fall either way: the error is what nearest means.
    torch.testing.assert_close((hard - w).abs(), (codes.dequantize() - w).abs(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["int3 channel asym", "e2m1 channel"])
def test_soft_gradients_match_finite_differences(text: str) -> None:
    soft = SoftWeight(weight(3, 8), coded(weight(3, 8), text), scales=True)
    direction = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    soft.v.data.clamp_(-2.0, 2.0)

    def value() -> Tensor:
        return (soft.soft() * direction).sum() + 0.1 * soft.undecided(3.0)

    value().backward()
    for parameter, entry in ((soft.v, (1, 4)), (soft.v, (0, 0)), (soft.theta, (2, 0))):
        assert parameter.grad is not None
        ends = []
        for sign in (1e-2, -1e-2):
            parameter.data[entry] += sign
            ends.append(value().item())
            parameter.data[entry] -= sign
        assert float(parameter.grad[entry]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-2, abs=2e-3)


def test_soft_rounding_refuses_a_learned_table() -> None:
    codes = dataclasses.replace(coded(weight(), "int3 channel sym"))
    object.__setattr__(codes, "format", parse("lut3 channel"))
    with pytest.raises(InputError, match="fixed levels"):
        SoftWeight(weight(), codes, scales=False)


def test_annealing_falls_from_start_to_stop_after_the_warm_up() -> None:
    annealing = Annealing(20.0, 2.0, 0.2)
    assert annealing.beta(0.1) is None
    assert annealing.beta(0.2) == pytest.approx(20.0)
    assert annealing.beta(1.0) == pytest.approx(2.0)


@pytest.mark.parametrize("text", INTEGERS)
@pytest.mark.parametrize("learns", [False, True])
def test_offset_weight_starts_at_the_codes_of_nearest(text: str, learns: bool) -> None:
    codes = coded(weight(), text)
    found = OffsetWeight(weight(), codes, learns).harden()
    torch.testing.assert_close(found.dequantize(), codes.dequantize(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("text", INTEGERS)
def test_offset_weight_is_what_will_be_stored_wherever_it_moves(text: str) -> None:
    generator = torch.Generator().manual_seed(7)
    offset = OffsetWeight(weight(), coded(weight(), text), scales=True)
    for parameter in offset.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    offset.constrain()
    assert torch.equal(offset.harden().dequantize(), offset.soft().detach())


def test_offset_weight_can_start_at_other_codes() -> None:
    w = weight()
    nearest = coded(w, "int3 channel asym")
    shifted = nearest.codes.clone()
    inside = (shifted > 0) & (shifted < 7)
    x = w / nearest.scale.effective + nearest.zero.float()
    other = torch.where(x > shifted, shifted + 1, shifted - 1)
    wanted = torch.where(inside & (torch.arange(20) % 3 == 0), other, shifted)
    codes = dataclasses.replace(nearest, codes=wanted.to(torch.uint8))
    found = OffsetWeight(w, codes, scales=False, keep_codes=True)
    assert torch.equal(found.harden().terms[0].codes, codes.codes)
    assert float(found.v.detach().abs().max()) <= 0.6


def test_offset_gradients_go_straight_through_the_rounding() -> None:
    offset = OffsetWeight(weight(), coded(weight(), "int3 channel asym"), scales=True)
    offset.soft().sum().backward()
    assert offset.v.grad is not None
    assert offset.shrink_high.grad is not None
    inside = offset.v.grad != 0
    scale = offset.layout.expand(offset.scale0).expand_as(offset.v)
    torch.testing.assert_close(offset.v.grad[inside], scale[inside], atol=1e-3, rtol=1e-2)
    assert inside.float().mean() > 0.5


def test_offsets_refuse_a_grid_that_is_no_integer() -> None:
    with pytest.raises(InputError, match="rounding=sigmoid"):
        OffsetWeight(weight(), coded(weight(), "e2m1 channel"), scales=False)


@pytest.mark.parametrize(
    "learn",
    [
        Reconstruct("layer", steps=80, rate=0.1, regulariser=0.1),
        Reconstruct("layer", steps=80, rounding="offset", rate=0.025, scale_rate=0.01),
        Reconstruct("layer", steps=80, rounding="offset", optimizer="sign", rate=0.02, scale_rate=0.005),
    ],
)
@pytest.mark.parametrize("text", ["int2 channel asym", "int3 channel sym"])
def test_reconstruction_beats_rounding_to_nearest(learn: Reconstruct, text: str) -> None:
    problem = task(text)
    learned = learn.run(problem)
    before = distance(problem, {"layer": problem.initial["layer"].dequantize()})
    after = distance(problem, {"layer": learned["layer"].dequantize()})
    assert after < 0.9 * before
    assert problem.events.entries == []


def test_reconstruction_repeats_bit_for_bit() -> None:
    learn = Reconstruct("layer", steps=20, rate=0.2)
    first, second = learn.run(task("int2 channel asym")), learn.run(task("int2 channel asym"))
    assert torch.equal(first["layer"].dequantize(), second["layer"].dequantize())


def test_a_start_that_learning_would_worsen_is_kept_as_an_event() -> None:
    problem = task("int3 channel sym")
    # A rate this high throws the variables about and the last steps cannot mend it.
    found = Reconstruct("layer", steps=3, rounding="offset", optimizer="sign", rate=5.0, scale_rate=1.0).run(problem)
    assert found == {}
    assert [event.kind for event in problem.events.entries] == ["learning did not help"]


def test_fisher_weights_decide_which_outputs_matter() -> None:
    problem = task("int2 channel asym")
    importance = torch.ones(64, 12)
    importance[:, 0] = 100.0
    weighed = dataclasses.replace(problem, importance=lambda i: importance)

    def first_row(loss: str) -> float:
        learn = Reconstruct("layer", steps=60, rounding="offset", rate=0.01, loss=loss)  # type: ignore[arg-type]
        found = learn.run(weighed)["layer"].dequantize()
        errors = [(weighed.forward({"layer": found}, i) - weighed.target(i))[:, 0] for i in range(6)]
        return sum(float(e.square().mean()) for e in errors)

    assert Reconstruct(loss="fisher").needs_importance
    assert not Reconstruct().needs_importance
    assert first_row("fisher") <= first_row("mse") * 1.05


def test_every_batch_is_seen_once_per_pass() -> None:
    order = batches_in_random_order(5, 12, 0)
    assert [sorted(order[:5]), sorted(order[5:10])] == [[0, 1, 2, 3, 4]] * 2
    assert len(order) == 12
    assert order == batches_in_random_order(5, 12, 0)
