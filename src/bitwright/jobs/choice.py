"""Which quantizer each site of a model gets, and why a site stays float."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bitwright.models import Structure, WeightSite
from bitwright.recipes import Recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges.activation import InputMinMax
from bitwright.stages.site import Rule, Target, select
from bitwright.statistics import Statistic

# Weights per channel below which the scales of a one-dimensional depthwise convolution weigh as much as its codes save.
FEW = 8


@dataclass(frozen=True)
class Choice:
    """Quantizers of one weight site: of its weight and of its module's input; ``reason`` says why it stays float.

    ``held_back`` marks a weight that a rule selects and that stays float all the same, because of a tie.
    """

    site: WeightSite
    weight: Quantizer | None
    input: Quantizer | None
    reason: str = ""
    held_back: bool = False


def choose(recipe: Recipe, structure: Structure) -> dict[str, Choice]:
    """Apply the recipe's rules to every weight site; the last rule that matches wins.

    A tied pair (embedding and head) is one tensor: it is coded only if rules select a quantizer for both of its sites,
    and then as two tensors, since the two may have other formats and statistics.
    """
    found: dict[str, Choice] = {}
    for site in structure.sites:
        target = Target(site.path, site.kind, site.role)
        weight = select(recipe.weights, target)
        taken = select(recipe.activations, target) if site.kind != "embedding" else None
        if taken is not None and taken.range is None and taken.format.time == "static":
            taken = replace(taken, range=InputMinMax())  # the default range of a tensor that is not held
        if site.role == "float":
            weight = taken = None
        reason = "" if weight is not None else _reason(recipe.weights, site)
        if (weight is not None or taken is not None) and not site.whole:
            weight = taken = None
            reason = "its module does more than the product, so no quantized layer can take its place"
        refused = _unlike_any_layer(site) if weight is not None or taken is not None else ""
        if refused:
            weight = taken = None
            reason = refused
        found[site.path] = Choice(site, weight, taken, reason)
    for path, other in _tied_to_float(found, structure).items():
        reason = f"tied to {other}, which stays float"
        found[path] = replace(found[path], weight=None, reason=reason, held_back=True)
    return found


def _unlike_any_layer(site: WeightSite) -> str:
    """Why a convolution keeps its weight, or nothing."""
    if site.kind != "conv" or site.axes in (0, 2):
        return ""
    if site.axes != 1:
        return f"a convolution along {site.axes} axes; the runtime has layers for convolutions along one or two"
    if site.groups > 1 and site.shape[1] < FEW:
        return f"a convolution along one axis with {site.shape[1]} weights per channel, hardly more than a scale"
    return ""


def _tied_to_float(choices: Mapping[str, Choice], structure: Structure) -> dict[str, str]:
    """Sites with a quantizer whose tensor is also another parameter that stays float, with that parameter's name."""
    groups: dict[str, list[str]] = {}
    for name, owner in structure.ties:
        groups.setdefault(owner, [owner]).append(name)
    by_name = {choice.site.name: path for path, choice in choices.items()}
    found = {}
    for names in groups.values():
        coded = {n: by_name[n] for n in names if n in by_name and choices[by_name[n]].weight is not None}
        floating = [n for n in names if n not in coded]
        if floating:
            found.update(dict.fromkeys(coded.values(), floating[0]))
    return found


def coded_ties(choices: Mapping[str, Choice], structure: Structure) -> tuple[str, ...]:
    """Names of tied parameters that rules select together with what they are tied to: each is coded by itself."""
    coded = {choice.site.name for choice in choices.values() if choice.weight is not None}
    return tuple(name for name, owner in structure.ties if name in coded and owner in coded)


def _reason(rules: Iterable[Rule], site: WeightSite) -> str:
    if site.role == "float":
        return "the rule file keeps it float"
    target = Target(site.path, site.kind, site.role)
    matching = [r.select for r in rules if r.matches(target)]
    if site.role == "router" and not matching:
        return "a router: what it gives decides which experts run (a rule that names it can select it)"
    if matching:
        return f"rule {matching[-1]!r} keeps it float"
    return f"no rule selects the {site.kind if site.kind == site.role else f'{site.role} {site.kind}'}"


def stream_needs(recipe: Recipe, choices: Iterable[Choice]) -> tuple[bool, bool]:
    """Whether the recipe reads the float stream, and whether it reads the quantized stream."""
    requests: list[Statistic] = [r for t in recipe.transforms for r in t.needs]
    float_stream = any(t.scope == "block" for t in recipe.transforms)
    quantized = False
    for choice in choices:
        for quantizer in (choice.weight, choice.input):
            if quantizer is not None:
                requests.extend(quantizer.needs)
        if choice.input is not None and choice.input.format.time == "static":
            quantized = True
    for request in requests:
        float_stream = float_stream or request.prefix == "float" or request.reads_twin
        quantized = quantized or request.prefix != "float"
    if recipe.learn or recipe.corrections:
        float_stream = quantized = True
    return float_stream, quantized


def derived_seed(seed: int, *parts: str) -> int:
    """A seed for one random stream, from the job's seed and the names of what draws (order of work cannot matter)."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:7], "little")
