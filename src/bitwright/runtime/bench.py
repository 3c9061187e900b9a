"""Speed of a language model beside what the machine's memory allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.evaluation.speed import decoder_speed, generation_speed
from bitwright.machine import read_bandwidth
from bitwright.runtime.module import QuantModule, describe
from bitwright.runtime.native_decoder import find_decoders


def bench(
    model: nn.Module,
    prompt: int = 128,
    new_tokens: int = 64,
    repeats: int = 3,
    seed: int = 0,
    bandwidth: float | None = None,
    native: bool = True,
) -> dict[str, Any]:
    """Measure greedy generation at batch 1 and relate it to the bytes that every token must read.

    ``bandwidth_share`` is ``tokens_per_second * bytes_per_token`` over the measured read bandwidth (bytes per second;
    measured here when not given): 1 is the limit of a machine that does nothing but read the weights. ``decoder`` is
    ``native`` (the compiled step, which ``native`` allows where it is proved) or ``modules``; ``decoder_reason`` says
    why not the former.

    Raises:
        InputError: if the model is no causal language model, a size is not positive, or the tokens exceed the context.
    """
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise InputError("speed is measured on causal language models of transformers; this module has no vocabulary")
    context = getattr(model.config, "max_position_embeddings", None)
    if isinstance(context, int) and prompt + new_tokens > context:
        raise InputError(f"{prompt} and {new_tokens} tokens do not fit the context of {context}; give fewer")
    found = find_decoders(model) if native else None
    if found is not None and found.network is not None:
        speed = decoder_speed(found.decoders(), vocabulary, prompt, new_tokens, repeats, seed)
        size = found.network.bytes_per_token
        kernels = sorted({name for name in found.network.kernels.values() if name != "shared"})
    else:
        factory = getattr(model, "bitwright_cache_factory", None)
        speed = generation_speed(
            model, vocabulary, prompt=prompt, new_tokens=new_tokens, repeats=repeats, seed=seed, cache_factory=factory
        )
        size = bytes_per_token(model)
        kernels = sorted({served.kernel for served in describe(model, _dtype(model), rows=1)})
    measured = read_bandwidth() if bandwidth is None else bandwidth
    return {
        "tokens_per_second": speed.tokens_per_second,
        "prefill_tokens_per_second": speed.prefill_tokens_per_second,
        "bytes_per_token": size,
        "bandwidth_bytes_per_second": measured,
        "bandwidth_share": speed.tokens_per_second * size / measured,
        "threads": speed.threads,
        "decoder": "native" if found is not None and found.native else "modules",
        "decoder_reason": "it was not asked for" if found is None else found.reason,
        "decoder_error": None if found is None else found.error,
        "kernels": kernels,
        "protocol": f"{speed.protocol}; bytes are those of the stored weights",
    }


def bytes_per_token(model: nn.Module) -> int:
    """Bytes of weights that a decoded token reads: everything once, of embedding tables only a row.

    A table that a head shares is read whole. A weight that is kept dequantized counts with its float size.
    """
    seen: set[int] = set()
    total = 0
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) or _op(m) == "embedding"]
    for module in model.modules():
        if module in tables:
            continue
        if isinstance(module, QuantModule) and module.cache_weights and module.weight_meta is not None:
            total += module.shape[0] * module.shape[1] * module.dtype.itemsize
            total += 0 if module.bias is None else module.bias.nbytes
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                total += tensor.nbytes
    for table in tables:
        tensors = [t for t in (*table.parameters(), *table.buffers()) if id(t) not in seen]
        rows = table.shape[0] if isinstance(table, QuantModule) else int(getattr(table, "num_embeddings", 1))
        total += sum(t.nbytes for t in tensors) // max(rows, 1)
    return total


def _op(module: nn.Module) -> str:
    return module.op if isinstance(module, QuantModule) else ""


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
