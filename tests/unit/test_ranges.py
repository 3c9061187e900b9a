"""Range estimators against brute force, closed forms and each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import RangeEstimator, WeightContext
from bitwright.stages.ranges import HalfQuadratic, MinMax, Mse, Percentile
from bitwright.stages.ranges.percentile import quantile
from bitwright.statistics import ChannelMeans, Hessian
from tests.unit.layer_problem import correlated_layer

GRIDS = ["int4 g16 asym", "int3 channel", "int2 channel asym", "int4 narrow g8", "nf4 b16", "e2m1 g16", "mxfp4",
         "ternary channel", "int4 tensor", "int4 block8x16",
         "int3 g8 axis=0", "int4 g20 asym", "int3 g16 zero=fp16"]  # fmt: skip


def heavy_tailed(out: int = 16, columns: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(out, columns, generator=generator)
    return w * torch.exp(0.6 * torch.randn(out, columns, generator=generator))


def error(text: str, estimator: RangeEstimator, w: Tensor, importance: Tensor | None = None) -> Tensor:
    """Squared error of every weight."""
    bound = BoundQuantizer(parse(text), estimator, w, importance)
    bound.open_all(w)
    value = bound.round(0, w.shape[1], w)
    torch.testing.assert_close(bound.finish().dequantize(), value, rtol=0, atol=0)
    return (value - w).square()


@pytest.mark.parametrize("text", GRIDS)
def test_mse_never_exceeds_minmax_in_any_group(text: str) -> None:
    w = heavy_tailed()
    layout = parse(text).granularity.layout((16, 64))
    full, searched = (layout.split(error(text, e, w)).sum(-1) for e in (MinMax(), Mse()))
    assert bool((searched <= full * (1 + 1e-6)).all())
    if parse(text).scale.storage != "e8m0":  # powers of two leave little choice
        assert float(searched.sum()) < 0.97 * float(full.sum())


@pytest.mark.parametrize("text", ["int3 channel", "int3 channel asym"])
def test_mse_is_near_the_best_of_a_dense_search(text: str) -> None:
    w = heavy_tailed(out=6)
    fmt = parse(text)
    found = error(text, Mse(), w).sum(-1)
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    best = torch.full((6,), torch.inf)
    shares = torch.linspace(0.2, 1.0, 60)
    for a in shares:
        for b in shares if fmt.asymmetric else [a]:
            scale, zero = fmt.scale_from_range(low * a, high * b)
            value = fmt.round(w.unsqueeze(1), fmt.store_scale(scale).effective, fmt.store_zero(zero))
            best = torch.minimum(best, (value.squeeze(1) - w).square().sum(-1))
    assert float(found.sum()) <= 1.06 * float(best.sum())


def test_mse_of_a_gaussian_is_the_best_uniform_quantizer() -> None:
    """The optimal 4-level and 16-level uniform quantizers of a Gaussian have errors 0.1188 and 0.01154 (Max 1960)."""
    w = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    for text, expected in (("int2 channel zero=fp32", 0.1188), ("int4 channel zero=fp32", 0.01154)):
        assert float(error(text, Mse(), w).mean()) == pytest.approx(expected, rel=0.02)
        assert float(error(text, MinMax(), w).mean()) > 2 * expected


def test_importance_is_followed() -> None:
    w = heavy_tailed()
    importance = torch.ones(64)
    importance[:8] = 200.0
    plain = error("int3 channel asym", Mse(), w)
    weighted = error("int3 channel asym", Mse(), w, importance)
    assert float((weighted * importance).sum()) < 0.8 * float((plain * importance).sum())
    assert float(weighted.sum()) > float(plain.sum())


@pytest.mark.parametrize("text", GRIDS)
def test_pieces_do_not_matter(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, importance = heavy_tailed(), torch.linspace(0.5, 2, 64)
    fitted = []
    for size in (1 << 18, 70):
        monkeypatch.setattr("bitwright.stages.ranges.chunks._CHUNK", size)
        bound = BoundQuantizer(parse(text), Mse(), w, importance)
        bound.open_all(w)
        fitted.append(bound.scale)
    torch.testing.assert_close(fitted[0], fitted[1])


def test_importance_comes_from_statistics() -> None:
    layer = correlated_layer()
    assert Mse().needs == ()
    estimator = Mse(importance_from="hessian", prefix="layer")
    assert estimator.needs == (Hessian("layer"),)
    found = estimator.importance(layer.context())
    assert found is not None
    torch.testing.assert_close(found, layer.h.diagonal().clamp(min=1e-4 * float(layer.h.diagonal().mean())))
    collector = ChannelMeans().open(48)
    collector.update(torch.ones(3, 48) * 2)
    context = WeightContext(statistics={ChannelMeans(): collector.result()})
    assert Mse(importance_from="mean square").importance(context).tolist() == [4.0] * 48


def test_kept_out_weights_do_not_stretch_a_range() -> None:
    w = torch.linspace(-1, 1, 32).repeat(2, 1)
    w[0, 3] = 50.0
    keep = torch.ones_like(w, dtype=torch.bool)
    keep[0, 3] = False
    for estimator in (MinMax(), Mse(), Percentile(1.0), Percentile(0.9)):
        bound = BoundQuantizer(parse("int8 channel asym"), estimator, w, keep=keep)
        bound.open_all(w)
        assert float(bound.scale[0]) == pytest.approx(float(bound.scale[1]), rel=0.1)


def test_percentile_equals_torch_and_keeps_all_at_one() -> None:
    g = heavy_tailed().unsqueeze(1)
    for q in (0.0, 0.013, 0.5, 0.987, 1.0):
        torch.testing.assert_close(quantile(g, q), torch.quantile(g, q, dim=-1))
    assert torch.equal(error("int4 channel", Percentile(1.0), g[:, 0]), error("int4 channel", MinMax(), g[:, 0]))
    bound = BoundQuantizer(parse("int4 channel"), Percentile(0.9), g[:, 0])
    bound.open_all(g[:, 0])
    full = BoundQuantizer(parse("int4 channel"), MinMax(), g[:, 0])
    full.open_all(g[:, 0])
    assert bool((bound.scale < full.scale).all())


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1])
def test_percentile_refuses_shares_that_mean_nothing(share: float) -> None:
    with pytest.raises(InputError, match="share"):
        Percentile(share)


def published_half_quadratic(w: Tensor, scale: Tensor, zero: Tensor, top: float) -> Tensor:
    """The steps as the method's text states them, one row at a time, all zero points they visit."""
    visited, beta = [zero], 10.0
    for _ in range(20):
        q = (w / scale + zero).round().clamp(0, top)
        e = w - (q - zero) * scale
        kept = e.sign() * (e.abs() - e.abs().pow(-0.3) / beta).clamp(min=0)
        zero = (q - (w - kept) / scale).mean(-1, keepdim=True)
        visited.append(zero)
        beta *= 1.01
    return torch.cat(visited, -1)


