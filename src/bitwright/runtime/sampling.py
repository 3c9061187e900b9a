"""From logits to the next token: penalties, temperature, and the choice of what may be drawn at all.

The functions take ``logits[vocabulary]`` and return new ones; ``-inf`` is a token that cannot be drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import CheckError, InputError

FEW = 512
"""Tokens that are looked at first when the likeliest ones of a vocabulary are wanted."""
ROUNDING = 1e-6
"""A sum of probabilities reaches a number that it misses by less."""
COLDEST, HOTTEST = 1e-6, 1e6
"""Below the first temperature only the likeliest token is left; above the second nobody asks for anything."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The default takes the likeliest one.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the ``top_k`` likeliest tokens are drawn; 0: all. Ties with the last of them stay.
        top_p: only the fewest tokens whose probabilities sum to ``top_p`` (nucleus; Holtzman et al. 2020).
        min_p: only tokens at least ``min_p`` times as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: positive logits of tokens of the prompt or the answer are divided by it, negative ones
            multiplied (Keskar et al. 2019, section 4.1); 1 changes nothing.
        presence_penalty: subtracted from the logits of tokens of the answer.
        frequency_penalty: subtracted once for each time that a token is in the answer.
        logit_bias: token id to what is added to its logit.
        seed: of the draws; ``None``: another one every time.

    Raises:
        InputError: for a value outside of its range; it names the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = 0

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("temperature", 0 <= self.temperature <= HOTTEST, f"between 0 and {HOTTEST:.0f}"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a number"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "an integer of 64 bits"),
        ):
            if not fits:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {wanted}")
        if any(token < 0 or not math.isfinite(bias) for token, bias in self.logit_bias.items()):
            raise InputError("logit_bias needs token ids of 0 or more, and numbers; correct it")


class Sampler:
    """Draws the tokens of one answer; remembers what it drew, for the penalties."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int] = ()) -> None:
        self.sampling = sampling
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else set[int]()
        self._counts: Counter[int] = Counter()
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def draw(self, logits: Tensor) -> int:
        """The next token after ``logits[vocabulary]``.

        Raises:
            InputError: if ``logit_bias`` names a token that the vocabulary does not have.
            CheckError: if the logits are not numbers.
        """
        wanted = self.sampling
        scores = logits.float()
        if not math.isfinite(float(scores.max())):
            raise CheckError("the model's logits are not numbers; its weights are damaged, or too coarse for it")
        scores = add_bias(scores, wanted.logit_bias)
        scores = penalize_repetition(scores, sorted(self._seen), wanted.repetition_penalty)
        scores = penalize_counts(scores, self._counts, wanted.presence_penalty, wanted.frequency_penalty)
        token = int(scores.argmax()) if wanted.temperature < COLDEST else self._draw(scores)
        self._counts[token] += 1
        if wanted.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def _draw(self, scores: Tensor) -> int:
        wanted = self.sampling
        # The likeliest token is at 0: however small the temperature is, nothing overflows upward.
        scores = (scores - scores.max()) / wanted.temperature
        scores = keep_min_p(keep_top_p(keep_top_k(scores, wanted.top_k), wanted.top_p), wanted.min_p)
        return draw_from(scores, self._random)


def add_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add ``bias`` to the logits of the tokens that it names.

    Raises:
        InputError: for a token outside of the vocabulary.
    """
    if not bias:
        return logits
    beyond = max(bias)
    if beyond >= len(logits):
        raise InputError(f"logit_bias names token {beyond}; the vocabulary has {len(logits)} tokens")
    return logits.index_add(0, torch.tensor(list(bias)), torch.tensor(list(bias.values()), dtype=logits.dtype))


def penalize_repetition(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Divide the positive logits of ``seen`` tokens by ``penalty`` and multiply the negative ones."""
    if penalty == 1 or not seen:
        return logits
    index = torch.tensor(seen)
    values = logits[index]
    return logits.index_copy(0, index, torch.where(values > 0, values / penalty, values * penalty))


def penalize_counts(logits: Tensor, counts: Mapping[int, int], presence: float, frequency: float) -> Tensor:
    """Subtract ``presence + frequency * count`` from the logits of the counted tokens."""
    if not counts or (presence == 0 and frequency == 0):
        return logits
    lower = [-(presence + frequency * count) for count in counts.values()]
    return logits.index_add(0, torch.tensor(list(counts)), torch.tensor(lower, dtype=logits.dtype))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Leave the ``k`` largest logits, and those equal to the last of them; 0 leaves all."""
    if k == 0 or k >= len(logits):
        return logits
    return _from(logits, logits.topk(k).values[-1])


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Leave the fewest likeliest tokens whose probabilities reach ``p``, and those as likely as the last of them.

    The whole vocabulary is sorted only where its likeliest tokens do not reach ``p``.
    """
    if p >= 1:
        return logits
    shares = logits.softmax(dim=0)
    for count in {min(FEW, len(shares)): None, len(shares): None}:
        falling = shares.topk(count).values if count < len(shares) else _sorted(shares)
        reached = falling.cumsum(dim=0, dtype=torch.float64) >= p - ROUNDING
        if bool(reached[-1]):
            return logits.masked_fill(shares < falling[int(reached.int().argmax())], -math.inf)
    return logits


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Leave the tokens that are at least ``p`` times as likely as the likeliest."""
    return logits if p == 0 else _from(logits, logits.max() + math.log(p))


def draw_from(logits: Tensor, random: torch.Generator) -> int:
    """Draw a token with the probabilities ``softmax(logits)``, by one uniform number."""
    sums = (logits - logits.max()).exp().cumsum(dim=0, dtype=torch.float64)
    total = sums[-1]
    place = torch.rand((), dtype=torch.float64, generator=random) * total
    # Rounding must not reach the end, where tokens without any probability may stand.
    place = torch.minimum(place, torch.nextafter(total, torch.zeros_like(total)))
    return int(torch.searchsorted(sums, place, right=True))


def log_probabilities(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The logarithm of a token's probability (natural), and the ``count`` likeliest tokens with theirs."""
    scores = logits.float().log_softmax(dim=0)
    top = scores.topk(min(count, len(scores)))
    return float(scores[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _sorted(values: Tensor) -> Tensor:
    """Values, the largest first; numpy sorts floats several times faster than torch does."""
    return torch.from_numpy(np.sort(values.numpy())[::-1].copy())


def _from(logits: Tensor, least: Tensor) -> Tensor:
    return logits.masked_fill(logits < least, -math.inf)
