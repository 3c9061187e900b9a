"""Token data: what it accepts, how it is cut into batches, what its hash means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from bitwright.data.tokens import TokenData, digest, token_data
from bitwright.errors import InputError

RAGGED = [[1, 5, 6], [1, 7], [1, 8, 9, 10, 11], [1, 7, 7]]


def ragged() -> TokenData:
    return token_data(RAGGED, "toy", "toy protocol")


def test_padding_is_on_the_right_and_everything_after_the_first_token_is_scored() -> None:
    data = ragged()
    assert data.ids[1].tolist() == [1, 7, 0, 0, 0]
    assert data.mask.sum(1).tolist() == [3, 2, 5, 3]
    assert data.scored.sum(1).tolist() == [2, 1, 4, 2]
    assert (data.tokens, data.scored_tokens, len(data)) == (13, 9, 4)


def test_scoring_can_begin_later_or_never() -> None:
    assert token_data(RAGGED, "toy", "", score_from=[1, 1, 3, 2]).scored.sum(1).tolist() == [2, 1, 2, 1]
    assert token_data(RAGGED, "toy", "", score_from=None).scored_tokens == 0
    assert not token_data(RAGGED, "toy", "", score_from=0).scored[:, 0].any()  # nothing predicts the first token


def test_batches_keep_the_order_and_are_cut_to_their_longest() -> None:
    batches = list(ragged().batches(2))
    assert [b["input_ids"].tolist() for b in batches] == [
        [[1, 5, 6], [1, 7, 0]],
        [[1, 8, 9, 10, 11], [1, 7, 7, 0, 0]],
    ]
    assert batches[0]["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batches[0]["attention_mask"].dtype == torch.int64


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 200), st.booleans())
def test_plan_takes_every_sequence_once_within_the_budget(lengths: list[int], budget: int, equal: bool) -> None:
    data = token_data([[1] * n for n in lengths], "toy", "")
    plan = data.plan(budget, equal)
    assert sorted(torch.cat(plan).tolist()) == list(range(len(lengths)))
    for rows in plan:
        found = [lengths[r] for r in rows.tolist()]
        assert len(found) == 1 or len(found) * max(found) <= budget
        assert not equal or len(set(found)) == 1


def test_hash_means_content_not_padding_or_name() -> None:
    data = ragged()
    wider = [pad(tensor, (0, 2), value=fill) for tensor, fill in ((data.ids, 9), (data.mask, 0), (data.scored, 0))]
    assert digest(*wider) == data.sha256 == token_data(RAGGED, "other name", "").sha256
    assert token_data(RAGGED, "toy", "", score_from=2).sha256 != data.sha256
    assert token_data([[1, 5, 6, 1, 7], *RAGGED[2:]], "toy", "").sha256 != data.sha256


def test_a_prefix_is_the_data_that_was_asked_for() -> None:
    first = ragged().first(2)
    assert first.ids.tolist() == [[1, 5, 6], [1, 7, 0]]
    assert first.sha256 == token_data(RAGGED[:2], "x", "").sha256
    assert "first 2" in first.protocol
    whole = ragged()
    assert whole.first(9) is whole


def test_ids_outside_the_vocabulary_are_refused() -> None:
    ragged().check_vocabulary(12)
    with pytest.raises(InputError, match="token id 11 is outside the vocabulary of 11"):
        ragged().check_vocabulary(11)
    with pytest.raises(InputError, match="token id -1"):
        token_data([[1, -1]], "toy", "", vocabulary=12)


def test_malformed_data_is_refused() -> None:
    data = ragged()
    with pytest.raises(InputError, match="empty sequence"):
        token_data([[1, 2], []], "toy", "")
    with pytest.raises(InputError, match="empty sequence or none"):
        token_data([], "toy", "")
    with pytest.raises(InputError, match="padding must be on the right"):
        replace(data, mask=data.mask.flip(1))
    with pytest.raises(InputError, match="only real tokens after the first"):
        replace(data, scored=torch.ones_like(data.scored))
    with pytest.raises(InputError, match="int64 matrix"):
        replace(data, ids=data.ids.float())
    with pytest.raises(InputError, match="at least one sequence"):
        data.first(0)
