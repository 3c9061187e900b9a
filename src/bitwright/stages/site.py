"""Sites and the rules that select them."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from bitwright.errors import InputError, nearest_key
from bitwright.stages.quantizer import Quantizer

SiteKind = Literal["linear", "conv", "embedding", "key", "value"]
SiteRole = Literal["block", "head", "embedding", "outside", "router", "cache"]

# What a word in a rule selects: (kinds, roles). "linear" leaves the head out because a head's rounding error goes
# straight into the logits and every engine keeps it float by default.
WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("linear",), ("block", "outside")),
    "conv": (("conv",), ("block", "outside", "head")),
    "head": (("linear", "conv"), ("head",)),
    "embedding": (("embedding",), ("block", "head", "embedding", "outside")),
    "block": (("linear", "conv"), ("block",)),
    "outside": (("linear", "conv"), ("outside",)),
    "router": (("linear",), ("router",)),
    "all": (("linear", "conv"), ("block", "head", "outside")),
    "key": (("key",), ("cache",)),
    "value": (("value",), ("cache",)),
}


@dataclass(frozen=True)
class Target:
    """What a rule sees of a site: module path, kind and role."""

    path: str
    kind: str
    role: str


@dataclass(frozen=True)
class Rule:
    """``site -> Quantizer``; a quantizer of ``None`` keeps the site float.

    ``select`` is one or more words or globs on the module path, joined by commas: ``"linear"``,
    ``"conv,head"``, ``"*.down_proj"``. In a list of rules the last match wins.
    """

    select: str
    quantizer: Quantizer | None

    def __post_init__(self) -> None:
        for word in self.words:
            if word not in WORDS and not any(c in word for c in "*.?["):
                raise InputError(f"a rule selects {word!r}, which is no kind of site; {nearest_key(word, WORDS)}")

    @property
    def words(self) -> tuple[str, ...]:
        """The alternatives."""
        return tuple(word.strip() for word in self.select.split(","))

    def matches(self, target: Target) -> bool:
        """Whether any alternative selects the site."""
        return any(_word_matches(word, target) for word in self.words)


def _word_matches(word: str, target: Target) -> bool:
    if word in WORDS:
        kinds, roles = WORDS[word]
        return target.kind in kinds and target.role in roles
    return fnmatchcase(target.path, word)


def rule(select: str, quantizer: Quantizer | None) -> Rule:
    """Short form of :class:`Rule` for recipes."""
    return Rule(select, quantizer)


def select(rules: tuple[Rule, ...], target: Target) -> Quantizer | None:
    """Return the quantizer of the last rule that matches, or ``None``."""
    chosen = None
    for entry in rules:
        if entry.matches(target):
            chosen = entry.quantizer
    return chosen
