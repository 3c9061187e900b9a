"""Every rule of the draw against its definition, and draws against the probabilities that it leaves."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import CheckError, InputError
from bitwright.runtime.sampling import (
    ROUNDING,
    Sampler,
    Sampling,
    add_bias,
    draw_from,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    penalize_counts,
    penalize_repetition,
)

# Probabilities 0.4, 0.3, 0.2, 0.1, in another order.
LOGITS = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64).log()


def _kept(logits: torch.Tensor) -> list[int]:
    return (logits > -math.inf).nonzero().flatten().tolist()


def test_rules_leave_what_their_definitions_say() -> None:
    assert _kept(keep_top_k(LOGITS, 2)) == [1, 3]
    assert keep_top_k(LOGITS, 0) is LOGITS
    assert _kept(keep_top_k(torch.tensor([0.0, 50.0, 20.0]), 2)) == [1, 2]
    assert _kept(keep_top_p(LOGITS, 0.4)) == [1]
    assert _kept(keep_top_p(LOGITS, 0.41)) == [1, 3]
    assert _kept(keep_top_p(LOGITS, 0.85)) == [0, 1, 3]
    assert _kept(keep_top_p(LOGITS, 1e-9)) == [1]
    assert _kept(keep_min_p(LOGITS, 0.74)) == [1, 3]
    assert _kept(keep_min_p(LOGITS, 1.0)) == [1]
    torch.testing.assert_close(keep_top_k(LOGITS, 2)[[1, 3]], LOGITS[[1, 3]])


def test_penalties_and_bias_are_their_formulas() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    torch.testing.assert_close(penalize_repetition(logits, [0, 1], 2.0), torch.tensor([1.0, -4.0, 1.0, 0.5]))
    torch.testing.assert_close(penalize_counts(logits, {2: 3, 0: 1}, 0.5, 0.25), torch.tensor([1.25, -2.0, -0.25, 0.5]))
    torch.testing.assert_close(add_bias(logits, {3: 100.0}), torch.tensor([2.0, -2.0, 1.0, 100.5]))
    with pytest.raises(InputError, match="token 4; the vocabulary has 4"):
        add_bias(logits, {4: 1.0})
    value, top = log_probabilities(LOGITS, 2, 2)
    assert value == pytest.approx(math.log(0.1))
    assert [(token, pytest.approx(score)) for token, score in top] == [(1, math.log(0.4)), (3, math.log(0.3))]


@given(seed=st.integers(0, 10**6), size=st.integers(1, 900), p=st.floats(0.001, 0.999), scale=st.floats(0.01, 9))
def test_top_p_is_the_least_head_that_reaches_it(seed: int, size: int, p: float, scale: float) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    logits = logits.float()
    kept = _kept(keep_top_p(logits, p))
    shares = logits.softmax(0)
    assert float(shares[kept].sum()) >= p - 3 * ROUNDING
    least = min(kept, key=lambda token: float(shares[token]))
    assert float(shares[kept].sum() - shares[least]) < p + 3 * ROUNDING
    assert kept == (shares >= shares[least]).nonzero().flatten().tolist()


def test_draws_have_the_probabilities_that_are_left() -> None:
    sampler = Sampler(Sampling(temperature=2.0, top_k=3, seed=5))
    drawn = Counter(sampler.draw(LOGITS) for _ in range(4000))
    left = torch.tensor([0.2, 0.4, 0.0, 0.3]).sqrt()
    for token, share in enumerate((left / left.sum()).tolist()):
        assert drawn[token] / 4000 == pytest.approx(share, abs=0.03)
    assert drawn[2] == 0


def test_seeds_repeat_and_penalties_hold_in_greedy_answers_too() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.draw(LOGITS) for _ in range(40)]

    assert draws(3) == draws(3) != draws(4)
    assert draws(None) != draws(None)
    sampler = Sampler(Sampling(presence_penalty=10.0))
    assert [sampler.draw(LOGITS) for _ in range(4)] == [1, 3, 0, 2]
    sampler = Sampler(Sampling(repetition_penalty=50.0), prompt=[1])
    assert [sampler.draw(LOGITS) for _ in range(2)] == [3, 0]
    assert Sampler(Sampling(temperature=5e-324)).draw(LOGITS) == 1
    assert Sampler(Sampling(temperature=1e6, logit_bias={2: 100.0})).draw(LOGITS) in range(4)


def test_what_has_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    random = torch.Generator().manual_seed(0)
    assert {draw_from(logits, random) for _ in range(200)} == {1, 3}


def test_wrong_numbers_are_named() -> None:
    for name, value in {
        "temperature": -1.0, "top_k": -1, "top_p": 0.0, "min_p": 1.5, "repetition_penalty": 0.0,
        "presence_penalty": math.inf, "frequency_penalty": math.nan, "seed": 2**63, "logit_bias": {-1: 0.0},
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=name):
            Sampling(**{name: value})
    with pytest.raises(InputError, match="temperature is nan"):
        Sampling(temperature=math.nan)
    for damage in (math.nan, math.inf):
        with pytest.raises(CheckError, match="not numbers"):
            Sampler(Sampling()).draw(torch.tensor([0.0, damage]))
