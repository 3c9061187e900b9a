"""Second-order rounding of vectors (BlockLDLQ) and additive codebooks fitted to a layer (AQLM)."""

from __future__ import annotations

import itertools

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.formats.vectors import join_words
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.codebooks import ResidualKMeans
from bitwright.stages.codebooks.residual_kmeans import vector_kmeans
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.ranges import MinMax, Mse, RootMeanSquare
from bitwright.stages.rounding import AdditiveDescent, Asymmetric, CoordinateDescent, Nearest, SecondOrder
from bitwright.stages.rounding.coordinate_descent import descent_matrix
from bitwright.stages.rounding.second_order import block_feedback, column_order, feedback_factor
from bitwright.stages.rounding.sweep import Factor
from bitwright.stages.solve import quantize_weight
from bitwright.statistics import Hessian
from bitwright.statistics.hessian import SecondMoment


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, seed: int = 1) -> torch.Tensor:
    """Second moments of inputs that share a few strong directions, with columns of different size."""
    x = normal(4 * columns, columns, seed=seed)
    x = x + 0.5 * x.roll(3, 1) + normal(4 * columns, 6, seed=seed + 1) @ normal(6, columns, seed=seed + 2)
    x = x * torch.linspace(0.3, 2, columns)
    return x.t() @ x / len(x)


def context_of(h: torch.Tensor) -> WeightContext:
    return WeightContext(statistics={Hessian("layer"): SecondMoment(h, 1)}, seed=3)


def loss(w: torch.Tensor, value: torch.Tensor, h: torch.Tensor) -> float:
    error = (w - value).double()
    return float(((error @ h.double()) * error).sum())


def codebooks(text: str, w: torch.Tensor, h: torch.Tensor) -> torch.Tensor | None:
    fmt = parse(text)
    return ResidualKMeans().fit(w, fmt, None, context_of(h)) if fmt.learned else None


def bound_for(text: str, w: torch.Tensor, h: torch.Tensor) -> BoundQuantizer:
    estimator = RootMeanSquare() if parse(text).learned else Mse()
    return BoundQuantizer(parse(text), estimator, w, None, codebooks(text, w, h))


