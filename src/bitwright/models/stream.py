"""Run a model block by block: what goes into the first block, one block alone, and what comes behind the last.

The way in general: run the model with every block replaced by a stub that writes down its arguments and returns its
hidden state unchanged. That costs only the layers outside the blocks and gives the exact arguments of every block for
every batch (masks of sliding and full attention, rotary tables), without knowing how they are made.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitwright.errors import InputError
from bitwright.models.calling import call_module
from bitwright.models.materialise import materialised
from bitwright.models.model import Model


@dataclass(frozen=True)
class Call:
    """The arguments of one block for one batch; the hidden state's place is ``slot`` (a position or a name)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot: int | str

    def filled(self, hidden: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with ``hidden`` put in its place."""
        args = tuple(hidden if i == self.slot else fresh(value) for i, value in enumerate(self.args))
        kwargs = {name: hidden if name == self.slot else fresh(value) for name, value in self.kwargs.items()}
        return args, kwargs


@dataclass(frozen=True)
class BatchCalls:
    """One batch: the hidden state that enters the first block, and the arguments of every block."""

    batch: Any
    hidden: torch.Tensor
    blocks: tuple[Call, ...]


class _Stop(Exception):
    """Leaves a run as soon as all that is wanted is known."""


@dataclass(frozen=True)
class BlockStream:
    """Block-wise execution of a model.

    ``returns``: items of each block's output tuple (0: a bare tensor); ``aside``: blocks that hand more than the hidden
    state to later ones, and where these items come from (:class:`bitwright.models.chain.Chain`).
    """

    model: Model
    blocks: tuple[str, ...]
    returns: tuple[int, ...]
    aside: tuple[tuple[int, tuple[int | str | None, ...]], ...] = ()

    def prefix_inputs(self, batches: Iterable[Any]) -> list[BatchCalls]:
        """The arguments of every block for every batch; only layers before and between the blocks are run.

        Raises:
            InputError: when the model does not call its blocks in order on a batch.
        """
        with torch.no_grad(), materialised(self.model):
            return [self._stubbed(batch) for batch in batches]

    def run_block(self, index: int, calls: BatchCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Call block ``index`` with its recorded arguments on ``hidden``; the new hidden state.

        The block's parameters may be loaded (:meth:`Model.load_unit`) or are read as they are used. Gradients flow if
        they are enabled.
        """
        args, kwargs = calls.blocks[index].filled(hidden)
        with materialised(self.model):
            return hidden_of(self.model.module.get_submodule(self.blocks[index])(*args, **kwargs))

    def run_suffix(self, calls: BatchCalls, hidden: torch.Tensor) -> Any:
        """The model's output when the last block gives ``hidden``; the layers before and behind the blocks are run."""
        last = len(self.blocks) - 1

        def stub(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                state = find_hidden(args, kwargs)[1]
                return self._structured(index, hidden if index == last else state, args, kwargs)

            return forward

        with materialised(self.model), _Patched(self, stub):
            return call_module(self.model.module, calls.batch)

    def _stubbed(self, batch: Any) -> BatchCalls:
        found: dict[int, Call] = {}
        first: list[torch.Tensor] = []

        def stub(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                place, state = find_hidden(args, kwargs)
                if index == 0:
                    first.append(state)
                # The stub's hidden state is no one's; a placeholder lets go of its memory.
                found[index] = Call(*Call(args, kwargs, place).filled(state.new_empty(0)), place)
                if index == len(self.blocks) - 1:
                    raise _Stop
                return self._structured(index, state, args, kwargs)

            return forward

        with _Patched(self, stub), contextlib.suppress(_Stop):
            call_module(self.model.module, batch)
        if list(found) != list(range(len(self.blocks))):
            raise InputError(f"the model called {len(found)} of its {len(self.blocks)} blocks; check the batch")
        return BatchCalls(batch, first[0], tuple(found[i] for i in range(len(self.blocks))))

    def _structured(self, index: int, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What block ``index`` returns when its hidden state is ``hidden``."""
        count = self.returns[index]
        places = dict(self.aside).get(index)
        if places is None:
            return (hidden, *[None] * (count - 1)) if count else hidden
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs.items())
        if places:
            return (hidden, *(None if place is None else given[place] for place in places[1:]))
        # It makes what later blocks read; that does not depend on the hidden state.
        block = self.model.module.get_submodule(self.blocks[index])
        made = type(block).forward(block, *args, **kwargs)
        return (hidden, *made[1:])


def find_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | str, torch.Tensor]:
    """Place and value of the hidden state: the first floating tensor among the arguments."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in given:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0:
            return place, value
    raise InputError("a block was called without a floating tensor; name the blocks by a rule")


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden state in a block's output: the tensor itself or the first tensor of a tuple or mapping."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise InputError("a block returned no floating tensor; name the blocks by a rule")


def logits_of(output: Any) -> torch.Tensor:
    """The logits of a model's output (``logits`` where it has them, else the first floating tensor)."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else hidden_of(output)


def fresh(value: Any) -> Any:
    """An argument as it was recorded: what a block could change in place (a cache) is copied for every call."""
    if value is None or isinstance(value, torch.Tensor | int | float | str):
        return value
    if type(value) in {list, tuple}:
        return type(value)(fresh(item) for item in value)
    if type(value) is dict:
        return {key: fresh(item) for key, item in value.items()}
    return copy.deepcopy(value)


class _Patched:
    """Replace the forward of every block by a stub while the context lasts."""

    def __init__(self, stream: BlockStream, stub: Callable[[int], Callable[..., Any]]) -> None:
        self._modules = [stream.model.module.get_submodule(path) for path in stream.blocks]
        self._stub = stub

    def __enter__(self) -> None:
        for index, block in enumerate(self._modules):
            block.__dict__["forward"] = self._stub(index)

    def __exit__(self, *error: Any) -> None:
        for block in self._modules:
            block.__dict__.pop("forward", None)
