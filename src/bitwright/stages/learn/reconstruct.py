"""Reconstruction: learn the rounding that makes a layer or a block answer as the float one does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bitwright.formats import Codes, QuantizedTensor
from bitwright.stages.learn.base import LearnTask, batches_in_random_order
from bitwright.stages.learn.offset_rounding import OffsetWeight
from bitwright.stages.learn.soft_rounding import Annealing, SoftWeight

Variable = SoftWeight | OffsetWeight


@dataclass(frozen=True)
class Reconstruct:
    """AdaRound's loop (Nagel et al. 2020) over a layer, BRECQ's (Li et al. 2021) over a block.

    Minimises ``mean(importance (y - y_float)^2) / start + regulariser * undecided`` over the rounding variables of all
    weights at once, where ``start`` is the same distance at the rounding that it starts from (so that one setting of
    the regulariser serves every layer and bit width) and ``undecided`` is a mean over weights in [0, 1].

    Args:
        scope: ``layer`` or ``block``.
        steps: optimizer steps per problem.
        batch: sequences or images per step (0: a calibration batch of the job).
        tokens: learn on the first ``tokens`` positions of each sequence only, where the unit is causal (0: all).
        rounding: ``sigmoid``: AdaRound's rectified sigmoid between the two neighbouring levels, decided by the
            regulariser; ``offset``: SignRound's offset before a straight-through rounding, with learned clipping.
        optimizer: ``adam``, or ``sign`` (the sign of the gradient's moving average) with ``momentum``.
        rate: learning rate of the rounding variables; ``scale_rate`` of the scales (0: scales stay).
        decay: how rates fall to 0: ``linear`` or ``cosine``.
        regulariser: weight of the undecided term (``sigmoid`` only).
        keep_codes: start offsets at the codes of the recipe's rounding instead of round to nearest (``offset`` only).
        loss: ``mse`` or ``fisher`` (squared gradients of the task loss at the output as weights).

    Different from the papers: far fewer steps at higher, decaying rates; activation quantizers are not simulated
    while learning (weights are learned on the quantized stream of the layers before, inputs in float).
    """

    scope: Literal["layer", "block"] = "block"
    steps: int = 200
    batch: int = 0
    tokens: int = 0
    rounding: Literal["sigmoid", "offset"] = "sigmoid"
    optimizer: Literal["adam", "sign"] = "adam"
    momentum: float = 0.9
    rate: float = 0.02
    scale_rate: float = 0.0
    decay: Literal["linear", "cosine"] = "linear"
    regulariser: float = 0.1
    keep_codes: bool = False
    loss: Literal["mse", "fisher"] = "mse"
    annealing: Annealing = field(default_factory=Annealing)

    @property
    def needs_importance(self) -> bool:
        """Whether gradients at the outputs are wanted."""
        return self.loss == "fisher"

    def run(self, task: LearnTask) -> Mapping[str, QuantizedTensor]:
        """Solve one problem.

        The result is kept only where it lowers the loss of the rounding it started from; otherwise the start stays,
        as an event.
        """
        soft = self._variables(task)
        if not soft:
            return {}
        before = self._hard_distance(task, {p: q.dequantize() for p, q in task.initial.items()})
        self._descend(task, soft, max(before, 1e-30))
        learned = {p: s.harden() for p, s in soft.items()}
        after = self._hard_distance(task, {p: q.dequantize() for p, q in (dict(task.initial) | learned).items()})
        if after <= before:
            return learned
        task.events.record("learning did not help", task.name, f"loss {after:.3e} after, {before:.3e} before; not used")
        return {}

    def _descend(self, task: LearnTask, soft: Mapping[str, Variable], start: float) -> None:
        groups = [
            {"params": [v for s in soft.values() for v in s.rounding_variables()], "lr": self.rate},
            {"params": [v for s in soft.values() for v in s.scale_variables()], "lr": self.scale_rate},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.Adam(groups) if self.optimizer == "adam" else SignDescent(groups, self.momentum)
        rates = [group["lr"] for group in optimizer.param_groups]
        count = sum(s.v.numel() for s in soft.values())
        for step, index in enumerate(batches_in_random_order(task.inputs, self.steps, task.seed)):
            share = step / self.steps
            left = 1 - share if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * left
            loss = self.distance(task, {p: s.soft() for p, s in soft.items()}, index) / start
            beta = self.annealing.beta(share) if self.rounding == "sigmoid" else None
            if beta is not None:
                undecided = torch.stack([s.undecided(beta) for s in soft.values()]).sum() / count
                loss = loss + self.regulariser * undecided
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            for s in soft.values():
                s.constrain()
            task.progress(step + 1, self.steps)

    def _variables(self, task: LearnTask) -> dict[str, Variable]:
        found: dict[str, Variable] = {}
        for path, initial in task.initial.items():
            if len(initial.terms) != 1 or not isinstance(initial.terms[0], Codes):
                task.events.record("not learned", path, "its weight is a sum of terms; the rounding stays as it is")
            elif self.rounding == "offset":
                found[path] = OffsetWeight(task.weights[path], initial.terms[0], self.scale_rate > 0, self.keep_codes)
            else:
                found[path] = SoftWeight(task.weights[path], initial.terms[0], self.scale_rate > 0)
        return found

    def distance(self, task: LearnTask, weights: Mapping[str, Tensor], index: int) -> Tensor:
        """Relative squared distance of the outputs on one batch."""
        target = task.target(index)
        square = (task.forward(weights, index) - target).square()
        importance = task.importance(index) if self.loss == "fisher" else None
        if importance is not None:
            square = square * importance
        return square.mean() / target.square().mean().clamp_min(1e-30)

    @torch.no_grad()
    def _hard_distance(self, task: LearnTask, weights: Mapping[str, Tensor]) -> float:
        probes = range(min(4, task.inputs))
        return sum(float(self.distance(task, weights, i)) for i in probes) / len(probes)


class SignDescent(torch.optim.Optimizer):
    """Steps of fixed length along the sign of the gradient's moving average (Cheng et al. 2023 without the average)."""

    def __init__(self, groups: list[dict[str, object]], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.mul_(self.momentum).add_(parameter.grad)
                parameter.sub_(average.sign(), alpha=group["lr"])