def test_the_factor_of_blocks_is_one_of_the_same_matrix() -> None:
    h = correlated(40)
    scalar = feedback_factor(h, 0.01, WeightContext())
    kept = Factor(scalar.upper.clone(), scalar.pivots.clone())
    assert block_feedback(scalar, 1) is scalar
    identity = torch.eye(40)
    for span in (2, 8, 20, 40):
        blocks = block_feedback(Factor(kept.upper.clone(), kept.pivots.clone()), span)
        inner = torch.block_diag(*[(kept.upper + identity)[a : a + span, a : a + span] for a in range(0, 40, span)])
        middle = inner @ torch.diag(kept.pivots) @ inner.t()
        whole = (blocks.upper + identity) @ middle @ (blocks.upper + identity).t()
        expected = (kept.upper + identity) @ torch.diag(kept.pivots) @ (kept.upper + identity).t()
        torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(blocks.pivots, middle.diagonal(), rtol=1e-5, atol=1e-6)
        above = torch.block_diag(*[torch.ones(span, span)] * (40 // span)).bool()
        assert bool((blocks.upper[above] == 0).all())
        assert bool((blocks.upper.tril() == 0).all())


@pytest.mark.parametrize("text", ["e8p channel", "e8p4 g32", "vq2x4d4 channel", "vq1x8d8 g16"])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_uncorrelated_inputs_give_nearest_rounding(text: str, order: str) -> None:
    w, h = normal(24, 64) * 0.1, torch.diag(torch.linspace(0.5, 3, 64))
    second, nearest = bound_for(text, w, h), bound_for(text, w, h)
    SecondOrder(order=order).solve(w, second, context_of(h))  # type: ignore[arg-type]
    importance = feedback_factor(h, 0.01, WeightContext()).pivots
    nearest.open_all(w, importance)
    nearest.round(0, 64, w)
    assert torch.equal(second.codes, nearest.codes)
    assert torch.equal(second.scale, nearest.scale)


@pytest.mark.parametrize("text", ["e8p channel", "vq2x4d4 channel"])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_the_sweep_is_block_ldlq_as_it_is_written(text: str, order: str) -> None:
    """QuIP#, section 4.1: ``q_k = Q(w_k + (w - q) V_k)`` block after block, in float64 and with one product each."""
    w, h = normal(16, 96) * 0.1, correlated(96)
    bound = bound_for(text, w, h)
    span = bound.span
    value = SecondOrder(order=order, block=40).solve(w, bound, context_of(h))  # type: ignore[arg-type]
    columns = column_order(h, order, span)  # type: ignore[arg-type]
    factor = block_feedback(feedback_factor(h[columns][:, columns], 0.01, WeightContext()), span)
    plain = bound_for(text, w, h)
    importance = torch.empty(96)
    importance[columns] = factor.pivots
    plain.open_all(w, importance)
    target, result = w[:, columns].double(), torch.zeros(16, 96, dtype=torch.float64)
    for start in range(0, 96, span):
        here = slice(start, start + span)
        current = target[:, here] + (target - result)[:, :start] @ factor.upper[:start, here].double()
        result[:, here] = plain.round(int(columns[start]), int(columns[start]) + span, current.float()).double()
    assert float((value[:, columns] - result).abs().gt(1e-6).double().mean()) < 0.01
    torch.testing.assert_close(bound.finish().dequantize(), value)


@pytest.mark.parametrize("text", ["e8p channel", "e8p3 g32", "vq2x8d8 channel", "vq1x8d8 g32"])
def test_feedback_lowers_the_error_of_the_outputs(text: str) -> None:
    w, h = normal(48, 128) * 0.1, correlated(128)
    errors = {}
    for name, rule in (
        ("nearest", Nearest()), ("natural", SecondOrder()), ("activation", SecondOrder(order="activation")),
    ):  # fmt: skip
        bound = bound_for(text, w, h)
        value = rule.solve(w, bound, context_of(h))
        errors[name] = loss(w, value, h)
        torch.testing.assert_close(bound.finish().dequantize(), value)
    assert errors["natural"] < 0.8 * errors["nearest"]
    assert errors["activation"] < 0.8 * errors["nearest"]


def test_spans_stay_together_in_every_order() -> None:
    order = column_order(correlated(64), "activation", 8).view(-1, 8)
    assert bool((order[:, 0] % 8 == 0).all())
    assert bool((order.diff(dim=1) == 1).all())
    assert sorted(order[:, 0].tolist()) == list(range(0, 64, 8))


def test_kmeans_of_few_distinct_vectors_is_exact() -> None:
    distinct = normal(20, 8)
    x = distinct[torch.randint(0, 20, (500,), generator=torch.Generator().manual_seed(4))]
    centres = vector_kmeans(x, torch.ones(500), 32, 50, torch.Generator().manual_seed(0))
    assert float(torch.cdist(x.double(), centres.double()).min(1).values.max()) < 1e-5


def test_kmeans_with_more_entries_than_vectors_keeps_them_all() -> None:
    x = normal(5, 4)
    centres = vector_kmeans(x, torch.ones(5), 16, 5, torch.Generator().manual_seed(0))
    assert float(torch.cdist(x.double(), centres.double()).min(1).values.max()) < 1e-6


def test_codebooks_leave_less_with_every_book_and_heed_the_inputs() -> None:
    w = normal(64, 128) * 0.1
    h = torch.diag(torch.cat([torch.full((64,), 10.0), torch.full((64,), 0.01)]))
    one, two = parse("vq1x8d8 channel"), parse("vq2x8d8 channel")
    plain = {}
    for fmt in (one, two):
        books = ResidualKMeans().fit(w, fmt, None, context_of(h))
        assert books.shape == fmt.codebook_shape((64, 128))
        bound = BoundQuantizer(fmt, RootMeanSquare(), w, None, books)
        plain[fmt.grid.bits] = loss(w, Nearest().solve(w, bound, context_of(h)), h)
    assert plain[2] < 0.7 * plain[1]
    blind = ResidualKMeans(hessian=False).fit(w, one, None, context_of(h))
    bound = BoundQuantizer(one, RootMeanSquare(), w, None, blind)
    assert plain[1] < loss(w, Nearest().solve(w, bound, context_of(h)), h)


def test_one_vector_is_searched_to_its_best_sum() -> None:
    """With a single vector in each row the search is exact if the beam keeps everything."""
    w, h = normal(30, 4), correlated(4)
    bound = bound_for("vq2x4d4 tensor", w, h)
    AdditiveDescent(rounds=1, beam=16, steps=0).solve(w, bound, context_of(h))
    codes, books, damped = bound.finish(), bound.codebook, descent_matrix(h, 0.01)
    assert books is not None
    scale = bound.scale[0, 0]
    sums = torch.stack([books[0, i].float() + books[1, j].float() for i, j in itertools.product(range(16), range(16))])
    error = w.unsqueeze(1) - sums * scale
    best = ((error @ damped) * error).sum(2).min(1).values
    found = w - codes.dequantize()
    torch.testing.assert_close(((found @ damped) * found).sum(1), best, rtol=1e-4, atol=1e-5)


def test_additive_descent_beats_greedy_codes_and_plain_kmeans() -> None:
    """The catalogue's order: k-means, greedy residual codes, beam search, learned codebooks."""
    w, h = normal(64, 128) * 0.1, correlated(128)
    errors = {}
    for name, rule in (
        ("kmeans", Nearest()),
        ("second order", SecondOrder()),
        ("greedy", AdditiveDescent(rounds=3, beam=1, steps=0, tolerance=0.0)),
        ("beam", AdditiveDescent(rounds=3, beam=8, steps=0, tolerance=0.0)),
        ("learned", AdditiveDescent(rounds=6, beam=8, steps=60)),
    ):
        bound = bound_for("vq2x8d8 channel", w, h)
        value = rule.solve(w, bound, context_of(h))
        errors[name] = loss(w, value, h)
        torch.testing.assert_close(bound.finish().dequantize(), value)
    assert errors["beam"] < errors["greedy"] < errors["kmeans"]
    assert errors["learned"] < 0.9 * errors["beam"]
    assert errors["learned"] < errors["second order"]


@pytest.mark.parametrize("text", ["vq2x4d4 g16", "vq1x8d8 tensor", "vq3x8d8 channel scale=fp32"])
def test_additive_descent_serves_every_granularity(text: str) -> None:
    w, h = normal(96, 64) * 0.1, correlated(64)
    bound = bound_for(text, w, h)
    nearest = loss(w, Nearest().solve(w, bound_for(text, w, h), context_of(h)), h)
    value = AdditiveDescent(rounds=3, steps=20).solve(w, bound, context_of(h))
    assert loss(w, value, h) < nearest
    codes = bound.finish()
    torch.testing.assert_close(codes.dequantize(), value)
    assert int(join_words(codes.codes, bound.span, codes.format.grid.bits).min()) >= 0


def test_whole_weights_of_vectors() -> None:
    w, h = normal(32, 64) * 0.1, correlated(64)
    for quantizer in (
        Quantizer(parse("e8p channel")),
        Quantizer(parse("e8p g32"), range=Mse(), rounding=SecondOrder()),
        Quantizer(parse("vq2x8d8 channel"), codebook=ResidualKMeans()),
        Quantizer(parse("vq1x8d8 channel"), rounding=AdditiveDescent(rounds=2, steps=5), codebook=ResidualKMeans()),
    ):
        result = quantize_weight(w, quantizer, context_of(h))
        assert result.normal_form == "vector"
        assert float((result.dequantize() - w).norm() / w.norm()) < 0.8


def test_rules_that_round_single_weights_refuse_vectors() -> None:
    w, h = normal(8, 32), correlated(32)
    for rule in (CoordinateDescent(), Asymmetric()):
        with pytest.raises(InputError, match="rounds single weights"):
            rule.solve(w, bound_for("e8p channel", w, h), context_of(h))
    with pytest.raises(InputError, match="needs codebooks"):
        AdditiveDescent().solve(w, bound_for("e8p channel", w, h), context_of(h))
    with pytest.raises(InputError, match="damping"):
        AdditiveDescent(damping=0)
    with pytest.raises(InputError, match="vq2x8d8"):
        ResidualKMeans().fit(w, parse("lut4"), None, context_of(h))
    with pytest.raises(InputError, match="unit size"):
        quantize_weight(w, Quantizer(parse("vq1x8d8"), range=MinMax(), codebook=ResidualKMeans()), context_of(h))
    with pytest.raises(InputError, match="8 neighbouring"):
        BoundQuantizer(parse("e8p"), MinMax(), normal(4, 12))
