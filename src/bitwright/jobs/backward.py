"""Backward passes of the float model: Fisher information of weights and of unit outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.jobs.opening import Job, Opened
from bitwright.jobs.runner import Batch
from bitwright.jobs.units import split_units
from bitwright.models import open_model
from bitwright.models.calling import call_module
from bitwright.models.experts import open_stacks
from bitwright.models.stream import logits_of
from bitwright.statistics import Statistic
from bitwright.statistics.fisher import accumulate_fisher


def float_model(job: Job, opened: Opened) -> nn.Module:
    """The whole float model in memory, with gradients enabled where asked for later."""
    if isinstance(job.model, nn.Module):
        return copy.deepcopy(job.model).eval()
    model = open_model(job.model)
    open_stacks(model, opened.model.experts)
    return model.module


def task_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The loss whose curvature the methods weigh with, mean over tokens or images.

    Next-token cross entropy where the model predicts tokens; cross entropy against the model's own prediction where
    it classifies (no labels are needed, as in BRECQ's calibration on unlabelled images).

    Raises:
        InputError: if the model gives neither.
    """
    logits = logits_of(call_module(module, batch))
    ids = batch.get("input_ids")
    if ids is not None and logits.ndim == 3:
        if logits.shape[-1] <= int(ids.max()):
            raise InputError("this recipe weighs by a next-token loss, which an encoder without a head does not have")
        target = ids[:, 1:].clone()
        mask = batch.get("attention_mask")
        if mask is not None:
            target[mask[:, 1:] == 0] = -100
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), ignore_index=-100)
    if logits.ndim == 2:
        return functional.cross_entropy(logits, logits.detach().argmax(-1))
    raise InputError("this recipe weighs by gradients of a loss, and the model gives neither token nor class logits")


def fisher_of_weights(
    job: Job, opened: Opened, wanted: Mapping[str, list[Statistic]]
) -> dict[str, dict[Statistic, Any]]:
    """Mean squared gradient of every wanted weight, ``[out, in]``; the whole model is held in memory for it."""
    module = float_model(job, opened)
    transposed = {s.path: s.transposed for s in opened.structure.sites}
    experts = {s.path for s in opened.structure.sites if s.expert is not None}
    diagonal = accumulate_fisher(module, opened.batches, tuple(wanted), task_loss, idle=experts)
    found: dict[str, dict[Statistic, Any]] = {}
    for path, requests in wanted.items():
        if path not in diagonal:
            continue
        value = diagonal[path]
        value = value.t().contiguous() if transposed[path] else value.reshape(value.shape[0], -1)
        found[path] = dict.fromkeys(requests, value)
    return found


def output_gradients(job: Job, opened: Opened) -> Callable[[str, int], Tensor | None]:
    """Squared gradients of the loss at every block's output, per batch and element; mean 1 per sequence or image.

    Units that are no blocks (what lies before and behind them, or a network without a chain) have none: they are
    learned with the plain squared error.
    """
    blocks = [unit.name for unit in split_units(opened.structure) if unit.kind == "block"]
    if not blocks:
        return lambda unit, index: None
    module = float_model(job, opened)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    found: dict[tuple[str, int], Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def remember(path: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0]
            if not x.requires_grad:
                x.requires_grad_(True)
            x.retain_grad()
            outputs[path] = x

        return hook

    handles = [module.get_submodule(path).register_forward_hook(remember(path)) for path in blocks]
    for index, batch in enumerate(opened.batches):
        with torch.enable_grad():
            task_loss(module, batch).backward()
        for path, x in outputs.items():
            assert x.grad is not None
            square = x.grad.square()
            # Per sequence or image: where the network is sure of its answer gradients all but vanish, and a few
            # doubtful images would decide everything.
            size = square.mean(dim=tuple(range(1, square.ndim)), keepdim=True)
            found[path, index] = square / size.clamp_min(1e-30)
        outputs.clear()
    for handle in handles:
        handle.remove()
    return lambda unit, index: found.get((unit, index))
