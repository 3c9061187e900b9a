"""The strip-wise second moment against the plain product."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.native import instruction_sets, library, moments, unavailable
from bitwright.statistics.hessian import CrossHessian, Hessian, HessianCollector


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dim", [1, 63, 256, 257, 700, HessianCollector.WIDE + 1])
def test_the_second_moment_is_the_plain_product_and_symmetric(
    dim: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(moments, "serving", lambda x: None)
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


def slow_moments(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The definition: runs of 128 tokens, one fused multiply-add after the other from zero, then the runs in order."""
    whole = torch.zeros(x.shape[1], x.shape[1])
    for run in x.float().split(128):
        part = torch.zeros_like(whole)
        for token in run.double():
            part = (token[:, None] * token[None] + part.double()).float()  # such a product is exact in fp64
        whole = whole + part
    return (total + whole.to(total.dtype)).triu()


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 33), (300, 40), (129, 170), (600, 64)])
def test_compiled_moments_equal_their_definition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """On every instruction set and for any number of threads, in both precisions of the sum."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator).to(dtype)
    start = torch.randn(shape[1], shape[1], generator=generator)
    threads = torch.get_num_threads()
    try:
        for fine in (torch.float32, torch.float64):
            wanted = slow_moments(x, start.to(fine))
            for name in instruction_sets():
                for count in (1, 3):
                    torch.set_num_threads(count)
                    total = start.to(fine, copy=True)
                    moments.add_moments(x, total, library(name))
                    assert torch.equal(total.triu(), wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_wrong_sums_are_refused() -> None:
    x, kernels = torch.randn(4, 8), library()
    with pytest.raises(InputError, match="float16"):
        moments.add_moments(x, torch.zeros(8, 8, dtype=torch.float16), kernels)
    with pytest.raises(InputError, match="total holds"):
        moments.add_moments(x, torch.zeros(8, 7), kernels)
    with pytest.raises(InputError, match="float64"):
        moments.add_moments(x.double(), torch.zeros(8, 8), kernels)
