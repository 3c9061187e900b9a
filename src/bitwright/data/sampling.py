"""Calibration text that the model writes itself (as in LLM-QAT, Liu et al. 2023, arXiv:2305.17888, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.data.seeds import stream
from bitwright.data.tokens import TokenData, token_data
from bitwright.errors import InputError


def self_generated(
    module: nn.Module,
    begin: int,
    sequences: int = 128,
    length: int = 512,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 64,
    end: int | None = None,
) -> TokenData:
    """Sample sequences from a causal language model of transformers, starting from the token ``begin``.

    Plain sampling from the model's own distribution (no truncation). After the token ``end`` the sequence starts anew
    with ``begin`` (where the two are one token, that has already happened). Each sequence has its own random stream,
    so the batch size does not choose the numbers drawn.

    Raises:
        InputError: if the logits are not finite or the sizes are not positive.
    """
    if sequences < 1 or length < 2 or temperature <= 0:
        raise InputError("sampling needs at least 1 sequence, 2 tokens and a positive temperature; raise them")
    rows: list[Tensor] = []
    was_training = module.training
    module.eval()
    try:
        for start in range(0, sequences, batch_size):
            names = range(start, min(start + batch_size, sequences))
            draws = torch.stack([torch.rand(length, generator=stream(seed, "self", str(i))) for i in names])
            rows += list(_sample(module, draws, begin, end, temperature))
    finally:
        module.train(was_training)
    protocol = f"{sequences} x {length} tokens sampled from the model itself, temperature {temperature}, seed {seed}"
    return token_data(rows, "self", protocol)


@torch.no_grad()
def _sample(module: nn.Module, draws: Tensor, begin: int, end: int | None, temperature: float) -> Tensor:
    """Sample ``[batch, length]`` ids by inverting the cumulative distribution at ``draws`` (uniform, same shape)."""
    batch, length = draws.shape
    device = next(module.parameters()).device
    ids = torch.full((batch, length), begin, dtype=torch.int64)
    cache = None
    for position in range(length - 1):
        step = ids[:, position : position + 1].to(device)
        output = module(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1].float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the model's logits are not finite, so nothing can be sampled; check its weights")
        cumulative = torch.softmax(logits / temperature, -1).double().cumsum(-1)
        point = draws[:, position + 1 : position + 2].double() * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]
        if end is not None and end != begin:
            token = torch.where(ids[:, position] == end, torch.full_like(token, begin), token)
        ids[:, position + 1] = token
    return ids
