"""The diagonal empirical Fisher information of weights: how much the loss feels each of them.

To second order the loss rises by ``1/2 sum_ij F_ij d_ij^2`` when the weight changes by ``d``, with the Hessian's
diagonal replaced by the mean squared gradient ``F`` over sequences (SqueezeLLM, Kim et al. 2023, arXiv:2306.07629,
equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitwright.errors import InputError, nearest_key
from bitwright.statistics.base import Prefix, View

Batch = Any
Loss = Callable[[nn.Module, Batch], Tensor]


class FisherCollector:
    """Mean of squared gradients of one weight; its records are gradients, not inputs."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def update(self, x: Tensor, twin: Tensor | None = None) -> None:
        """Take the gradient ``x`` of one sequence, in the shape of the weight."""
        square = x.detach().float().square()
        self.total = square if self.total is None else self.total.add_(square)
        self.count += 1

    def merge(self, other: FisherCollector) -> None:
        """Combine; equal to one pass up to rounding of the sum."""
        if other.total is not None:
            self.total = other.total.clone() if self.total is None else self.total + other.total
        self.count += other.count

    def result(self) -> Tensor:
        """Return the mean, in the shape of the weight.

        Raises:
            InputError: if no gradient was seen.
        """
        if self.total is None:
            raise InputError("a weight got no gradient from the loss; it is not part of what the model computes")
        return self.total / self.count


@dataclass(frozen=True)
class Fisher:
    """Mean squared gradient of the task loss by the weight, ``[out, in]``, over at most ``samples`` sequences.

    It needs the float model in memory and one backward pass per sequence (:func:`accumulate_fisher`).
    """

    samples: int = 128
    prefix: Prefix = "float"
    reads_twin: bool = False
    view: View = "columns"
    reads: Literal["weight gradient"] = "weight gradient"

    def open(self, dim: int) -> FisherCollector:
        """Start collecting; ``dim`` is not needed."""
        return FisherCollector()

    def memory_bytes(self, dim: int) -> int:
        """Bytes held per row of the weight."""
        return 4 * dim


def next_token_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of every token given the ones before it; ``batch`` holds ``input_ids[batch, length]``.

    Positions whose ``attention_mask`` is 0 are not predicted.
    """
    output = module(**batch)
    logits = output if isinstance(output, Tensor) else output.logits
    targets = batch["input_ids"][:, 1:]
    mask = batch.get("attention_mask")
    if mask is not None:
        targets = targets.masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def accumulate_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    paths: Sequence[str],
    loss_fn: Loss | None = None,
    samples: int | None = None,
    idle: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the diagonal empirical Fisher of the weights at ``paths``, each in the shape of its weight, fp32.

    Args:
        model: float model in memory; its parameters' ``requires_grad`` and mode are as before afterwards.
        batches: inputs of ``loss_fn``, tensors or mappings of tensors with sequences along the first axis. They are
            cut into single sequences, because the mean must be of squares, not the square of a mean.
        paths: module paths whose ``weight`` is meant.
        loss_fn: ``loss_fn(model, batch)`` returns a scalar; :func:`next_token_loss` by default.
        samples: at most so many sequences are read.
        idle: paths that may get no gradient (experts without tokens); they are then left out.

    Memory: one accumulator per weight, and one gradient at a time: it is squared and dropped as soon as it is ready.

    Raises:
        InputError: for an unknown path, no sequence, or a weight that the loss does not depend on.
    """
    loss_fn = loss_fn or next_token_loss
    weights = {path: _weight(model, path) for path in paths}
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    collectors: dict[nn.Parameter, FisherCollector] = {weight: FisherCollector() for weight in weights.values()}
    handles = []
    try:
        model.eval()
        for parameter in before:
            parameter.requires_grad_(parameter in collectors)
        handles = [weight.register_post_accumulate_grad_hook(_collect(collectors)) for weight in collectors]
        _run(model, batches, loss_fn, samples)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
        model.train(training)
    wanted = {p: collectors[w] for p, w in weights.items() if p not in idle or collectors[w].count}
    return {path: collector.result() for path, collector in wanted.items()}


def _weight(model: nn.Module, path: str) -> nn.Parameter:
    modules = dict(model.named_modules(remove_duplicate=False))
    weight = getattr(modules.get(path), "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise InputError(f"the model has no weight at {path!r}; {nearest_key(path, modules)}")
    return weight


def _collect(collectors: dict[nn.Parameter, FisherCollector]) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        collectors[parameter].update(parameter.grad)
        parameter.grad = None

    return hook


def _run(model: nn.Module, batches: Iterable[Batch], loss_fn: Loss, samples: int | None) -> None:
    seen = 0
    for batch in batches:
        for sequence in _single_sequences(batch):
            if samples is not None and seen >= samples:
                return
            with torch.enable_grad():
                loss = loss_fn(model, sequence)
            if not loss.requires_grad:
                raise InputError("no weight that was asked for gets a gradient from the loss")
            loss.backward()  # type: ignore[no-untyped-call]
            seen += 1
    if seen == 0:
        raise InputError("there is no calibration sequence to take gradients of; give at least one")


def _single_sequences(batch: Batch) -> Iterable[Batch]:
    if isinstance(batch, Tensor):
        yield from batch.split(1)
        return
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor) and value.ndim > 0}
    count = min((len(value) for value in tensors.values()), default=0)
    for index in range(count):
        yield {key: value[index : index + 1] if key in tensors else value for key, value in batch.items()}
