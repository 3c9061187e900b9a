"""Image classifiers: top-1 and top-5 accuracy, agreement with and divergence from the float network."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitwright.data.images import ImageData
from bitwright.errors import InputError
from bitwright.evaluation.logits import device_of, dtype_text, evaluating
from bitwright.evaluation.metric import Metric


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Accuracy in percent of a classifier; against a float one also agreement (share) and KL per image in nats."""

    top1: float
    top5: float
    kl: float | None
    top1_agreement: float | None
    images: int
    protocol: str
    seconds: float
    top1_stderr: float

    @property
    def metric(self) -> Metric:
        """Top-1 accuracy as a :class:`Metric`."""
        return Metric("top-1 %", self.top1, self.protocol, self.images, self.seconds, self.top1_stderr)


def class_logits(module: nn.Module, data: ImageData, batch_size: int = 250) -> Tensor:
    """Return the logits float32 ``[images, classes]`` of a classifier (a plain module or one of transformers)."""
    device = device_of(module)
    parts = []
    with evaluating(module):
        for batch in data.batches(batch_size):
            output = module(batch[data.input_name].to(device))
            logits = output if isinstance(output, Tensor) else output.logits
            parts.append(logits.float().cpu())
    return torch.cat(parts)


def image_scores(
    module: nn.Module, data: ImageData, reference: Tensor | None = None, batch_size: int = 250
) -> ImageScores:
    """Measure a classifier on labelled images.

    Args:
        reference: logits of the float network on the same images (:func:`class_logits`), to compare with.

    Raises:
        InputError: if a label is no class of the network or the reference has another shape.
    """
    start = time.perf_counter()
    logits = class_logits(module, data, batch_size)
    classes = logits.shape[-1]
    if int(data.labels.max()) >= classes:
        raise InputError(f"{data.source}: label {int(data.labels.max())} but the network has {classes} classes")
    if reference is not None and reference.shape != logits.shape:
        raise InputError(f"{data.source}: reference logits {tuple(reference.shape)} for {tuple(logits.shape)}")
    best = logits.topk(min(5, classes), -1).indices
    hits = best == data.labels[:, None]
    share = float(hits[:, 0].double().mean())
    kl = agreement = None
    if reference is not None:
        want, got = torch.log_softmax(reference, -1), torch.log_softmax(logits, -1)
        kl = float((want.exp() * (want - got)).sum(-1).double().mean())
        agreement = float((reference.argmax(-1) == best[:, 0]).double().mean())
    return ImageScores(
        top1=100 * share,
        top5=100 * float(hits.any(-1).double().mean()),
        kl=kl,
        top1_agreement=agreement,
        images=len(data),
        protocol=f"{data.protocol}; {dtype_text(module)}; {len(data):,} images, sha256 {data.sha256[:12]}",
        seconds=time.perf_counter() - start,
        top1_stderr=100 * math.sqrt(share * (1 - share) / len(data)),
    )


def accuracy(module: nn.Module, data: ImageData, batch_size: int = 250) -> Metric:
    """Return the top-1 accuracy in percent."""
    return image_scores(module, data, None, batch_size).metric
