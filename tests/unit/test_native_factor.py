"""The compiled factor of second moments against closed forms, double precision and itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native import instruction_sets, library, unavailable
from bitwright.native.buffers import span
from bitwright.native.factor import serving, upper_factor
from bitwright.stages.quantizer import WeightContext
from bitwright.stages.rounding import second_order
from bitwright.stages.rounding.second_order import feedback_factor

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SETS = instruction_sets()


def moments(n: int, seed: int = 0) -> Tensor:
    x = torch.randn(n + 20, n, generator=torch.Generator().manual_seed(seed))
    return x.t() @ x / len(x) + 0.05 * torch.eye(n)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", [1, 2, 8, 31, 32, 33, 70, 256, 257, 330])
def test_finds_a_factor_that_is_known_exactly(n: int, name: str) -> None:
    """Small whole numbers in few places: every sum is exact, whatever its order."""
    random = torch.Generator().manual_seed(n)
    upper = torch.zeros(n, n)
    for row in range(n - 1):
        upper[row, torch.randint(row + 1, n, (3,), generator=random)] = torch.tensor([1.0, -2.0, 1.0])
    pivots = 4.0 ** torch.randint(0, 3, (n,), generator=random)
    whole = upper + torch.eye(n)
    h = whole @ pivots.diag() @ whole.t()
    found = upper_factor(h, h.diagonal().clone(), library(name))
    assert found is not None
    assert torch.equal(found[0], upper)
    assert torch.equal(found[1], pivots)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 600), st.integers(0, 9))
def test_nothing_but_the_matrix_matters(n: int, seed: int) -> None:
    """Instruction sets and threads give the same bits, near those of double precision; below the diagonal are zeros."""
    h = moments(n, seed)
    plain = torch.linalg.cholesky(h.double().flip(0, 1)).flip(0, 1)
    results = []
    threads = torch.get_num_threads()
    try:
        for name in SETS:
            for count in (1, 3):
                torch.set_num_threads(count)
                # Nothing below the diagonal is read.
                given_half = h.triu() + torch.full_like(h, torch.nan).tril(-1)
                found = upper_factor(given_half, h.diagonal().clone(), library(name))
                assert found is not None
                results.append(found)
    finally:
        torch.set_num_threads(threads)
    upper, pivots = results[0]
    assert all(torch.equal(upper, u) and torch.equal(pivots, p) for u, p in results)
    assert torch.equal(upper, upper.triu(1))
    torch.testing.assert_close(upper.double(), (plain / plain.diagonal()).triu(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pivots.double(), plain.diagonal().square(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("place", [0, 7, 299])
@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), float("inf")])
def test_what_is_not_positive_definite_has_no_factor(name: str, place: int, value: float) -> None:
    h = moments(300)
    diagonal = h.diagonal().clone()
    diagonal[place] = value
    assert upper_factor(h, diagonal, library(name)) is None


def test_the_stage_takes_it_and_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    h = moments(200)
    h[5], h[:, 5] = 0, 0  # a channel without a signal
    if serving(h) is None:
        pytest.skip("no vector instructions here")
    compiled = feedback_factor(h, 0.01, WeightContext())
    monkeypatch.setattr(second_order.compiled, "serving", lambda h: None)
    plain = feedback_factor(h, 0.01, WeightContext())
    torch.testing.assert_close(compiled.upper, plain.upper, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.pivots, plain.pivots, rtol=1e-5, atol=0)
    assert plain.upper.is_contiguous()


def test_wrong_buffers_are_refused() -> None:
    h, kernels = moments(40), library()
    with pytest.raises(InputError, match="float32"):
        upper_factor(h.double(), h.diagonal().clone(), kernels)
    with pytest.raises(InputError, match="matrix holds"):
        upper_factor(h[:30], h.diagonal().clone(), kernels)
    with pytest.raises(ValueError, match="shape"):
        kernels.upper_factor(0, span(h), span(h), span(h), span(h), 1)
    with pytest.raises(ValueError, match="pivots"):
        kernels.upper_factor(40, span(h), span(h), span(h), span(h[0, :39]), 1)
    with pytest.raises(ValueError, match="threads"):
        kernels.upper_factor(40, span(h), span(h), span(h), span(h), 0)
