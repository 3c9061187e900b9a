"""A fixed dozen of classes and a few drawn ones still do what the table says (all of them: ``make architectures``)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tests.architectures.building import demands
from tests.architectures.mappings import Entry
from tests.architectures.measuring import measure
from tests.architectures.page import keeps, page, quantizes
from tests.architectures.shrinking import tiny_config
from tests.architectures.table import read, write

FIXED = (
    "causal/llama/LlamaForCausalLM",
    "causal/gpt2/GPT2LMHeadModel",
    "causal/gemma2/Gemma2ForCausalLM",
    "causal/mixtral/MixtralForCausalLM",
    "causal/mamba/MambaForCausalLM",
    "causal/falcon/FalconForCausalLM",
    "causal/gptj/GPTJForCausalLM",
    "causal/deepseek_v3/DeepseekV3ForCausalLM",
    "causal/granite/GraniteForCausalLM",
    "masked/bert/BertForMaskedLM",
    "seq2seq/bart/BartForConditionalGeneration",
    "image/vit/ViTForImageClassification",
)
DRAWN, SEED, SECONDS = 2, 0, 5.0


def _drawn() -> list[str]:
    """Classes that the table calls good and quick, drawn by a fixed seed."""
    rows = read()
    good = sorted(k for k, row in rows.items() if quantizes(row) and keeps(row) and row["seconds"] < SECONDS)
    return random.Random(SEED).sample([key for key in good if key not in FIXED], min(DRAWN, len(good)))


@pytest.mark.parametrize("key", [*FIXED, *_drawn()])
def test_a_class_is_found_quantized_and_rewritten(key: str) -> None:
    row = vars(measure(Entry(*key.split("/"))))
    assert row["built"], row["reason"]
    assert quantizes(row), (row["rtn"], row["gptq"], row["unaccounted"])
    assert keeps(row), row["kept"]
    if key in FIXED:
        assert row["blocks"] > 0
        assert row["kept"]["smoothing"]["error"] is not None
        return
    # What is drawn does what the table says; some classes have no chain of blocks.
    recorded = read()[key]
    assert row["blocks"] == recorded["blocks"]
    for name, found in row["kept"].items():
        assert (found["error"] is None) == (recorded["kept"][name]["error"] is None), name


def test_the_page_is_the_one_of_the_results() -> None:
    assert page(read()) == (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()


def test_tiny_configs_keep_proportions() -> None:
    from transformers import LlamaConfig, Qwen2Config

    small = tiny_config(LlamaConfig)
    assert (small.hidden_size, small.num_attention_heads, small.num_hidden_layers) == (64, 4, 2)
    assert small.intermediate_size == 176  # 11008 / 4096 * 64, in sixteenths
    assert small.vocab_size == 128
    assert tiny_config(Qwen2Config, use_sliding_window=True).use_sliding_window


@pytest.mark.parametrize(
    ("message", "demanded"),
    [
        ("width must be 0, got 256", {"*.width": 0}),
        ("QSA requires kv_heads=1.", {"*.kv_heads": 1}),
        ("index_topk (2) must be divisible by index_pool (16).", {"*.index_topk": 16}),
        ("`text.hidden_size` (64) must match `text_config.hidden_size` (256).", {"text.hidden_size": 256}),
        ("`context` (40) must be smaller than `chunk` (8).", {"*.context": 4}),
        ("`chunk` must be a multiple of hop length (3200), got 8.", {"*.chunk": 3200}),
        ("something else", {}),
    ],
)
def test_a_config_may_say_what_it_wants(message: str, demanded: dict[str, int]) -> None:
    assert demands(message) == demanded


def test_what_is_demanded_reaches_the_part_that_has_the_field() -> None:
    from transformers import Qwen2VLConfig

    config = tiny_config(Qwen2VLConfig, **{"*.num_key_value_heads": 1, "vision_config.depth": 3})
    assert config.text_config.num_key_value_heads == 1
    assert config.vision_config.depth == 3


def test_results_survive_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"key": "b", "built": False}, {"key": "a", "built": True}]
    write(rows, path)
    with path.open("a") as file:
        file.write('{"key": "c", "bui')
    assert list(read(path)) == ["a", "b"]
