"""Small random batches that a model may accept, in the order in which they are worth a try."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]
ROWS, TOKENS = 2, 12


def batches(module: nn.Module, tokens: int = TOKENS, seed: int = 0) -> Iterator[Batch]:
    """Candidates, the plainest first: token ids, then with a decoder's ids, then what the main input's name says."""
    names = set(inspect.signature(module.forward).parameters)
    config: Any = module.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(getattr(text, "vocab_size", 0) or 0)
    generator = torch.Generator().manual_seed(seed)

    def ids() -> Tensor:
        return torch.randint(3, max(4, min(vocabulary, 100)), (ROWS, tokens), generator=generator)

    main = str(getattr(module, "main_input_name", "input_ids"))
    if vocabulary and "input_ids" in names:
        batch: Batch = {"input_ids": ids()}
        if "decoder_input_ids" in names:
            yield {**batch, "decoder_input_ids": ids()}
        yield batch
        if "attention_mask" in names:
            yield {**batch, "attention_mask": torch.ones(ROWS, tokens, dtype=torch.long)}
    elif main == "pixel_values":
        yield {main: _pixels(config, generator)}


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    size, channels = getattr(config, "image_size", 32), getattr(config, "num_channels", 3)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(ROWS, int(channels), int(height), int(width), generator=generator)
