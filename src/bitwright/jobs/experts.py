"""What is particular about experts in a job: they run side by side, on few tokens, and each on its own.

The experts of one layer do not read one another, so the statistics of a whole family come from one sweep. An expert
sees only the tokens that are routed to it; below ``TOKENS_PER_CHANNEL`` tokens per input channel its second moments are
drawn towards a multiple of the identity,

    (1 - r) H + r mean(diag H) I,    r = in / (in + tokens),

because second-order rounding fits the noise of few tokens: with half as many tokens as channels and a flat spectrum it
was measured to be 2.6 times worse than rounding to nearest, drawn so it was better at every number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from bitwright.events import Events
from bitwright.models import WeightSite
from bitwright.models.experts import is_expert_layer
from bitwright.statistics import Prefix, Statistic
from bitwright.statistics.counts import TokenCount
from bitwright.statistics.hessian import CrossHessian, SecondMoment

TOKENS_PER_CHANNEL = 4
WAVE_BYTES = 1 << 30

Group = list[WeightSite]
Statistics = dict[Statistic, Any]


def waves(groups: Iterable[Group], sizes: Mapping[str, int], most: int | None = None) -> list[list[Group]]:
    """Groups whose statistics one sweep gathers: every group alone, but experts of one family together.

    ``sizes`` are the bytes of a group's statistics by the path of its first site; a wave holds at most ``most``.
    """
    limit = WAVE_BYTES if most is None else most
    families: dict[Any, list[Group]] = {}
    for index, group in enumerate(groups):
        families.setdefault(group[0].family or index, []).append(group)
    found: list[list[Group]] = []
    for family in families.values():
        held = 0
        for group in family:
            size = sizes.get(group[0].path, 0)
            if held and held + size <= limit:
                found[-1].append(group)
                held += size
            else:
                found.append([group])
                held = max(size, 1)
    return found


def loading_paths(module: nn.Module, sites: Iterable[WeightSite]) -> tuple[str, ...]:
    """What to load for the weights of ``sites``: their modules, or the stack of an expert, which is read at once."""
    paths: dict[str, None] = {}
    for site in sites:
        parent = site.path.rpartition(".")[0]
        stacked = site.expert is not None and is_expert_layer(module.get_submodule(parent))
        paths[parent if stacked else site.path] = None
    return tuple(paths)


def count_requests(group: Sequence[WeightSite], prefix: Prefix) -> list[Statistic]:
    """The request for the tokens of an expert; nothing for other layers."""
    return [TokenCount(prefix)] if group and group[0].expert is not None else []


def tokens_of(statistics: Mapping[Statistic, Any]) -> int:
    """Tokens that an expert saw, from what was gathered of it."""
    return next((int(v) for request, v in statistics.items() if isinstance(request, TokenCount)), 0)


def steadied(statistics: Mapping[Statistic, Any], columns: int) -> Statistics:
    """The statistics with second moments that few tokens made drawn towards the identity."""
    return {r: _steadied(r, value, columns) for r, value in statistics.items()}


def _steadied(request: Statistic, value: Any, columns: int) -> Any:
    if not isinstance(value, SecondMoment) or isinstance(request, CrossHessian):
        return value
    if value.count >= TOKENS_PER_CHANNEL * columns:
        return value
    share = columns / (columns + value.count)
    matrix = value.matrix * (1 - share)
    matrix.diagonal().add_(share * float(value.matrix.diagonal().mean()))
    return SecondMoment(matrix, value.count)


def say_few_tokens(wave: Sequence[Group], tokens: Mapping[str, int], events: Events) -> None:
    """One event for the experts of a family that have second moments of few tokens."""
    few = [g[0] for g in wave if 0 < tokens.get(g[0].path, 0) < TOKENS_PER_CHANNEL * g[0].shape[1]]
    if few:
        shown = [f"{site.expert}: {tokens[site.path]}" for site in few[:8]]
        counts = ", ".join(shown + ["..."] * (len(few) > 8))
        events.record(
            "few tokens", few[0].family,
            f"{len(few)} of {len(wave)} experts saw fewer than {TOKENS_PER_CHANNEL} tokens per input channel (expert: "
            f"tokens {counts}); their second moments are drawn towards the identity",
        )  # fmt: skip


def expert_tokens(sites: Iterable[WeightSite], tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    """Calibration tokens per expert by family, for the report."""
    found: dict[str, dict[int, int]] = {}
    for site in sites:
        if site.expert is not None and site.path in tokens:
            found.setdefault(site.family, {})[site.expert] = tokens[site.path]
    return [{"family": family, "tokens": [counts[e] for e in sorted(counts)]} for family, counts in found.items()]


def has_second_moments(statistics: Mapping[Statistic, Any]) -> bool:
    """Whether any of the statistics is a second moment."""
    return any(isinstance(value, SecondMoment) for value in statistics.values())
