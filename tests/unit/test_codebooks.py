"""Weighted k-means: against scikit-learn, brute force and the closed form of a Gaussian."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bitwright.formats import parse
from bitwright.stages.codebooks import WeightedKMeans
from bitwright.stages.codebooks.weighted_kmeans import weighted_kmeans
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.solve import quantize_weight
from bitwright.statistics.fisher import Fisher


def objective(values: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    distance = (values.double()[:, :, None] - centres.double()[:, None, :]).square().amin(-1)
    return (weights.double() * distance).sum(-1)


def problem(lines: int = 6, n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(lines, n, generator=generator) * torch.exp(torch.randn(lines, n, generator=generator) * 0.5)
    return values, torch.exp(1.5 * torch.randn(lines, n, generator=generator))


@pytest.mark.parametrize("levels", [4, 8, 16])
@pytest.mark.parametrize("weighted", [True, False])
def test_within_one_percent_of_scikit_learn(levels: int, weighted: bool) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    values, weights = problem(lines=4)
    weights = weights if weighted else torch.ones_like(weights)
    ours = objective(values, weights, weighted_kmeans(values, weights, levels))
    for row in range(len(values)):
        fit = cluster.KMeans(levels, n_init=5, random_state=0).fit(values[row][:, None], sample_weight=weights[row])
        assert float(ours[row]) <= 1.01 * fit.inertia_


def test_exact_on_tiny_lines() -> None:
    values, weights = problem(lines=8, n=9)
    found = objective(values, weights, weighted_kmeans(values, weights, 3))
    ordered, order = values.sort(-1)
    mass = weights.gather(-1, order)
    for row in range(8):
        best = torch.inf
        for a, b in itertools.combinations(range(1, 9), 2):
            pieces = zip(ordered[row].tensor_split((a, b)), mass[row].tensor_split((a, b)), strict=True)
            best = min(best, sum(float((m * (v - (m * v).sum() / m.sum()).square()).sum()) for v, m in pieces))
        assert float(found[row]) <= 1.02 * best


@pytest.mark.parametrize(("levels", "distortion"), [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_levels_of_a_gaussian_are_lloyd_max(levels: int, distortion: float) -> None:
    values = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(values)
    centres = weighted_kmeans(values, ones, levels)
    assert float(objective(values, ones, centres)) / 100_000 == pytest.approx(distortion, rel=0.02)


def test_scale_of_weights_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = problem()
    centres = weighted_kmeans(values, weights, 8)
    torch.testing.assert_close(weighted_kmeans(values, weights * 1e-30, 8), centres, rtol=1e-4, atol=1e-5)
    learner = WeightedKMeans()
    context = WeightContext(statistics={Fisher(): weights})
    tables = learner.fit(values, parse("lut3 channel"), None, context)
    torch.testing.assert_close(tables[:, 0], centres)
    monkeypatch.setattr("bitwright.stages.codebooks.weighted_kmeans._CHUNK", 700)
    assert torch.equal(learner.fit(values, parse("lut3 channel"), None, context), tables)


def test_degenerate_lines() -> None:
    values = torch.zeros(3, 10)
    values[1, :5] = 1.0
    values[2] = torch.arange(10)
    weights = torch.ones(3, 10)
    weights[2] = 0
    centres = weighted_kmeans(values, weights, 16)
    assert bool(torch.isfinite(centres).all())
    assert bool((centres.diff(dim=-1) >= 0).all())
    assert float(objective(values, torch.ones(3, 10), centres).max()) == 0.0


def test_kept_out_and_padding_do_not_count() -> None:
    values, _ = problem(lines=4, n=50)
    keep = torch.ones_like(values, dtype=torch.bool)
    spoiled = values.clone()
    spoiled[:, 7], keep[:, 7] = 1e3, False
    learner = WeightedKMeans(weight="none")
    fmt = parse("lut2 channel")
    tables = learner.fit(spoiled, fmt, keep, WeightContext())
    assert float(tables.abs().max()) < 20
    grouped = learner.fit(values, parse("lut2 g20"), None, WeightContext())
    assert grouped.shape == (4, 3, 4)
    alone = weighted_kmeans(values[:, 40:], torch.ones(4, 10), 4)
    torch.testing.assert_close(grouped[:, 2], alone)


@pytest.mark.parametrize("text", ["lut3 channel", "lut4 g32", "lut2 tensor"])
def test_quantized_tensor_uses_the_nearest_level(text: str) -> None:
    w, weights = problem(lines=8, n=64)
    context = WeightContext(statistics={Fisher(): weights})
    result = quantize_weight(w, Quantizer(parse(text), codebook=WeightedKMeans()), context)
    codes = result.codes
    assert codes is not None
    assert codes.codebook is not None
    layout = parse(text).granularity.layout((8, 64))
    g, tables = layout.split(w), codes.codebook.float()
    nearest = (g.unsqueeze(-1) - tables.unsqueeze(2)).abs().amin(-1)
    torch.testing.assert_close(layout.split(result.dequantize() - w).abs(), nearest)


def test_fisher_weights_lower_the_weighted_error() -> None:
    w, fisher = problem(lines=16, n=128)
    context = WeightContext(statistics={Fisher(): fisher})
    errors = []
    for weight in ("fisher", "none"):
        learner = WeightedKMeans(weight=weight)
        result = quantize_weight(w, Quantizer(parse("lut3 channel"), codebook=learner), context)
        errors.append(float(((result.dequantize() - w).square() * fisher).sum()))
    assert errors[0] < 0.8 * errors[1]
