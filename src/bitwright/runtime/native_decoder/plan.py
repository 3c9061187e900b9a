"""What the compiled step does, as values: found by experiment, handed to compiled code by :mod:`.build`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bitwright.runtime.dispatch import Table

ACTIVATIONS = ("none", "silu", "gelu_tanh", "gelu_erf", "relu", "relu_squared", "gelu_sigmoid")
"""Functions behind the gate, by their numbers in compiled code."""


PLACED = frozenset(
    f"linear/native{way}" for way in ("", "-int8", "-int8-terms", "-lookup", "-bf16", "-ternary")
)
"""Kernels whose prepared weights have a place in the compiled step, unless there are terms beside the codes."""


def placed(table: Table) -> Table:
    """The kernels of a table that the compiled step chooses from: it does not read the layouts of the others."""
    return Table(tuple(kernel for kernel in table.kernels if kernel.name in PLACED))


class NotServedError(Exception):
    """The compiled step cannot express a network; the message says what."""


@dataclass(frozen=True, eq=False)
class NormPart:
    """``gain * x / sqrt(mean(x^2) + eps) + shift``; ``centred``: of x less its mean. ``gain[dim]`` in fp32."""

    path: str
    gain: Tensor
    shift: Tensor | None
    eps: float
    centred: bool


@dataclass(frozen=True, eq=False)
class MatrixPart:
    """A linear layer: a module on packed weights, or a float matrix ``weight[out, in]`` with ``bias[out]``."""

    path: str
    module: nn.Module
    shape: tuple[int, int]
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class RotaryPart:
    """Angles ``cosine, sine [positions, planes]``; channels are turned in pairs (i, i + planes) or (2i, 2i + 1)."""

    cosine: Tensor
    sine: Tensor
    interleaved: bool


@dataclass(frozen=True)
class Slot:
    """Channels ``[at, ...)`` of the output of matrix number ``matrix`` of a group."""

    matrix: int
    at: int


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """Queries, keys and values, and how they meet.

    A head has ``head`` channels, all key heads together ``width``. Scores are ``cap * tanh(scale * q k / cap)``, with a
    cap of 0 ``scale * q k``; ``window`` 0: a token sees all others.
    """

    group: tuple[MatrixPart, ...]
    query: Slot
    key: Slot
    value: Slot
    head: int
    width: int
    query_norm: NormPart | None
    key_norm: NormPart | None
    rotary: RotaryPart | None
    scale: float
    window: int
    cap: float = 0.0


@dataclass(frozen=True, eq=False)
class FeedPart:
    """``down(activation(gate) * up)``; without ``up``: ``down(activation(gate))``."""

    group: tuple[MatrixPart, ...]
    gate: Slot
    up: Slot | None
    activation: str
    down: MatrixPart


@dataclass(frozen=True, eq=False)
class LayerPart:
    """One block: ``x += factor * norm(output(attention(norm(x))))``, then the same with the feed part."""

    path: str
    norm: NormPart
    attention: AttentionPart
    output: MatrixPart
    output_norm: NormPart | None
    output_factor: float
    feed_norm: NormPart
    feed: FeedPart
    down_norm: NormPart | None
    down_factor: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole network; ``logits = cap * tanh(factor * head / cap)``, without a cap ``factor * head``."""

    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    embedding: MatrixPart
    embedding_factor: float
    layers: tuple[LayerPart, ...]
    final_norm: NormPart
    head: MatrixPart
    logit_factor: float
    logit_cap: float
