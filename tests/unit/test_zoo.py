"""The embedded models: what is stored gives the figures that the cards state."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from bitwright import zoo
from bitwright.errors import InputError
from bitwright.zoo import corpus


def _perplexity(model: torch.nn.Module, windows: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(windows).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    return math.exp(loss.item())


@pytest.fixture(scope="module")
def language_model() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(zoo.lm_path(), dtype=torch.float32).eval()


def test_eval_tokens_are_windows_that_begin_with_bos() -> None:
    tokens = zoo.eval_tokens()
    assert tokens.shape == (128, 512)
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == 0).all()
    assert tokens.min() >= 0
    assert tokens.max() < 1024


def test_float_perplexity_is_the_one_in_the_card(language_model: torch.nn.Module) -> None:
    stated = zoo.card("lm")["eval_tokens"]["perplexity_first_4_windows"]
    assert _perplexity(language_model, zoo.eval_tokens()[:4]) == pytest.approx(stated, rel=1e-3)


def test_stored_weights_are_the_ones_in_the_card() -> None:
    data = (zoo.lm_path() / "model.safetensors").read_bytes()
    assert len(data) < 3_000_000
    assert hashlib.sha256(data).hexdigest() == zoo.card("lm")["model_sha256"]
    data = (zoo.digits_path() / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == zoo.card("digits")["model_sha256"]


def test_model_has_the_stated_size(language_model: torch.nn.Module) -> None:
    card = zoo.card("lm")
    assert sum(p.numel() for p in language_model.parameters()) == card["parameters"]
    assert card["tokens_per_parameter"] == pytest.approx(card["tokens_trained"] / card["parameters"], abs=0.1)


def test_three_bits_without_correction_hurt() -> None:
    card = zoo.card("lm")
    assert card["rounded_to_nearest"]["3 bits"]["eval_tokens"] > 1.1 * card["eval_tokens"]["perplexity"]


def test_tokenizer_round_trip() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo.lm_path())
    text = 'def größe(x):\n    """Länge → ∑."""\n\treturn [x, "日本"]\n'
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 0
    assert len(tokenizer) == 1024
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_held_out_texts_have_the_stated_hash_and_are_no_calibration_text() -> None:
    stated = {entry["name"]: entry["sha256"] for entry in zoo.card("lm")["heldout"]["files"]}
    assert all(corpus.is_held_out(name) for name in stated)
    found = dict(zoo.heldout_texts())
    assert set(found) <= set(stated)
    for name, text in found.items():
        assert hashlib.sha256(text.encode()).hexdigest() == stated[name]
    assert not set(zoo.calibration_texts(seed=0, count=8)) & set(found.values())


def test_calibration_texts_depend_on_the_seed_only() -> None:
    assert zoo.calibration_texts(3, 4) == zoo.calibration_texts(3, 4)
    assert zoo.calibration_texts(3, 4) != zoo.calibration_texts(4, 4)
    with pytest.raises(InputError):
        zoo.calibration_texts(3, 0)


def test_digits_accuracy_is_the_one_in_the_card() -> None:
    pytest.importorskip("sklearn")
    images, labels = zoo.digits_data("test")
    assert images.shape == (450, 1, 8, 8)
    with torch.no_grad():
        hits = (zoo.load_digits_model()(images).argmax(-1) == labels).float().mean().item()
    assert hits >= 0.97
    assert hits == pytest.approx(zoo.card("digits")["accuracy"]["test"], abs=1.5 / 450)


def test_digits_splits_are_disjoint_and_complete() -> None:
    pytest.importorskip("sklearn")
    train, _ = zoo.digits_data("train")
    test, _ = zoo.digits_data("test")
    assert len(train) + len(test) == 1797
    with pytest.raises(InputError, match="splits"):
        zoo.digits_data("all")  # type: ignore[arg-type]
