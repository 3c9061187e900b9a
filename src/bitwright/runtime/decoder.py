"""One sequence that a causal language model reads and continues: what callers need of any implementation.

:class:`Decoder` is the contract; :class:`ModuleDecoder` keeps it with a model of transformers and that model's cache.
A compiled decoder keeps the same contract and takes its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitwright.errors import InputError

PIECE = 256
"""Tokens of a prompt that a module reads in one call where it may be given in pieces."""


class Decoder(Protocol):
    """The state of one sequence. It is used by one thread at a time; two decoders of a model share its weights only.

    ``context``: most tokens that a sequence may have, ``None`` where there is no limit.
    ``piece``: a caller that may want to stop should give a prompt in pieces of this many tokens; ``None`` where the
    pieces would change the result, so that a prompt must be given at once.
    """

    @property
    def context(self) -> int | None: ...

    @property
    def piece(self) -> int | None: ...

    @property
    def tokens(self) -> int:
        """Tokens that the state holds."""
        ...

    def start(self, ids: Sequence[int]) -> Tensor:
        """Forget everything, read ``ids`` (at least one), and return ``logits[vocabulary]``, fp32 on the CPU."""
        ...

    def extend(self, ids: Sequence[int]) -> Tensor:
        """Read ``ids`` (at least one) behind what was read, and return the logits after the last of them."""
        ...

    def step(self, token: int) -> Tensor:
        """Read one token: ``extend([token])``, on the fast path."""
        ...

    def crop(self, tokens: int) -> int:
        """Go back to the first ``tokens`` tokens; return how many are really left.

        Fewer are left where the state cannot go back exactly: 0 then. What is left is as if nothing had been read
        behind it. ``crop(0)`` forgets everything and gives the memory back.
        """
        ...

    def bytes(self) -> int:
        """Bytes that the state takes beside the weights."""
        ...


Decoders = Callable[[], Decoder]
"""Makes an empty decoder of one model; they share its weights."""


MOST_TOGETHER = 64
"""Sequences that take one step together."""


def step_together(decoders: Sequence[Decoder], tokens: Sequence[int]) -> list[Tensor | Exception]:
    """Read one token behind each of several sequences: the logits of each, or the error that it met.

    Decoders of one kind that has a ``step_together`` of its own read their weights once for all; others take one step
    after the other. Either way a sequence gets what its own ``step`` would give it.
    """
    kind = type(decoders[0]) if decoders else None
    shared = getattr(kind, "step_together", None)
    if shared is None or len(decoders) == 1 or any(type(decoder) is not kind for decoder in decoders):
        return [_stepped(decoder, token) for decoder, token in zip(decoders, tokens, strict=True)]
    found: list[Tensor | Exception] = []
    for start in range(0, len(decoders), MOST_TOGETHER):
        some, their = decoders[start : start + MOST_TOGETHER], tokens[start : start + MOST_TOGETHER]
        try:
            logits = shared(some, their)
        except Exception as error:
            found += [error] * len(some)
            continue
        found += [_stepped(d, t) for d, t in zip(some, their, strict=True)] if logits is None else list(logits)
    return found


def _stepped(decoder: Decoder, token: int) -> Tensor | Exception:
    try:
        return decoder.step(token)
    except Exception as error:
        return error


class ModuleDecoder:
    """A decoder over a causal language model of transformers, quantized or not, with the cache that it makes itself.

    Raises:
        InputError: if the model cannot continue a text.
    """

    def __init__(self, model: nn.Module) -> None:
        config = getattr(model, "config", None)
        if config is None:
            raise InputError(f"{type(model).__name__} is no language model (it has no vocabulary); give one that is")
        can_generate = getattr(model, "can_generate", None)
        if getattr(config, "is_encoder_decoder", False) or (callable(can_generate) and not can_generate()):
            raise InputError(f"{type(model).__name__} is no causal language model; give one that continues a text")
        self._model = model
        self._device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        limit = getattr(config, "max_position_embeddings", None)
        self._context = limit if isinstance(limit, int) else None
        self._piece = PIECE if _plain_attention(model, config) else None
        self._cache: Any = None
        self._tokens = 0

    @property
    def context(self) -> int | None:
        """Positions of the model."""
        return self._context

    @property
    def piece(self) -> int | None:
        """Given where every layer keeps all keys and values; not where earlier tokens are rounded or merged."""
        return self._piece

    @property
    def tokens(self) -> int:
        """Tokens in the cache."""
        return self._tokens

    def start(self, ids: Sequence[int]) -> Tensor:
        """Begin a new sequence; see :class:`Decoder`."""
        self.crop(0)
        return self.extend(ids)

    def extend(self, ids: Sequence[int]) -> Tensor:
        """Read more tokens; an error on the way leaves an empty state.

        Raises:
            InputError: for no tokens, or more than fit.
        """
        if not ids:
            raise InputError("there are no tokens to read; give at least one")
        if self._context is not None and self._tokens + len(ids) > self._context:
            raise InputError(f"{self._tokens + len(ids)} tokens do not fit the context of {self._context}; give fewer")
        options: dict[str, Any] = dict(self._options)
        if self._cache is not None:
            options[self._cache_name] = self._cache
        read, self._tokens, self._cache = self._tokens, 0, None
        with torch.no_grad():
            output = self._model(input_ids=torch.tensor([list(ids)], device=self._device), use_cache=True, **options)
        self._cache, self._tokens = getattr(output, self._cache_name), read + len(ids)
        logits: Tensor = output.logits[0, -1]
        return logits.float().cpu()

    def step(self, token: int) -> Tensor:
        """Read one token."""
        return self.extend([token])

    def crop(self, tokens: int) -> int:
        """Go back; to nothing where the cache cannot forget the last tokens without a trace."""
        if self._piece is None or tokens <= 0:
            tokens = 0
        elif tokens >= self._tokens:
            return self._tokens
        else:
            try:
                self._cache.crop(tokens - self._tokens)
            except RuntimeError:  # a sliding window that has moved on
                tokens = 0
        if tokens == 0:
            self._cache = None
        self._tokens = tokens
        return tokens

    def bytes(self) -> int:
        """Bytes of the tensors in the cache."""
        counted = getattr(self._cache, "bytes", None)
        if callable(counted):
            return int(counted())
        layers = getattr(self._cache, "layers", ())
        return sum(_bytes(value) for layer in layers for value in vars(layer).values())


def module_decoders(model: nn.Module) -> Decoders:
    """Decoders of a model of transformers.

    Raises:
        InputError: as :class:`ModuleDecoder`; the first one is made here, so that errors come early.
    """
    ModuleDecoder(model)
    return lambda: ModuleDecoder(model)


def _plain_attention(model: nn.Module, config: Any) -> bool:
    """Whether every layer keeps each token's keys and values by themselves, so that pieces and crops are exact."""
    factory = getattr(model, "bitwright_cache_factory", None)
    if factory is not None:
        return bool(factory().is_croppable)
    try:
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        cache = DynamicCache(config=config)
    except Exception:  # no model of transformers, or one whose cache its config does not describe
        return False
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    return bool(cache.layers) and all(type(layer) in known for layer in cache.layers)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
