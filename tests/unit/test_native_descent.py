"""Compiled coordinate descent against its definition, and against the one on torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.native import extension, instruction_sets, library, unavailable
from bitwright.native.buffers import span
from bitwright.native.descent import ColumnDescent
from bitwright.stages.rounding import CoordinateDescent, coordinate_descent
from bitwright.stages.rounding.compiled import rounding_rule
from bitwright.stages.rounding.coordinate_descent import descent_matrix
from tests.unit.layer_problem import correlated_layer

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c rounded once: the product of two fp32 is exact in fp64."""
    return (a.double() * b.double() + c.double()).float()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("text", ["int4 g16 asym", "nf4 channel"])
def test_equals_the_definition(text: str, name: str) -> None:
    """Rounded and unrounded visits of parts of the columns, bit for bit."""
    layer = correlated_layer(out=35, columns=45)
    s = descent_matrix(layer.h, 0.01)
    bound = layer.bind(text)
    bound.open_all(layer.w)
    value = bound.round(0, 45, layer.w)
    state = ColumnDescent(layer.w, value, s, library(name))
    handle = (rule := rounding_rule(bound, torch.arange(45), 0, 45)).handle(35, 45)
    value, error = value.clone(), layer.w - value
    inverse = 1 / s.diagonal()
    for first, last, rounded in ((0, 20, True), (20, 45, True), (0, 45, False), (3, 4, True), (7, 40, True)):
        slopes = torch.zeros(35, last - first)
        for j in range(45):
            slopes = fused(s[j, first:last], error[:, j : j + 1], slopes)
        before = value.clone()
        for k in range(first, last):
            new = fused(slopes[:, k - first : k - first + 1], inverse[k], value[:, k : k + 1])
            if rounded:
                new = bound.round(k, k + 1, new)
            gone = value[:, k : k + 1] - new
            slopes[:, k - first + 1 :] = fused(s[k, k + 1 : last], gone, slopes[:, k - first + 1 :])
            value[:, k : k + 1] = new
        error = layer.w - value
        assert state.visit(first, last, handle if rounded else None) == (not torch.equal(before, value))
        assert torch.equal(state.value().t(), value)
        assert torch.equal(state.error().t(), error)
    assert rule.sets.tolist()[:17] == [0] * 16 + [1 if "g16" in text else 0]


@pytest.mark.parametrize("text", ["int3 g16 asym", "nf4 g16", "int4 channel"])
@pytest.mark.parametrize("start", ["weight", "nearest", "second-order"])
def test_ends_as_well_as_on_torch(text: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = correlated_layer(columns=160)
    losses = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(coordinate_descent, "serves", lambda w, bound: False)
        bound = layer.bind(text)
        value = CoordinateDescent(sweeps=6, start=start).solve(layer.w, bound, layer.context())
        assert torch.equal(bound.finish().dequantize(), value)
        losses.append(layer.loss(value))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_wrong_calls_are_refused() -> None:
    matrix, square, line = torch.zeros(32 * 8), torch.zeros(8, 8), torch.zeros(8)
    for out, columns, moments, inverse, tiles in (
        (0, 8, square, line, matrix),
        (33, 8, square, line, matrix),
        (32, 9, square, line, matrix),
        (32, 8, square[:7].contiguous(), line, matrix),
        (32, 8, square, line[:7], matrix),
        (32, 1 << 50, square, line, matrix),
    ):
        with pytest.raises(ValueError):
            extension().Descent(out, columns, span(moments), span(inverse), span(tiles), span(tiles), span(tiles))
    state = ColumnDescent(torch.zeros(32, 8), torch.zeros(32, 8), torch.eye(8))
    for first, last in ((-1, 4), (4, 4), (0, 9)):
        with pytest.raises(ValueError):
            state.visit(first, last, None)
