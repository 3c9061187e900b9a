"""The float figures that everything else is compared with, measured again.

Quick slices run by default (their values were measured with the code of this repository); the whole published protocols
are marked slow.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright import zoo
from bitwright.claims.assets import EmbeddingAsset, ImageAsset, LmAsset, load_asset
from bitwright.data import evaluation
from bitwright.errors import InputError
from bitwright.evaluation import image_scores, logits_of, score_lm, sts_spearman


def opened(name: str, folder: Path) -> LmAsset | ImageAsset | EmbeddingAsset:
    try:
        return load_asset(name, folder)
    except InputError as error:
        pytest.skip(str(error))


def test_embedded_language_model() -> None:
    asset = load_asset("zoo")
    assert isinstance(asset, LmAsset)
    model = asset.open()
    quick = score_lm(logits_of(model.module), asset.evaluation(model).first(4))
    assert quick.perplexity == pytest.approx(zoo.card("lm")["eval_tokens"]["perplexity_first_4_windows"], rel=1e-4)
    assert quick.tokens == 4 * 511


@pytest.mark.slow
def test_embedded_language_model_on_all_its_data() -> None:
    asset = load_asset("zoo")
    assert isinstance(asset, LmAsset)
    model = asset.open()
    sampled = score_lm(logits_of(model.module), asset.evaluation(model))
    assert sampled.perplexity == pytest.approx(asset.figure.value, rel=1e-4)
    try:
        held_out = evaluation(model.tokenizer(), "zoo:heldout")
    except InputError as error:
        pytest.skip(str(error))
    card = zoo.card("lm")["heldout"]
    if len(held_out) != card["windows"]:
        pytest.skip(f"{len(held_out)} of {card['windows']} held-out pieces: other versions are installed")
    assert score_lm(logits_of(model.module), held_out).perplexity == pytest.approx(card["perplexity"], rel=1e-4)


def test_stories260k(assets: Path) -> None:
    asset = opened("lm-stories260k", assets)
    assert isinstance(asset, LmAsset)
    model = asset.open()
    quick = score_lm(logits_of(model.module), asset.evaluation(model, quick=True))
    assert quick.perplexity == pytest.approx(3.4143, abs=1e-4)
    assert quick.tokens == 56_466


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lm-stories260k", "lm-bitnet-stories-1m", "lm-bitnet-stories-3m"])
def test_stories_ledger_protocol(name: str, assets: Path) -> None:
    asset = opened(name, assets)
    assert isinstance(asset, LmAsset)
    model = asset.open()
    scores = score_lm(logits_of(model.module), asset.evaluation(model))
    assert scores.perplexity == pytest.approx(asset.figure.value, abs=1e-4)
    assert scores.tokens == 155_724
    accuracy = {"lm-stories260k": 0.6535, "lm-bitnet-stories-3m": 0.6716, "lm-bitnet-stories-1m": 0.6347}[name]
    assert scores.top1_accuracy == pytest.approx(accuracy, abs=1e-4)


@pytest.mark.parametrize(("name", "top1"), [("vision-resnet-cifar10", 93.6), ("vision-vit-cifar10", 72.8)])
def test_first_thousand_images(name: str, top1: float, assets: Path) -> None:
    asset = opened(name, assets)
    assert isinstance(asset, ImageAsset)
    model = asset.open()
    scores = image_scores(model.module, asset.evaluation(model, quick=True))
    assert scores.top1 == pytest.approx(top1, abs=0.101)  # one image may fall on the other side elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision-resnet-cifar10", "vision-resnet56-cifar10", "vision-vit-cifar10"])
def test_all_test_images(name: str, assets: Path) -> None:
    asset = opened(name, assets)
    assert isinstance(asset, ImageAsset)
    model = asset.open()
    scores = image_scores(model.module, asset.evaluation(model))
    assert scores.top1 == pytest.approx(asset.figure.value, abs=asset.figure.tolerance)


def test_minilm_first_pairs(assets: Path) -> None:
    asset = opened("embedding-stsb", assets)
    assert isinstance(asset, EmbeddingAsset)
    model = asset.open()
    metric = sts_spearman(model.module, model.tokenizer(), asset.evaluation(model, quick=True))
    assert metric.value == pytest.approx(0.9337, abs=2e-4)


@pytest.mark.slow
def test_minilm(assets: Path) -> None:
    asset = opened("embedding-stsb", assets)
    assert isinstance(asset, EmbeddingAsset)
    model = asset.open()
    metric = sts_spearman(model.module, model.tokenizer(), asset.evaluation(model))
    assert metric.value == pytest.approx(0.8203, abs=1e-4)
    assert metric.count == 1_379
