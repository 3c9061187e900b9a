"""What the recipes must win on the embedded language model: the order of methods and of widths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitwright.claims.assets import LmAsset, load_asset
from bitwright.data import TokenData
from bitwright.evaluation import ReferenceLogits, logits_of, score_lm
from bitwright.jobs import Job, run
from bitwright.jobs.request import Request, build_job
from bitwright.models import open_model
from bitwright.zoo import lm_path


@pytest.fixture(scope="module")
def job() -> Job:
    """Calibration on text of the installed packages, read once."""
    return build_job(Request("zoo", "gptq", sequences=16, length=256))


@pytest.fixture(scope="module")
def held_out() -> tuple[TokenData, ReferenceLogits]:
    asset = load_asset("zoo")
    assert isinstance(asset, LmAsset)
    model = asset.open()
    data = asset.evaluation(model).first(6)
    return data, ReferenceLogits.gather(logits_of(model.module), data)


def _kl(job: Job, held_out: tuple[TokenData, ReferenceLogits], recipe: str, weights: str) -> float:
    data, reference = held_out
    from bitwright.jobs.request import build_recipe

    module = open_model(lm_path()).module
    run(replace(job, model=module, recipe=build_recipe(recipe, (), weights), out=None))
    scores = score_lm(logits_of(module), data, reference)
    assert scores.kl is not None
    return scores.kl


def test_second_order_rounding_wins_back_much_of_the_loss(
    job: Job, held_out: tuple[TokenData, ReferenceLogits]
) -> None:
    """At three bits rounding to nearest hurts clearly and GPTQ wins more than a third of it back."""
    plain = _kl(job, held_out, "rtn", "int3 g128 asym")
    solved = _kl(job, held_out, "gptq", "int3 g128 asym")
    assert plain > 0.05
    assert solved < 0.67 * plain


def test_error_falls_with_the_bits(job: Job, held_out: tuple[TokenData, ReferenceLogits]) -> None:
    """KL is quadratic in the error of the weights, which halves per bit: about four times less per bit."""
    three, four, five = (_kl(job, held_out, "rtn", f"int{bits} g64 asym") for bits in (3, 4, 5))
    assert 2.5 < three / four < 8
    assert 2.5 < four / five < 8


def test_smaller_groups_and_better_grids_help(job: Job, held_out: tuple[TokenData, ReferenceLogits]) -> None:
    """At four bits: finer scales beat coarser ones, and normal-float levels beat minifloat ones."""
    coarse, fine = _kl(job, held_out, "rtn", "int4 channel asym"), _kl(job, held_out, "rtn", "int4 g32 asym")
    assert fine < coarse
    assert _kl(job, held_out, "rtn", "nf4 g64") < _kl(job, held_out, "rtn", "mxfp4")
