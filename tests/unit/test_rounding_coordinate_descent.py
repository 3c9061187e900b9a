"""QuantEase: a plain loop, monotone descent, never worse than its start, exact minima on small problems."""

from __future__ import annotations

import itertools

import pytest
import torch

from bitwright.stages.rounding import CoordinateDescent, Nearest, SecondOrder
from bitwright.stages.rounding.coordinate_descent import descent_matrix
from tests.unit.layer_problem import correlated_layer

GRIDS = ["int3 channel asym", "int4 g16 asym", "nf4 g16", "e2m1 g16", "int2 channel", "mxfp4", "int4 g8 axis=0"]


def test_one_sweep_equals_the_plain_loop() -> None:
    layer = correlated_layer(columns=80)
    plain, fast = layer.bind("int3 g16 asym"), layer.bind("int3 g16 asym")
    plain.open_all(layer.w)
    w, s = layer.w.double(), descent_matrix(layer.h, 0.01).double()
    q = Nearest().solve(layer.w, plain, layer.context()).double()
    for _ in range(3):
        for j in range(80):
            beta = q[:, j] + ((w - q) @ s[:, j]) / s[j, j]
            q[:, j] = plain.round(j, j + 1, beta[:, None].float())[:, 0].double()
    rule = CoordinateDescent(sweeps=3, relax=0, start="nearest", damping=0.01)
    value = rule.solve(layer.w, fast, layer.context())
    torch.testing.assert_close(value, q.float())
    assert torch.equal(plain.codes, fast.codes)
    assert torch.equal(fast.finish().dequantize(), value)


@pytest.mark.parametrize("start", ["nearest", "second-order"])
@pytest.mark.parametrize("text", GRIDS)
def test_error_never_rises_without_relaxation(text: str, start: str) -> None:
    layer = correlated_layer(columns=64)
    losses = []
    for sweeps in range(5):
        rule = CoordinateDescent(sweeps=sweeps, relax=0, start=start)
        losses.append(layer.row_loss(rule.solve(layer.w, layer.bind(text), layer.context())))
    for before, after in itertools.pairwise(losses):
        assert bool((after <= before * (1 + 1e-5)).all())
    assert float(losses[-1].sum()) < float(losses[0].sum())


@pytest.mark.parametrize("text", GRIDS)
def test_below_gptq_and_nearest_on_the_same_grid(text: str) -> None:
    layer = correlated_layer(columns=64)
    results = {
        name: layer.loss(rule.solve(layer.w, layer.bind(text), layer.context()))
        for name, rule in {
            "rtn": Nearest(),
            "gptq": SecondOrder(order="activation"),
            "quantease": CoordinateDescent(),
        }.items()
    }
    assert results["quantease"] < min(results["gptq"], results["rtn"])


def test_relaxed_sweeps_leave_local_minima() -> None:
    gain = []
    for seed in range(6):
        layer = correlated_layer(columns=48, seed=seed)
        losses = [
            layer.loss(
                CoordinateDescent(relax=relax, start="nearest").solve(
                    layer.w, layer.bind("int3 channel asym"), layer.context()
                )
            )
            for relax in (0, 3)
        ]
        gain.append(losses[1] / losses[0])
    assert sum(gain) / 6 < 0.98


def test_starts_from_the_float_weight_too() -> None:
    layer = correlated_layer()
    rule = CoordinateDescent(start="weight")
    near = Nearest().solve(layer.w, layer.bind("int3 channel asym"), layer.context())
    assert layer.loss(rule.solve(layer.w, layer.bind("int3 channel asym"), layer.context())) < layer.loss(near)


def test_near_the_exact_minimum_of_a_tiny_problem() -> None:
    layer = correlated_layer(out=8, columns=5)
    bound = layer.bind("int2 channel asym")
    near = Nearest().solve(layer.w, bound, layer.context())
    levels = (torch.arange(4.0)[None, :] - bound.zero) * bound.scale
    every = torch.tensor(list(itertools.product(range(4), repeat=5)))
    error = levels[:, every] - layer.w[:, None, :]
    best = torch.einsum("rci,ij,rcj->rc", error.double(), layer.h.double(), error.double()).amin(1)
    rule = CoordinateDescent()
    found = layer.row_loss(rule.solve(layer.w, layer.bind("int2 channel asym"), layer.context()))
    assert bool((found >= best - 1e-6).all())
    assert float(found.sum()) <= 1.25 * float(best.sum())
    assert float(found.sum()) < 0.7 * layer.loss(near)


def test_dead_columns_stay_at_their_nearest_level() -> None:
    layer = correlated_layer(columns=16)
    layer.h[3], layer.h[:, 3] = 0, 0
    bound, near = layer.bind("int4 channel asym"), layer.bind("int4 channel asym")
    CoordinateDescent().solve(layer.w, bound, layer.context())
    Nearest().solve(layer.w, near, layer.context())
    assert torch.equal(bound.codes[:, 3], near.codes[:, 3])
