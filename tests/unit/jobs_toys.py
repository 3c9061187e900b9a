"""A very small Llama on disk, stored token ids and what the tests of jobs and commands."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


def tiny_llama(layers: int = 2, tied: bool = False) -> LlamaForCausalLM:
    """A random Llama with grouped queries: hidden 32, MLP 48, vocabulary 64."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(requires_grad=False)


def save_model(folder: Path, model: LlamaForCausalLM) -> Path:
    """Write a checkpoint as two shards with an index."""
    folder.mkdir(parents=True)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def change_tensor(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Replace one tensor of a saved checkpoint."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    path = folder / index["weight_map"][name]
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def token_ids(sequences: int = 4, length: int = 16) -> Tensor:
    """Random ids, int64 ``[sequences, length]``."""
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(0))


def save_ids(path: Path, sequences: int = 4, length: int = 16) -> Path:
    """Write token ids where ``--data`` can read them."""
    save_file({"ids": token_ids(sequences, length)}, path)
    return path


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file under a folder, by its name."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def in_child(work: Callable[[], Any]) -> int:
    """Run ``work`` in a forked copy of this process (nothing is imported again) and return its exit status.

    0 when it returned, 3 when it raised, -9 when it was killed.
    """
    child = os.fork()
    if child == 0:
        status = 3
        try:
            # A forked child has none of its parent's worker threads.
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