def test_half_quadratic_takes_the_best_published_step() -> None:
    w = heavy_tailed() * 3
    fmt = parse("int3 channel zero=fp32 scale=fp32")
    bound = BoundQuantizer(fmt, HalfQuadratic(), w)
    bound.open_all(w)
    scale, first = fmt.scale_from_range(w.amin(-1, keepdim=True), w.amax(-1, keepdim=True))
    assert first is not None
    visited = published_half_quadratic(w, scale, first, 7.0)
    for row in range(len(w)):
        values = fmt.round(w[row].expand(21, 1, -1), scale[row].expand(21, 1), visited[row][:, None])
        losses = (values.squeeze(1) - w[row]).abs().pow(0.7).sum(-1)
        assert float(bound.zero[row]) == pytest.approx(float(visited[row, losses.argmin()]), abs=1e-4)


def test_half_quadratic_lowers_the_error() -> None:
    w = heavy_tailed(columns=256) * 0.05
    text = "int4 g64 zero=fp16"
    losses = [error(text, e, w).sqrt().pow(0.7).sum() for e in (MinMax(), HalfQuadratic())]
    assert float(losses[1]) < float(losses[0])
    assert float(error(text, HalfQuadratic(), w).sum()) < float(error("int4 g64 asym", MinMax(), w).sum())


def test_half_quadratic_needs_a_float_zero_point() -> None:
    for text in ("int4 g16 asym", "int4 g16", "nf4 b16"):
        with pytest.raises(InputError, match="zero=fp16"):
            error(text, HalfQuadratic(), heavy_tailed())


@pytest.mark.parametrize("estimator", [MinMax(), Mse(), Percentile(), HalfQuadratic()], ids=lambda e: type(e).__name__)
def test_constant_and_empty_groups(estimator: RangeEstimator) -> None:
    w = torch.zeros(4, 32)
    w[1], w[2] = 0.25, -3.0
    assert float(error("int4 g16 zero=fp16", estimator, w).max()) < 1e-5
