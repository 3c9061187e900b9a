"""GPTQ: against the textbook loop, against brute-force OBQ, on every grid and on broken Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import CheckError, InputError
from bitwright.events import Events
from bitwright.formats import parse
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.ranges import MinMax
from bitwright.stages.rounding import Nearest, SecondOrder
from bitwright.stages.rounding.second_order import feedback_factor
from bitwright.stages.solve import quantize_weight
from bitwright.statistics import Hessian
from bitwright.statistics.hessian import SecondMoment
from tests.unit.layer_problem import Layer, correlated_layer

GRIDS = ["int4 g16 asym", "int3 g16", "int2 channel asym", "int4 narrow g8", "nf4 b16", "e2m1 g16", "e3m2 channel",
         "mxfp4", "mxint8", "nvfp4", "ternary channel", "pot4 g16", "int4 block8x16", "int4 g8 axis=0",
         "int4 channel axis=1", "int4 tensor", "nf4 b20", "int4 g20 asym", "int4 g16 zero=fp16"]  # fmt: skip


def damped(h: Tensor, damping: float) -> Tensor:
    return h.double() + damping * h.double().diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


def textbook(layer: Layer, bound: BoundQuantizer, order: Tensor, damping: float, refit: bool) -> Tensor:
    """Algorithm 1 of the paper, column by column in fp64, with the inverse Hessian's Cholesky factor."""
    h = damped(layer.h, damping)[order][:, order]
    inverse = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w = layer.w.double()[:, order].clone()
    q = torch.zeros_like(w)
    if not refit:
        bound.open_all(layer.w)
    for k in range(w.shape[1]):
        for start, stop in bound.spans:
            if refit and start == k:
                bound.open(start, stop, w[:, start:stop].float())
        column = int(order[k])
        q[:, k] = bound.round(column, column + 1, w[:, k : k + 1].float())[:, 0].double()
        error = (w[:, k] - q[:, k]) / inverse[k, k]
        w[:, k:] -= torch.outer(error, inverse[k, k:])
    value = torch.empty_like(q)
    value[:, order] = q
    return value


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize(
    "text", ["int4 g16 asym scale=fp32", "int3 channel asym", "nf4 g16 scale=fp32", "mxfp4", "int4 g8 axis=0"]
)
def test_equals_the_textbook_loop(text: str, order: str) -> None:
    layer = correlated_layer(columns=80)
    plain, fast = layer.bind(text), layer.bind(text)
    columns = torch.argsort(layer.h.diagonal(), descending=True) if order == "activation" else torch.arange(80)
    expected = textbook(layer, plain, columns, 0.01, refit=order == "natural")
    value = SecondOrder(order=order, block=40).solve(layer.w, fast, layer.context())
    assert torch.equal(plain.codes, fast.codes)
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.finish().dequantize(), value, rtol=0, atol=0)


