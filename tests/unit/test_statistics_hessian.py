"""The strip-wise second moment against the plain product."""

from __future__ import annotations

import pytest
import torch

from bitwright.statistics.hessian import CrossHessian, Hessian, HessianCollector


@pytest.mark.parametrize("dim", [1, 63, 256, 257, 700, HessianCollector.WIDE + 1])
def test_the_second_moment_is_the_plain_product_and_symmetric(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    batches = [torch.randn(rows, dim, generator=generator) for rows in (1, 5, 9)]
    collectors = [Hessian().open(dim) for _ in range(2)]
    for index, x in enumerate(batches):
        collectors[index % 2].update(x)
    collectors[0].merge(collectors[1])
    found = collectors[0].result()
    every = torch.cat(batches).double()
    expected = every.t() @ every / 15
    assert found.count == 15
    torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.matrix.tril(), found.matrix.t().tril())
    assert torch.equal(collectors[0].result().matrix, found.matrix)


def test_the_cross_moment_is_the_plain_product() -> None:
    generator = torch.Generator().manual_seed(0)
    x, twin = torch.randn(2, 12, 40, generator=generator)
    collector = CrossHessian().open(40)
    collector.update(x, twin)
    expected = (twin - x).double().t() @ x.double() / 12
    torch.testing.assert_close(collector.result().matrix.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="twin"):
        collector.update(x)
