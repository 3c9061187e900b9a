"""Reconstruction: learn the rounding that makes a layer or a block answer as the float one does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.formats import Codes, QuantizedTensor
from bitwright.stages.learn.base import LearnTask, batches_in_random_order
from bitwright.stages.learn.soft_rounding import Annealing, SoftWeight


@dataclass(frozen=True)
class Reconstruct:
    """AdaRound's loop (Nagel et al. 2020) over a layer, BRECQ's (Li et al. 2021) over a block.

    Minimises ``mean(importance * (y - y_float)^2) / mean(y_float^2) + weight * undecided`` over the rounding variables
    of all weights at once, with Adam.

    Args:
        scope: ``layer`` or ``block``.
        steps: optimizer steps per problem; one calibration batch each.
        rate: learning rate of the rounding variables; ``scale_rate`` of the scales' logarithms (0: scales stay).
        regulariser: weight of the undecided term, per undecided variable.
        loss: ``mse`` or ``fisher`` (squared gradients of the task loss at the output as weights).
    """

    scope: Literal["layer", "block"] = "block"
    steps: int = 200
    rate: float = 0.02
    scale_rate: float = 0.0
    regulariser: float = 0.01
    loss: Literal["mse", "fisher"] = "mse"
    annealing: Annealing = Annealing()

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
        optimizer = torch.optim.Adam(
            [
                {"params": [s.v for s in soft.values()], "lr": self.rate},
                {"params": [s.theta for s in soft.values() if s.learns_scale], "lr": self.scale_rate},
            ]
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        count = sum(s.v.numel() for s in soft.values())
        for step, index in enumerate(batches_in_random_order(task.inputs, self.steps, task.seed)):
            share = step / self.steps
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
            loss = self.distance(task, {p: s.soft() for p, s in soft.items()}, index)
            beta = self.annealing.beta(share)
            if beta is not None:
                loss = loss + self.regulariser * sum(s.undecided(beta) for s in soft.values()) / count
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            task.progress(step + 1, self.steps)
        return self._better(task, {p: s.harden() for p, s in soft.items()})

    def _variables(self, task: LearnTask) -> dict[str, SoftWeight]:
        found = {}
        for path, initial in task.initial.items():
            if len(initial.terms) == 1 and isinstance(initial.terms[0], Codes):
                found[path] = SoftWeight(task.weights[path], initial.terms[0], self.scale_rate > 0)
            else:
                task.events.record("not learned", path, "its weight is a sum of terms; the rounding stays as it is")
        return found

    def distance(self, task: LearnTask, weights: Mapping[str, Tensor], index: int) -> Tensor:
        """Relative squared distance of the outputs on one batch."""
        target = task.target(index)
        square = (task.forward(weights, index) - target).square()
        importance = task.importance(index) if self.loss == "fisher" else None
        if importance is not None:
            square = square * importance
        return square.mean() / target.square().mean().clamp_min(1e-30)

    def _better(self, task: LearnTask, learned: dict[str, QuantizedTensor]) -> Mapping[str, QuantizedTensor]:
        probes = range(min(4, task.inputs))
        with torch.no_grad():
            before = {p: q.dequantize() for p, q in task.initial.items()}
            after = before | {p: q.dequantize() for p, q in learned.items()}
            old = sum(float(self.distance(task, before, i)) for i in probes)
            new = sum(float(self.distance(task, after, i)) for i in probes)
        if new <= old:
            return learned
        task.events.record("learning did not help", task.name, f"loss {new:.3e} after, {old:.3e} before; not used")
        return {}
