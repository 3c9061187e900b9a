"""Measures recipes on one prepared asset: every figure of a claim comes from here."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitwright.claims.assets import Asset, EmbeddingAsset, ImageAsset
from bitwright.claims.plant import plant_outliers
from bitwright.data import ImageData, PairData, TokenData
from bitwright.errors import InputError
from bitwright.evaluation import ReferenceLogits, image_scores, logits_of, score_lm
from bitwright.evaluation.embedding import embed, embedding_error, similarity_correlation, sts_protocol
from bitwright.evaluation.images import class_logits
from bitwright.jobs.opening import Job
from bitwright.jobs.request import recipe_reads_data
from bitwright.jobs.run import JobResult, run
from bitwright.models import Model, discover, open_model
from bitwright.models.calling import example_inputs
from bitwright.recipes import Recipe
from bitwright.runtime.cache import cache_factory

PREPARATIONS = ("as is", "plant outliers")


@dataclass(frozen=True)
class Measured:
    """One recipe on one asset: metrics, counted bits, seconds.

    Lower is better for all metrics but ``top1_agreement`` and ``spearman``: ``perplexity``, ``perplexity_ratio`` and
    ``kl`` of language models, ``error`` (percent) and ``kl`` of classifiers, ``spearman_loss`` (the float model's
    correlation less the recipe's) and ``embedding_error`` (mean of 1 - cosine to the float embedding) of encoders.
    """

    metrics: Mapping[str, float]
    bits: float
    seconds: float
    protocol: str
    events: int


class Bench:
    """An asset, opened and prepared once, on which any number of recipes is measured.

    Args:
        asset: what to measure on. prepare: ``as is`` or ``plant outliers`` (channels of the norms and units of the
            up projections are scaled up by 32 with the inverse in the layers behind them: the float function stays,
            activations get the outliers that small models lack).
        quick: the asset's short evaluation, for tests; ledgers use the whole.
    """

    def __init__(self, asset: Asset, prepare: str = "as is", quick: bool = False) -> None:
        self.asset = asset
        self.model: Model = open_model(asset.open().module)
        self.source = asset.open()
        self.evaluation = asset.evaluation(self.source, quick)
        self.prepare = prepare
        self.quick = quick
        if prepare not in PREPARATIONS:
            raise InputError(f"unknown preparation {prepare!r}; valid: {', '.join(PREPARATIONS)}")
        if prepare == "plant outliers":
            self._plant()
        self.reference: Any = self._reference()
        self.float_metrics = self._metrics(self.model.module, None)

    def _plant(self) -> None:
        example = self._example()
        structure = discover(self.model, example)
        plant_outliers(self.model.module, structure, channels=4, factor=32.0)

    def _example(self) -> dict[str, Any]:
        if isinstance(self.evaluation, ImageData):
            return dict(next(iter(self.evaluation.batches(2))))
        return dict(example_inputs(self.model.module))

    def _reference(self) -> Any:
        if isinstance(self.evaluation, TokenData):
            return ReferenceLogits.gather(logits_of(self.model.module), self.evaluation)
        if isinstance(self.evaluation, ImageData):
            return class_logits(self.model.module, self.evaluation)
        return self._embeddings(self.model.module)

    def _embeddings(self, module: nn.Module) -> torch.Tensor:
        assert isinstance(self.evaluation, PairData)
        return embed(module, self.source.tokenizer(), self.evaluation.sentences)

    def measure(self, recipe: Recipe, seed: int = 0) -> Measured:
        """Quantize a fresh copy of the asset's model and measure it.

        Calibration data are the asset's, in the amount that the recipe asks for, drawn by ``seed``.
        """
        module = copy.deepcopy(self.model.module)
        data: Any = None
        if recipe_reads_data(recipe):
            data = self._calibration(recipe, seed)
        started = time.perf_counter()
        result = run(Job(module, recipe, data if data is not None else [self._example()], seed=seed))
        seconds = time.perf_counter() - started
        metrics = self._metrics(module, result)
        return Measured(metrics, result.bits_per_weight, seconds, self.protocol, len(result.events))

    def _calibration(self, recipe: Recipe, seed: int) -> Any:
        count = recipe.data.sequences
        if isinstance(self.asset, ImageAsset):
            return self.asset.calibration(self.source, count, seed=seed)
        if isinstance(self.asset, EmbeddingAsset):
            return self.asset.calibration(self.source, count, seed=seed)
        return self.asset.calibration(self.source, count, recipe.data.length, seed=seed)

    @property
    def protocol(self) -> str:
        """What was measured, in words."""
        data = sts_protocol(self.evaluation) if isinstance(self.evaluation, PairData) else self.evaluation.protocol
        return f"{self.asset.name}, {self.prepare}; {data}" + (", quick" if self.quick else "")

    def _metrics(self, module: nn.Module, result: JobResult | None) -> dict[str, float]:
        with torch.no_grad():
            if isinstance(self.evaluation, TokenData):
                return self._language(module, result)
            if isinstance(self.evaluation, ImageData):
                scores = image_scores(module, self.evaluation, self.reference)
                kl = scores.kl if scores.kl is not None else 0.0
                agreement = scores.top1_agreement if scores.top1_agreement is not None else 1.0
                return {"error": 100.0 - scores.top1, "kl": kl, "top1_agreement": agreement}
            units = self.reference if module is self.model.module else self._embeddings(module)
            value = similarity_correlation(units, self.evaluation)
            loss = self.float_metrics["spearman"] - value if hasattr(self, "float_metrics") else 0.0
            return {
                "spearman": value,
                "spearman_loss": loss,
                "embedding_error": embedding_error(self.reference, units),
            }

    def _language(self, module: nn.Module, result: JobResult | None) -> dict[str, float]:
        factory = None
        if result is not None and result.manifest["kv_cache"] is not None:
            factory = cache_factory(result.manifest["kv_cache"], getattr(module, "config", None))
        assert isinstance(self.evaluation, TokenData)
        scores = score_lm(logits_of(module, factory), self.evaluation, self.reference)
        found = {
            "perplexity": scores.perplexity,
            "kl": scores.kl or 0.0,
            "top1_agreement": scores.top1_agreement or 0.0,
        }
        if hasattr(self, "float_metrics"):
            found["perplexity_ratio"] = scores.perplexity / self.float_metrics["perplexity"]
        return found


def replaced_data(recipe: Recipe, sequences: int) -> Recipe:
    """The recipe with less calibration data, for quick runs."""
    if recipe.data.sequences <= sequences:
        return recipe
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sequences=sequences))
