"""Sparse and low-rank terms beside the codes."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import LowRank, QuantizedTensor, Sparse, parse
from bitwright.stages.codebooks import WeightedKMeans
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.residuals import LowRankError, Outliers, ThresholdedOutliers
from bitwright.stages.residuals.low_rank import leading_factors
from bitwright.stages.residuals.sparse import largest
from bitwright.stages.residuals.thresholding import largest_eigenvalue
from bitwright.stages.rounding import CoordinateDescent, SecondOrder
from bitwright.stages.solve import quantize_weight
from bitwright.statistics.fisher import Fisher
from tests.unit.layer_problem import correlated_layer


def test_outliers_are_the_largest_and_the_most_sensitive() -> None:
    w = torch.arange(100.0).view(10, 10) - 30
    fisher = torch.zeros(10, 10)
    fisher[2, 2] = 1.0
    term = Outliers(0.03, 0.01).fit(w, WeightContext(statistics={Fisher(): fisher}))
    assert list(zip(term.rows.tolist(), term.cols.tolist(), strict=True)) == [(2, 2), (9, 7), (9, 8), (9, 9)]
    assert term.values.tolist() == [-8.0, 67.0, 68.0, 69.0]
    assert Outliers(0.03, 0.0).needs == ()
    assert int(largest(torch.ones(4, 4), 0.25).sum()) == 4


@pytest.mark.parametrize("text", ["int3 channel asym", "int3 g16", "nf4 b16", "lut3 channel", "pot3 channel"])
def test_no_error_stays_at_outliers(text: str) -> None:
    """Also where the grid has no zero: the sparse values hold what the codes leave."""
    layer = correlated_layer()
    codebook = WeightedKMeans(weight="none") if text.startswith("lut") else None
    quantizer = Quantizer(parse(text), codebook=codebook, residuals=(Outliers(0.02, 0.0, "fp32"),))
    result = quantize_weight(layer.w, quantizer, layer.context())
    sparse = result.terms[1]
    assert isinstance(sparse, Sparse)
    rows, cols = sparse.rows.long(), sparse.cols.long()
    torch.testing.assert_close(result.dequantize()[rows, cols], layer.w[rows, cols], atol=1e-6, rtol=1e-5)
    plain = quantize_weight(layer.w, Quantizer(parse(text), codebook=codebook), layer.context())
    assert float((result.dequantize() - layer.w).square().sum()) < float((plain.dequantize() - layer.w).square().sum())


def test_outliers_beside_gptq() -> None:
    layer = correlated_layer()
    losses = []
    for residuals in ((), (Outliers(0.02, 0.0),)):
        quantizer = Quantizer(parse("int3 channel asym"), rounding=SecondOrder(), residuals=residuals)
        losses.append(layer.loss(quantize_weight(layer.w, quantizer, layer.context()).dequantize()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("text", ["int2 channel", "int4 g4 asym"])
def test_low_rank_error_falls_with_the_rank_to_nothing(shape: tuple[int, int], text: str) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for rank in (1, 2, 4, 8, 12):
        quantizer = Quantizer(parse(text), residuals=(LowRankError(rank, "fp32"),))
        errors.append(float((quantize_weight(w, quantizer).dequantize() - w).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5
    plain = quantize_weight(w, Quantizer(parse(text))).dequantize()
    singular = torch.linalg.svdvals(w - plain)
    assert errors[1] == pytest.approx(float(singular[2:].norm()), rel=1e-4)


@pytest.mark.parametrize(("storage", "bits", "loss"), [("fp16", 16, 1e-3), ("int8", 8, 2e-2)])
def test_low_rank_storage(storage: str, bits: int, loss: float) -> None:
    w = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    exact = LowRankError(4, "fp32").fit(w, WeightContext()).dequantize()
    term = LowRankError(4, storage).fit(w, WeightContext())
    assert isinstance(term, LowRank)
    assert float((term.dequantize() - exact).norm() / exact.norm()) < loss
    assert bits * 4 * 104 <= term.storage_bits() <= bits * 4 * 104 + 2 * 4 * 16
    tensors, meta = QuantizedTensor((parse("int4 channel").quantize(w), term)).to_tensors()
    assert torch.equal(QuantizedTensor.from_tensors(tensors, meta).terms[1].dequantize(), term.dequantize())


def test_subspace_iteration_is_nearly_exact_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.randn(150, 120, generator=torch.Generator().manual_seed(0))
    left, right = leading_factors(error, 4, seed=1)
    exact = float((error - left @ right).norm())
    monkeypatch.setattr("bitwright.stages.residuals.low_rank._EXACT", 16)
    left, right = leading_factors(error, 4, seed=1)
    assert float((error - left @ right).norm()) <= 1.0005 * exact
    again = leading_factors(error, 4, seed=1)
    assert torch.equal(left, again[0])


def test_thresholded_outliers_beat_the_largest_weights() -> None:
    ratios = []
    for seed in range(3):
        layer = correlated_layer(seed=seed)
        losses = []
        for term in (Outliers(0.02, 0.0), ThresholdedOutliers(0.02)):
            quantizer = Quantizer(parse("int3 channel asym"), rounding=CoordinateDescent(10), residuals=(term,))
            result = quantize_weight(layer.w, quantizer, layer.context())
            assert result.terms[1].values.numel() <= round(0.02 * layer.w.numel())
            losses.append(layer.loss(result.dequantize()))
        ratios.append(losses[1] / losses[0])
    assert sum(ratios) / 3 < 0.95


def test_thresholding_never_worsens_the_output() -> None:
    layer = correlated_layer()
    residual = ThresholdedOutliers(0.05)
    rest = torch.randn(layer.w.shape, generator=torch.Generator().manual_seed(1))
    term = residual.fit(rest, layer.context())
    found = residual.refit(term, rest, layer.context())
    loss = [float((((rest - t.dequantize()) @ layer.h) * (rest - t.dequantize())).sum()) for t in (term, found)]
    assert loss[1] < loss[0]


def test_largest_eigenvalue_is_an_upper_bound() -> None:
    h = correlated_layer().h
    exact = float(torch.linalg.eigvalsh(h)[-1])
    assert exact * (1 - 1e-5) <= largest_eigenvalue(h) <= 1.05 * exact


@pytest.mark.parametrize("bad", [lambda: Outliers(2.0), lambda: LowRankError(0), lambda: ThresholdedOutliers(0.0)])
def test_bad_arguments(bad) -> None:
    with pytest.raises(InputError):
        bad()