def test_equals_brute_force_obq() -> None:
    """Each column's error is cancelled by the exact least-squares change of all free columns (OBQ in fixed order)."""
    layer = correlated_layer(out=3, columns=7)
    bound = layer.bind("int3 channel asym")
    bound.open_all(layer.w)
    h = damped(layer.h, 0.01)
    w = layer.w.double().clone()
    for k in range(7):
        q = bound.round(k, k + 1, w[:, k : k + 1].float())[:, 0].double()
        change, free = q - w[:, k], slice(k + 1, None)
        # min over d of (change, d) H (change, d)^T: H_ff d = -H_fk change.
        w[:, free] -= torch.outer(change, torch.linalg.solve(h[free, free], h[free, k]))
        w[:, k] = q
    value = SecondOrder().solve(layer.w, layer.bind("int3 channel asym"), layer.context())
    torch.testing.assert_close(value, w.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("text", GRIDS)
def test_diagonal_hessian_is_round_to_nearest(text: str, order: str) -> None:
    w = correlated_layer(columns=40).w
    h = torch.diag(torch.linspace(1, 3, 40))
    layer = Layer(w, h, torch.zeros_like(h))
    near, second = layer.bind(text), layer.bind(text)
    expected = Nearest().solve(w, near, layer.context())
    value = SecondOrder(order=order).solve(w, second, layer.context())
    assert torch.equal(near.finish().codes, second.finish().codes)
    assert torch.equal(value, expected)
    assert torch.equal(near.scale, second.scale)


@pytest.mark.parametrize("text", GRIDS)
def test_beats_nearest_on_every_grid(text: str) -> None:
    layer = correlated_layer(columns=40)
    fmt = parse(text)
    losses = {
        kind: layer.loss(quantize_weight(layer.w, Quantizer(fmt, rounding=kind), layer.context()).dequantize())
        for kind in (Nearest(), SecondOrder(), SecondOrder(order="activation"))
    }
    near, *second = losses.values()
    if str(fmt) != "mxint8":  # its error is too small for 24 rows to show the order
        assert max(second) < near


def test_learned_tables() -> None:
    layer = correlated_layer()
    tables = torch.quantile(layer.w, torch.linspace(0.03, 0.97, 8), dim=1).t().unsqueeze(1).contiguous()
    fmt = parse("lut3 channel")
    losses = []
    for kind in (Nearest(), SecondOrder()):
        bound = BoundQuantizer(fmt, MinMax(), layer.w, codebook=tables)
        value = kind.solve(layer.w, bound, layer.context())
        assert torch.equal(bound.finish().dequantize(), value)
        losses.append(layer.loss(value))
    assert losses[1] < losses[0]


def test_groups_that_do_not_divide_and_blocks_do_not_matter() -> None:
    layer = correlated_layer(columns=70)
    values = []
    for block in (7, 32, 128):
        bound = layer.bind("int4 g32 asym")
        values.append(SecondOrder(block=block).solve(layer.w, bound, layer.context()))
    assert torch.allclose(values[0], values[1], atol=1e-6)
    assert torch.allclose(values[0], values[2], atol=1e-6)


def test_activation_order_keeps_groups_and_natural_order_refits_them() -> None:
    layer = correlated_layer(columns=32)
    static, natural, near = (layer.bind("int3 g8 asym") for _ in range(3))
    SecondOrder(order="activation").solve(layer.w, static, layer.context())
    SecondOrder(order="natural").solve(layer.w, natural, layer.context())
    near.open_all(layer.w)
    assert torch.equal(static.scale, near.scale)
    assert torch.equal(natural.scale[:, 0], near.scale[:, 0])
    assert not torch.equal(natural.scale[:, 1:], near.scale[:, 1:])


def test_dead_columns_are_rounded_to_nearest() -> None:
    layer = correlated_layer(columns=32)
    h = layer.h.clone() * 1e-6  # a dead column must not stand out among small second moments
    h[5], h[:, 5] = 0, 0
    events = Events()
    bound, near = layer.bind("int4 channel asym"), layer.bind("int4 channel asym")
    context = WeightContext("layer", {Hessian("layer"): SecondMoment(h, 9)}, 0, events)
    SecondOrder().solve(layer.w, bound, context)
    Nearest().solve(layer.w, near, context)
    assert torch.equal(bound.codes[:, 5], near.codes[:, 5])
    assert not torch.equal(bound.codes, near.codes)
    assert events.entries == []


@pytest.mark.parametrize("h", [torch.zeros(8, 8), torch.ones(8, 8)], ids=["zero", "singular"])
def test_degenerate_hessians_need_no_event(h: Tensor) -> None:
    events = Events()
    factor = feedback_factor(h, 0.01, WeightContext(events=events))
    assert bool(torch.isfinite(factor.upper).all())
    assert events.entries == []
    # H + damping = (U + I) D (U + I)^T, with the mean diagonal for dead columns.
    full = factor.upper + torch.eye(8)
    mean = h.diagonal().mean() if bool(h.any()) else 1.0
    expected = (h if bool(h.any()) else torch.eye(8)) + 0.01 * mean * torch.eye(8)
    torch.testing.assert_close(full @ torch.diag(factor.pivots) @ full.t(), expected, atol=1e-5, rtol=1e-5)


def test_indefinite_hessian_raises_the_damping_as_an_event() -> None:
    h = torch.eye(4)
    h[0, 1] = h[1, 0] = 1.5
    events = Events()
    feedback_factor(h, 0.01, WeightContext("here", events=events))
    assert [event.kind for event in events.entries] == ["damping raised"] * 2
    with pytest.raises(CheckError):
        feedback_factor(h, 0.01, WeightContext("here", events=Events(strict=True)))


def test_singular_hessian_without_damping() -> None:
    events = Events()
    feedback_factor(torch.ones(8, 8), 0.0, WeightContext("here", events=events))
    assert {event.kind for event in events.entries} == {"damping raised"}


def test_infinite_inputs_are_refused() -> None:
    h = torch.eye(4)
    h[0, 0] = float("inf")
    with pytest.raises(InputError, match="NaN or Inf"):
        feedback_factor(h, 0.01, WeightContext("here"))
