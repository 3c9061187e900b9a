"""Which tensors of a checkpoint make up which parameter of a module.

Names differ where a library renamed its modules after the checkpoint was saved, where a head model is opened from a
base model's file, and where several stored tensors become one parameter (fused experts). The map is found in this
order: equal names, the renamings and conversions that the model's own library declares, then equal suffixes with equal
shapes. What stays unmatched is listed on both sides.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """Stored tensors behind one parameter: one key, or several keys and the library's own conversion.

    ``part``: the parameter is this slice of the first axis of what they make (one expert of a stack), or of ``parts``
    slices where the stack rests flat, as a matrix.
    """

    keys: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    converter: Any = None
    target: str = ""
    part: int | None = None
    parts: int = 0

    @property
    def plain(self) -> bool:
        """Whether the parameter is the one stored tensor, whole."""
        return self.converter is None and self.part is None


@dataclass(frozen=True)
class NameMap:
    """Parameter (or buffer) name to source; ``aliases`` maps tied names to the one that owns the source."""

    sources: dict[str, Source]
    aliases: dict[str, str]
    unmatched: tuple[str, ...]
    missing: tuple[str, ...]

    def key(self, parameter: str) -> str | None:
        """The single checkpoint key of a parameter, or None where none or several stored tensors make it."""
        source = self.sources.get(parameter) or self.sources.get(self.aliases.get(parameter, ""))
        return source.keys[0] if source is not None and source.plain else None

    def parameter(self, key: str) -> str | None:
        """The parameter that a checkpoint key feeds, or None."""
        return self._takers.get(key)

    @cached_property
    def _takers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, source in self.sources.items():
            for key in source.keys:
                found.setdefault(key, name)
        return found


def match_names(module: nn.Module, stored: Mapping[str, Shape]) -> NameMap:
    """Map every parameter and persistent buffer of ``module`` to the ``stored`` tensors (name to shape)."""
    wanted, aliases = _wanted(module)
    sources: dict[str, Source] = {}
    taken: set[str] = set()

    def accept(name: str, source: Source) -> None:
        sources[name] = source
        taken.update(source.keys)

    declared = _declared(module, stored)
    for name, shape in wanted.items():
        if stored.get(name) == shape and (declared is None or name not in declared.moved):
            accept(name, Source((name,)))
    if declared is not None:
        for name, source in declared.sources.items():
            single = source.converter is None
            if name in wanted and name not in sources and (not single or stored[source.keys[0]] == wanted[name]):
                accept(name, source)
    open_names = {name: shape for name, shape in wanted.items() if name not in sources}
    open_keys = {key: shape for key, shape in stored.items() if key not in taken}
    for name, key in match_suffixes(open_names, open_keys).items():
        accept(name, Source((key,)))
    missing = [n for n in wanted if n not in sources and sources.get(aliases.get(n, "")) is None]
    owners = {aliases[name]: name for name in sources if name in aliases}
    missing = [name for name in missing if name not in owners]
    return NameMap(sources, aliases, tuple(key for key in stored if key not in taken), tuple(missing))


def match_suffixes(wanted: Mapping[str, Shape], stored: Mapping[str, Shape]) -> dict[str, str]:
    """Pair names that differ by a prefix only: every (old prefix, new prefix) is voted for, the fullest wins.

    A pair is made only where the shapes are equal, and a stored name is used once.
    """
    by_tail: dict[tuple[str, Shape], list[str]] = {}
    for key, shape in stored.items():
        by_tail.setdefault((_tail(key), shape), []).append(key)
    votes: Counter[tuple[str, str]] = Counter()
    for name, shape in wanted.items():
        votes.update(_prefixes(name, key) for key in by_tail.get((_tail(name), shape), ()))
    result: dict[str, str] = {}
    used: set[str] = set()
    for (new, old), _ in sorted(votes.items(), key=lambda item: (-item[1], len(item[0][0]) + len(item[0][1]), item[0])):
        for name, shape in wanted.items():
            if name in result or not name.startswith(new):
                continue
            key = old + name[len(new) :]
            if stored.get(key) == shape and key not in used:
                result[name] = key
                used.add(key)
    return result


def read_source(source: Source, load: Callable[[str], torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a source yields, by parameter name ("" for the plain case of one key)."""
    if source.converter is None:
        stored = load(source.keys[0])
        return {"": stored if source.part is None else _stacked(stored, source)[source.part]}
    converter = copy.deepcopy(source.converter)
    for key, pattern in zip(source.keys, source.patterns, strict=True):
        converter.add_tensor(source.target, key, pattern, _later(load, key))
    values = converter.convert(source.target, model=module, config=getattr(module, "config", None))
    made = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
    if source.part is None:
        return made
    # A conversion of a whole stack is made once for all of its experts.
    experts = enumerate(_stacked(made[source.target], source))
    return {"" if e == source.part else f"{source.target}.{e}.weight": expert for e, expert in experts}


def _stacked(stored: torch.Tensor, source: Source) -> torch.Tensor:
    """What a source makes with an axis for its parts."""
    return stored.unflatten(0, (source.parts, -1)) if stored.dim() == 2 and source.parts else stored


@dataclass(frozen=True)
class _Declared:
    sources: dict[str, Source]
    moved: frozenset[str]


def _declared(module: nn.Module, stored: Mapping[str, Shape]) -> _Declared | None:
    """The map that the model's own library declares (transformers 5); None for other modules."""
    if not hasattr(module, "base_model_prefix") or not hasattr(module, "config"):
        return None
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError:
        return None
    rules: list[Any] = get_model_conversion_mapping(module)  # type: ignore[arg-type]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    names = dict(module.state_dict())
    groups: dict[str, list[tuple[str, str]]] = {}
    sources: dict[str, Source] = {}
    moved: set[str] = set()
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, str(module.base_model_prefix), names)
        if name not in names:
            continue
        if name != key:
            moved.add(key)
        if pattern is None:
            sources[name] = Source((key,))
        else:
            groups.setdefault(name, []).append((key, pattern))
    for name, members in groups.items():
        rule = by_pattern[members[0][1]]
        source = Source(tuple(k for k, _ in members), tuple(p for _, p in members), rule, name)
        for pattern in rule.target_patterns:
            target = name.replace(rule.target_patterns[0], pattern)
            if target in names:
                sources[target] = source
    return _Declared(sources, frozenset(moved))


def _wanted(module: nn.Module) -> tuple[dict[str, Shape], dict[str, str]]:
    """Names and shapes of parameters and persistent buffers, and the aliases of shared ones."""
    first: dict[int, str] = {}
    wanted: dict[str, Shape] = {}
    aliases: dict[str, str] = {}
    persistent = set(module.state_dict())
    named: Iterable[tuple[str, torch.Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        if name not in persistent:
            continue
        wanted[name] = tuple(tensor.shape)
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            aliases[name] = owner
    return wanted, aliases


def _later(load: Callable[[str], torch.Tensor], key: str) -> Callable[[], torch.Tensor]:
    return lambda: load(key)


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _prefixes(name: str, key: str) -> tuple[str, str]:
    """The prefixes that remain when the longest common dotted suffix is cut off."""
    a, b = name.split("."), key.split(".")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    left, right = a[: len(a) - same], b[: len(b) - same]
    return "".join(part + "." for part in left), "".join(part + "." for part in right)
