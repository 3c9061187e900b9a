"""Pieces of the zoo's language-model training: the lean forward pass, the optimizer and the token windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

BOS = "<|bos|>"
BOS_ID = 0
WINDOW = 512


def make_config(layers: int, mlp: int, vocab: int = 1024) -> LlamaConfig:
    """The architecture: hidden size 128, 4 query and 2 key/value heads of 32, tied embeddings."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        pad_token_id=None,
        attention_bias=False,
        mlp_bias=False,
    )


class LeanLlama(nn.Module):
    """The same function as `model`, without caches and masks, for windows of one fixed length.

    Holds no weights of its own: it reads the parameters of the LlamaForCausalLM it wraps, so what is trained is
    exactly what is saved.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: LlamaForCausalLM, length: int = WINDOW) -> None:
        super().__init__()
        self.model = model
        self.eps = model.config.rms_norm_eps
        dim = model.config.head_dim
        frequency = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
        self.register_buffer("cos", torch.cat((angle, angle), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angle, angle), -1).sin(), persistent=False)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), weight, self.eps)

    def _rotate(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        a, b = x.chunk(2, -1)
        turned = torch.cat((-b, a), -1)
        return (x * self.cos[:length] + turned * self.sin[:length]).to(x.dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention written out: with heads this narrow it costs half as much as the fused CPU kernel.

        The two query heads of one key head are stacked along the length, which makes one larger product of them.
        """
        batch, heads, length, dim = q.shape
        q = q.reshape(batch, 2, 2 * length, dim) * dim**-0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1).repeat(2, 1)
        weights = (q @ k.mT).float().masked_fill(later, float("-inf")).softmax(-1)
        return (weights.to(v.dtype) @ v).view(batch, heads, length, dim)

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits `[batch, length, vocab]` of token ids `[batch, length]`."""
        batch, length = ids.shape
        net = self.model.model
        x = F.embedding(ids, net.embed_tokens.weight)
        for layer in net.layers:
            att = layer.self_attn
            h = self._norm(x, layer.input_layernorm.weight)
            qkv = F.linear(h, torch.cat((att.q_proj.weight, att.k_proj.weight, att.v_proj.weight)))
            qkv = qkv.view(batch, length, 8, 32).transpose(1, 2)
            q = self._rotate(qkv[:, :4])
            k = self._rotate(qkv[:, 4:6])
            mixed = self._attend(q, k, qkv[:, 6:])
            x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, 128), att.o_proj.weight)
            h = self._norm(x, layer.post_attention_layernorm.weight)
            gate, up = F.linear(h, torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight))).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight)
        return F.linear(self._norm(x, net.norm.weight), net.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Mean negative log likelihood (nats per token) of every token after the first."""
        logits = self.logits(ids)[:, :-1].float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of each matrix of a stack `[n, rows, cols]` towards 1 (quintic Newton-Schulz)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum with orthogonalized updates for the weight matrices, decoupled weight decay.

    Matrices of one shape are stepped as one stack, because each of them alone is too small to fill a core.
    """

    def __init__(self, params: list[nn.Parameter], momentum: float = 0.95, decay: float = 0.05) -> None:
        self.momentum = momentum
        self.decay = decay
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.buffers = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update; `lr` is on AdamW's scale (the update's root mean square is 0.2 lr)."""
        for shape, params in self.groups.items():
            grad = torch.stack([p.grad for p in params if p.grad is not None])
            buffer = self.buffers[shape]
            buffer.lerp_(grad, 1 - self.momentum)
            update = orthogonalize(grad.lerp(buffer, self.momentum)) * (0.2 * max(shape) ** 0.5)
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - lr * self.decay).add_(u, alpha=-lr)

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum buffers by shape."""
        return {str(shape): buffer for shape, buffer in self.buffers.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for shape, buffer in self.buffers.items():
            buffer.copy_(state[str(shape)])


class Windows:
    """Training windows: bos followed by 511 tokens of the stream, in a seeded order that is new in every epoch."""

    def __init__(self, stream: NDArray[Any], seed: int) -> None:
        body = WINDOW - 1
        self.count = len(stream) // body
        self.table = stream[: self.count * body].reshape(self.count, body)
        self.seed = seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def batch(self, first: int, size: int) -> Tensor:
        """Windows number `first` to `first + size` of the endless sequence, int64 `[size, 512]`."""
        rows = []
        for n in range(first, first + size):
            epoch, place = divmod(n, self.count)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            rows.append(self.table[self._order[place]])
        ids = torch.full((size, WINDOW), BOS_ID, dtype=torch.int64)
        ids[:, 1:] = torch.from_numpy(np.stack(rows).astype(np.int64))
        return ids


def window_length(progress: float) -> int:
    """Tokens in a training window at `progress` (0 to 1) of the budget.

    Attention over 512 tokens costs more than everything else in a model this narrow, and most of what it learns early
    needs no long context.
    """
    if progress < 0.80:
        return 128
    return 256 if progress < 0.90 else WINDOW


def shorten(windows: Tensor, length: int) -> Tensor:
    """Cut windows `[n, 512]` into `[n * 512 / length, length]`, the first token of each replaced by bos."""
    ids = windows.reshape(-1, length).clone()
    ids[:, 0] = BOS_ID
    return ids


def learning_rate(tokens: float, *, peak: float, warmup: float, decay_start: float, total: float) -> float:
    """Warm-up, constant, then linear decay to zero between `decay_start` and `total` (all in tokens seen)."""
    if tokens < warmup:
        return peak * tokens / warmup
    if tokens < decay_start:
        return peak
    return peak * max(0.0, (total - tokens) / max(1.0, total - decay_start))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that an interruption leaves either the old file or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
