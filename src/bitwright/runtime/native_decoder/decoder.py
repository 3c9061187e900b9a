"""A decoder over a compiled network: one call of compiled code for a prompt or a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.native import extension
from bitwright.native.buffers import span
from bitwright.runtime.decoder import PIECE
from bitwright.runtime.native_decoder.build import NativeNetwork
from bitwright.runtime.native_decoder.cache import CacheForm


class NativeDecoder:
    """One sequence; keeps the contract of :class:`bitwright.runtime.decoder.Decoder`.

    Args:
        network: what is run; decoders share it.
        cache: how keys and values are kept; ``None``: as the network's model keeps them.
        threads: threads of a step; ``None``: as many as torch uses at the time of the call.
    """

    def __init__(self, network: NativeNetwork, cache: CacheForm | None = None, threads: int | None = None) -> None:
        self._network = network
        self._cache = network.cache if cache is None else cache
        self._threads = threads
        self._reader: Any = None

    @property
    def context(self) -> int | None:
        """Positions that there are angles for."""
        return self._network.plan.context

    @property
    def piece(self) -> int | None:
        """Given where pieces of a prompt give what the whole prompt gives."""
        return PIECE if self._cache.plain else None

    @property
    def tokens(self) -> int:
        """Tokens in the cache."""
        return 0 if self._reader is None else int(self._reader.tokens)

    def start(self, ids: Sequence[int]) -> Tensor:
        """Begin a new sequence; see :class:`bitwright.runtime.decoder.Decoder`."""
        if self._reader is not None:
            self._reader.crop(0)
        return self.extend(ids)

    def extend(self, ids: Sequence[int]) -> Tensor:
        """Read more tokens.

        Raises:
            InputError: for no tokens, one that is not in the vocabulary, or more than fit.
        """
        plan = self._network.plan
        if not ids:
            raise InputError("there are no tokens to read; give at least one")
        if self.tokens + len(ids) > plan.context:
            raise InputError(f"{self.tokens + len(ids)} tokens do not fit the context of {plan.context}; give fewer")
        if self._reader is None:
            try:
                self._reader = extension().Reader(self._network.handle, *self._cache.arguments())
            except ValueError as error:
                raise InputError(f"this cache has no compiled form: {error}") from error
        tokens = torch.tensor(list(ids), dtype=torch.int64)
        logits = torch.empty(plan.vocabulary)
        threads = torch.get_num_threads() if self._threads is None else self._threads
        try:
            self._reader.read(span(tokens), span(logits), threads)
        except ValueError as error:
            raise InputError(f"tokens cannot be read: {error}") from error
        return logits

    def step(self, token: int) -> Tensor:
        """Read one token."""
        return self.extend([token])

    @staticmethod
    def step_together(decoders: Sequence[NativeDecoder], tokens: Sequence[int]) -> Tensor | None:
        """Read one token behind each of several sequences; ``logits[decoders, vocabulary]``.

        Every sequence gets the bits that :meth:`step` would give it. ``None`` where they cannot take a step together:
        they are of different networks, one is empty, or one has other threads. Then none of them has read anything.

        Raises:
            InputError: for a token that is not in the vocabulary, or a full context; what the sequences hold is then
                what they held before where their caches can go back, else nothing.
        """
        first = decoders[0]
        if any(d._network is not first._network or d._threads != first._threads for d in decoders):
            return None
        if not all(d.tokens for d in decoders):
            return None
        ids = torch.tensor(list(tokens), dtype=torch.int64)
        logits = torch.empty(len(decoders), first._network.plan.vocabulary)
        threads = torch.get_num_threads() if first._threads is None else first._threads
        try:
            extension().read_together([d._reader for d in decoders], span(ids), span(logits), threads)
        except ValueError as error:
            raise InputError(f"tokens cannot be read: {error}") from error
        return logits

    def crop(self, tokens: int) -> int:
        """Go back to the first tokens; to nothing where tokens are coded together or late."""
        if tokens <= 0 or (tokens < self.tokens and not self._cache.plain):
            self._reader = None
        elif self._reader is not None:
            self._reader.crop(tokens)
        return self.tokens

    def bytes(self) -> int:
        """Bytes of the cache and of the memory of a step."""
        return 0 if self._reader is None else int(self._reader.bytes())
