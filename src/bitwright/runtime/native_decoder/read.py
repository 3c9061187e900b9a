"""From a model to the plan of its compiled step, by experiment: nothing is decided by the names of classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.runtime.embedding import QuantEmbedding
from bitwright.runtime.native_decoder.blocks import find_chain, holds_weights, read_block
from bitwright.runtime.native_decoder.loud import louder_trace
from bitwright.runtime.native_decoder.parts import as_matrix, as_norm
from bitwright.runtime.native_decoder.plan import LayerPart, MatrixPart, NormPart, NotServedError, Plan
from bitwright.runtime.native_decoder.rotary import tables
from bitwright.runtime.native_decoder.trace import Call, Trace, distance, factor_between, same, trace

LONGEST = 1 << 17
"""Most positions that tables of angles are made for."""
_NEAR = 2e-4


def read_plan(model: nn.Module) -> Plan:
    """Experiment with a causal language model and say what its step does.

    Raises:
        NotServedError: where the compiled step has no form for something.
    """
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise NotServedError("it is no causal language model with a vocabulary")
    if any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())):
        raise NotServedError("its weights are not in main memory")
    _check_layers(config)
    found = trace(model)
    context = min(LONGEST, int(getattr(config, "max_position_embeddings", None) or LONGEST))
    embedding_call, embedding = _embedding(found)
    entry, factor = _entry(found, embedding_call)
    chain = find_chain(found, entry)
    rotaries = tables(found, context)
    read = tuple(
        read_block(found, call, layer, rotaries) for call, layer in zip(chain, _cache_layers(found, chain), strict=True)
    )
    final_norm, head = _ending(found, chain[-1])
    loud, layers = louder_trace(model, found, read, final_norm)
    logit_factor, cap = _logits(loud, head)
    _check_complete(model, embedding, layers, final_norm, head)
    keys = _cache_layers(found, chain)[0].keys
    return Plan(
        hidden=entry.shape[-1],
        vocabulary=head.shape[0],
        heads=layers[0].output.shape[1] // keys.shape[-1],
        kv_heads=keys.shape[1],
        head_dim=keys.shape[-1],
        context=context,
        embedding=embedding,
        embedding_factor=factor,
        layers=layers,
        final_norm=final_norm,
        head=head,
        logit_factor=logit_factor,
        logit_cap=cap,
    )


def _check_layers(config: Any) -> None:
    """Layers that keep something else than all keys and values, or a window of them, are not served."""
    kinds = getattr(config, "layer_types", None) or ()
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise NotServedError(f"layers of the kind {kind} are not served")


def _cache_layers(found: Trace, chain: list[Call]) -> list[Any]:
    layers = [layer for layer in getattr(found.cache, "layers", ()) if isinstance(getattr(layer, "keys", None), Tensor)]
    if len(layers) != len(chain):
        raise NotServedError(f"{len(chain)} blocks do not fit a cache of {len(layers)} layers")
    if len({layer.keys.shape[1::2] for layer in layers}) != 1:
        raise NotServedError("its layers have different numbers of heads")
    return layers


def _embedding(found: Trace) -> tuple[Call, MatrixPart]:
    for call in found.calls:
        given = call.inputs[0] if call.inputs else None
        if call.leaf and given is not None and not given.is_floating_point() and torch.equal(given, found.ids):
            module = call.module
            if isinstance(module, QuantEmbedding):
                return call, MatrixPart(call.path, module, module.shape, None, None)
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 2:
                return call, MatrixPart(call.path, module, (weight.shape[0], weight.shape[1]), weight.detach(), None)
    raise NotServedError("no embedding of the tokens was found")


def _entry(found: Trace, embedding: Call) -> tuple[Tensor, float]:
    """What the first block is given, and its size beside the rows of the table."""
    made = embedding.y
    assert made is not None
    module = embedding.module
    weight = None if isinstance(module, QuantEmbedding) else module.get_parameter("weight").detach()
    rows = made if weight is None else functional.embedding(found.ids, weight)
    for call in found.calls:
        x = call.x
        if call.leaf or call.enter < embedding.exit or x is None or x.shape != made.shape:
            continue
        factor = factor_between(rows, x, _NEAR)
        if factor is None:
            raise NotServedError("the blocks are given more than the tokens' embedding")
        return x, factor
    raise NotServedError("no block reads the embedding")


def _ending(found: Trace, last: Call) -> tuple[NormPart, MatrixPart]:
    """The norm and the head behind the last block."""
    for norm_call in found.calls:
        norm = as_norm(norm_call) if norm_call.enter > last.exit and same(norm_call.x, last.y) else None
        if norm is None:
            continue
        for call in found.calls:
            matrix = as_matrix(call) if call.enter > norm_call.exit and same(call.x, norm_call.y) else None
            if matrix is not None and call.y is not None:
                return norm, matrix
    raise NotServedError("no norm and head were found behind the blocks")


def _logits(loud: Trace, head: MatrixPart) -> tuple[float, float]:
    """(factor, cap) with ``logits = cap * tanh(factor * made / cap)``; a cap of 0 is none."""
    made = next(call.y for call in loud.calls if call.path == head.path)
    if made is None or made.numel() != loud.logits.numel():
        raise NotServedError("the logits are not the head's output")
    factor = factor_between(made, loud.logits, _NEAR)
    if factor is not None:
        return factor, 0.0
    x, y = made.double().reshape(-1), loud.logits.double().reshape(-1)
    at = int(y.abs().argmax())
    low, high = float(y.abs().max()), 1e6
    for _ in range(100):  # the cap at which the largest logit fits; the others prove it
        cap = (low * high) ** 0.5
        low, high = (cap, high) if float((cap * torch.tanh(x[at] / cap)).abs()) < float(y[at].abs()) else (low, cap)
    if distance(cap * torch.tanh(x / cap), y) > _NEAR:
        raise NotServedError("the logits do not follow from the head's output by a factor or a cap")
    return 1.0, cap


def _check_complete(
    model: nn.Module, embedding: MatrixPart, layers: tuple[LayerPart, ...], norm: NormPart, head: MatrixPart
) -> None:
    known = (embedding.path, norm.path, head.path)
    for name, module in model.named_modules():
        inside = any(name == layer.path or name.startswith(f"{layer.path}.") for layer in layers)
        if not inside and name not in known and holds_weights(module):
            raise NotServedError(f"{name or 'the model'} has parameters that were not recognised")
