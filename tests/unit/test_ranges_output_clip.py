"""The clip by output error against outputs that are materialised, and the second moments that it reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.formats import parse
from bitwright.recipes import load_recipe
from bitwright.stages.bound import BoundQuantizer
from bitwright.stages.quantizer import Quantizer, WeightContext
from bitwright.stages.ranges import MinMax, OutputClip
from bitwright.stages.solve import quantize_weight
from bitwright.statistics.blocks import BlockHessian, BlockMoment


def problem(out: int = 6, columns: int = 20, tokens: int = 50) -> tuple[Tensor, Tensor]:
    """A heavy-tailed ``w[out, in]`` and correlated inputs ``x[tokens, in]``."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(out, columns, generator=generator)
    w *= torch.exp(0.7 * torch.randn(out, columns, generator=generator))
    x = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return w, x


def moment(x: Tensor, size: int) -> BlockMoment:
    collector = BlockHessian(size).open(x.shape[1])
    collector.update(x)
    return collector.result()


def clipped(text: str, w: Tensor, x: Tensor, block: int | None = None) -> Tensor:
    """The dequantized weight."""
    fmt = parse(text)
    estimator = OutputClip.of(fmt) if block is None else OutputClip(block=block)
    context = WeightContext(statistics={BlockHessian(estimator.block): moment(x, estimator.block)})
    return quantize_weight(w, Quantizer(fmt, range=estimator), context).dequantize()


def published_search(text: str, w: Tensor, x: Tensor, size: int) -> Tensor:
    """Every candidate's outputs, group by group, as the method is described."""
    fmt, value = parse(text), torch.empty_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], size):
            g, part = w[row, start : start + size], x[:, start : start + size]
            best = torch.inf
            for step in range(10):
                limit = float(g.abs().max()) * (1 - step / 20)
                low, high = g.clamp(-limit, limit).aminmax()
                scale, zero = fmt.scale_from_range(low.view(1, 1), high.view(1, 1))
                stored = fmt.store_scale(scale).effective
                q = fmt.round(g.view(1, 1, -1), stored, fmt.store_zero(zero)).flatten()
                error = float((part @ q - part @ g).double().square().mean())
                if error < best:
                    best, value[row, start : start + size] = error, q
    return value


@pytest.mark.parametrize(
    ("text", "size"),
    [("int3 g8 asym", 8), ("int4 g5", 5), ("int3 channel asym", 20), ("e2m1 g8", 8), ("int2 g16 zero=fp16", 16)],
)
def test_the_clip_is_that_of_materialised_outputs(text: str, size: int) -> None:
    w, x = problem()
    expected = published_search(text, w, x, size)
    assert torch.equal(clipped(text, w, x), expected)
    assert not torch.equal(quantize_weight(w, Quantizer(parse(text))).dequantize(), expected)


def test_larger_blocks_serve_smaller_groups() -> None:
    w, x = problem(columns=32)
    assert torch.equal(clipped("int3 g8 asym", w, x, block=16), clipped("int3 g8 asym", w, x, block=8))


@pytest.mark.parametrize("text", ["int3 g3 axis=0", "nf4 b16", "int4 block3x10", "int3 tensor"])
def test_groups_that_leave_their_row_count_mean_squares(text: str) -> None:
    """The columns' mean squares weigh their errors: the same choice as from inputs without correlations."""
    w, x = problem()
    independent = torch.eye(20) * x.square().mean(0).mul(20).sqrt()
    found = clipped(text, w, x)
    assert torch.equal(found, clipped(text, w, independent))
    plain = quantize_weight(w, Quantizer(parse(text))).dequantize()
    power = x.square().mean(0)
    assert float(((found - w).square() * power).sum()) < float(((plain - w).square() * power).sum())


def test_spans_are_fitted_with_their_own_columns() -> None:
    """A solver that opens one span after the other gets the parameters of the whole at once."""
    w, x = problem()
    fmt = parse("int3 g8 asym")
    bounds = [BoundQuantizer(fmt, OutputClip(block=8), w, moment(x, 8)) for _ in range(2)]
    bounds[0].open_all(w)
    for start, stop in bounds[1].spans:
        bounds[1].open(start, stop, w[:, start:stop])
    assert torch.equal(bounds[0].scale, bounds[1].scale)
    minmax = BoundQuantizer(fmt, MinMax(), w)
    minmax.open_all(w)
    assert not torch.equal(bounds[0].scale, minmax.scale)


def test_block_moments_are_blocks_of_the_whole() -> None:
    _, x = problem()
    whole = (x.double().t() @ x.double() / len(x)).float()
    found = moment(x, 8)
    assert found.blocks.shape == (3, 8, 8)
    torch.testing.assert_close(found.blocks[1], whole[8:16, 8:16], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.diagonal, whole.diagonal(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moment(x, 0).blocks[0], whole, rtol=1e-5, atol=1e-5)
    form = found.of(torch.tensor([[6, 7, 8, 9], [16, 19, -1, -1]]))
    expected = whole[6:10, 6:10].clone()
    expected[:2, 2:] = expected[2:, :2] = 0  # channels of two blocks
    torch.testing.assert_close(form[0], expected, rtol=1e-5, atol=1e-5)
    assert float(form[1, 2:].abs().sum() + form[1, :, 2:].abs().sum()) == 0
    torch.testing.assert_close(form[1, 0, 1], whole[16, 19], rtol=1e-5, atol=1e-5)


def test_block_moments_merge_and_bound_their_memory() -> None:
    _, x = problem()
    request = BlockHessian(8)
    left, right = request.open(20), request.open(20)
    left.update(x[:13])
    right.update(x[13:])
    left.merge(right)
    torch.testing.assert_close(left.result().blocks, moment(x, 8).blocks, rtol=1e-5, atol=1e-5)
    assert left.result().count == 50
    assert left.total.nbytes <= request.memory_bytes(20)
    assert request.memory_bytes(4096) < BlockHessian(0).memory_bytes(4096) / 500


def test_the_recipe_clips_all_but_what_it_is_told_to_leave() -> None:
    (only,) = load_recipe("awq").weights
    assert only.quantizer is not None
    assert only.quantizer.range == OutputClip(block=128)
    (plain,) = load_recipe("awq", {"clip": False}).weights
    assert plain.quantizer is not None
    assert plain.quantizer.range == MinMax()
    rules = load_recipe("awq", {"unclipped": "*q_proj,*k_proj", "weights": "int3 channel"}).weights
    assert [r.quantizer.range for r in rules if r.quantizer is not None] == [OutputClip(block=0), MinMax()]
