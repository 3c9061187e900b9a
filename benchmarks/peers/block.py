"""Write one Llama block of a real size with random weights, for timing second-order solvers beside each other.

Hidden 2048, MLP 8192, 32 heads and 8 key-value heads, and 32 x 512 random token ids. Every tool reads the same folder:
`block/` in the work directory is an ordinary transformers model of one layer, `block.safetensors` holds the ids.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

ROWS, LENGTH = 32, 512
FOLDER, IDS = "block", "block.safetensors"
CONFIG = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}


def write_block(work: Path) -> None:
    """Write the model and the ids where they are not there yet."""
    if (work / IDS).exists():
        return
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG)).to(torch.float32)
    model.save_pretrained(work / FOLDER)
    words = WordLevel({str(number): number for number in range(CONFIG["vocab_size"])}, unk_token="0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(
        work / FOLDER
    )  # some tools insist on one
    save_file({"ids": torch.randint(3, CONFIG["vocab_size"], (ROWS, LENGTH))}, work / IDS)


def read_block(work: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model in fp32 and the ids [ROWS, LENGTH]."""
    model = AutoModelForCausalLM.from_pretrained(work / FOLDER, dtype=torch.float32).eval()
    return model, load_file(work / IDS)["ids"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    write_block(parser.parse_args().work)
