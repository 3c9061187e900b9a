"""Measuring: perplexity, divergence from the float model, accuracy, correlation, speed and memory."""

from bitwright.evaluation.embedding import embed, sts_spearman
from bitwright.evaluation.images import ImageScores, accuracy, image_scores
from bitwright.evaluation.language import LmScores, kl_divergence, perplexity, score_lm
from bitwright.evaluation.logits import CausalLogits, LogitsFunction, logits_of
from bitwright.evaluation.memory import PeakMemory, anonymous_bytes, peak_memory
from bitwright.evaluation.metric import Metric
from bitwright.evaluation.rank import pearson, ranks, spearman
from bitwright.evaluation.reference import ReferenceLogits
from bitwright.evaluation.speed import GenerationSpeed, generation_speed

__all__ = [
    "CausalLogits",
    "GenerationSpeed",
    "ImageScores",
    "LmScores",
    "LogitsFunction",
    "Metric",
    "PeakMemory",
    "ReferenceLogits",
    "accuracy",
    "anonymous_bytes",
    "embed",
    "generation_speed",
    "image_scores",
    "kl_divergence",
    "logits_of",
    "peak_memory",
    "pearson",
    "perplexity",
    "ranks",
    "score_lm",
    "spearman",
    "sts_spearman",
]
