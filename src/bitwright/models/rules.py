"""A rule file: what a user knows better than the experiment; the last matching line wins.

One line per rule, TOML or JSON: a glob on module paths (or, behind ``class:``, on class names), and what the modules
are. Two lines are enough for most custom networks::

    "stages.*" = "block"
    "*.gate" = "float"

Words: ``block`` (the modules are the blocks, in the order in which they are called), ``inside`` (no block), ``linear``,
``embedding``, ``head``, ``router`` (the role of a module's weight), ``float`` (the weight stays as it is), ``alone``
(shares its statistics with nobody) and ``shared:NAME`` (reads what the others of that name in its block read).
A list of words gives several. What a rule says is checked as far as it can be: a weight called linear has to compute
x·Wᵀ + b, blocks have to give the model's output when they are run one after another.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from bitwright.errors import InputError, nearest_key
from bitwright.models.chain import Chain
from bitwright.models.model import Model
from bitwright.models.record import ModuleCall, Run
from bitwright.models.sites import block_of
from bitwright.models.structure import Structure, WeightSite
from bitwright.models.unseen import probe

CLASS = "class:"
SHARED = "shared:"
BLOCKS = ("block", "inside")
ROLES = ("linear", "embedding", "head", "router", "float")
WORDS = (*BLOCKS, *ROLES, "alone", f"{SHARED}NAME")
MAX_BYTES = 2**20


@dataclass(frozen=True)
class Rules:
    """Ordered lines (pattern, words)."""

    lines: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lines)

    @property
    def name_blocks(self) -> bool:
        """Whether any line calls modules blocks."""
        return any("block" in words for _, words in self.lines)

    def says(self, path: str, kind: str, among: tuple[str, ...]) -> str | None:
        """The last word of ``among`` for a module path of class ``kind`` (``shared:`` also matches its names)."""
        found = None
        for pattern, words in self.lines:
            if matches(pattern, path, kind):
                for word in words:
                    if word in among or (SHARED in among and word.startswith(SHARED)):
                        found = word
        return found

    def check(self, module: nn.Module) -> None:
        """Every pattern has to match something.

        Raises:
            InputError: naming the nearest path or class.
        """
        kinds = {path: type(item).__name__ for path, item in module.named_modules() if path}
        for pattern, _ in self.lines:
            if not any(matches(pattern, path, kind) for path, kind in kinds.items()):
                known = {CLASS + kind for kind in kinds.values()} if pattern.startswith(CLASS) else set(kinds)
                nearest = difflib.get_close_matches(pattern, sorted(known), n=1, cutoff=0.0)
                raise InputError(f"the rule {pattern!r} matches no module; did you mean {''.join(nearest)!r}?")


NO_RULES = Rules()


def matches(pattern: str, path: str, kind: str) -> bool:
    """Whether a pattern selects a module."""
    if pattern.startswith(CLASS):
        return fnmatchcase(kind, pattern.removeprefix(CLASS))
    return fnmatchcase(path, pattern)


def read_rules(path: str | Path) -> Rules:
    """Read a rule file (``.json``, else TOML).

    Raises:
        InputError: for a file that cannot be read, or an unknown word (with the nearest one).
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise InputError(f"{file}: is no regular file; give the path of a rule file")
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{file}: is larger than {MAX_BYTES} bytes; a rule file has one line per rule")
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give the path of a rule file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f'{file}: is no TOML or JSON ({error}); write lines like "layers.*" = "block"') from error
    if not isinstance(found, dict):
        raise InputError(f'{file}: holds no lines "pattern" = "word"; write lines like "layers.*" = "block"')
    return parse_rules(found)


def parse_rules(found: Mapping[str, Any]) -> Rules:
    """Rules from a mapping of patterns to words.

    Raises:
        InputError: for an unknown word.
    """
    return Rules(tuple((pattern, tuple(_words(pattern, value))) for pattern, value in found.items()))


def _words(pattern: str, value: Any) -> Iterator[str]:
    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, dict):
            raise InputError(f"the rule {pattern!r} needs quotes around its whole pattern, dots included")
        if not isinstance(word, str) or (word not in WORDS and not word.startswith(SHARED)) or word == SHARED:
            raise InputError(f"the rule {pattern!r} says {word!r}, which is no word; {nearest_key(str(word), WORDS)}")
        yield word


def named_chain(rules: Rules, module: nn.Module, run: Run) -> Chain | None:
    """The chain that the rules name, or None where they name no blocks.

    Raises:
        InputError: when a named block is not called once with a floating tensor, or lies inside another.
    """
    kinds = {path: type(item).__name__ for path, item in module.named_modules() if path}
    named = {path for path, kind in kinds.items() if rules.says(path, kind, BLOCKS) == "block"}
    if not named:
        return None
    calls: dict[str, ModuleCall] = {}
    for call in run.calls:
        if call.path not in named:
            continue
        if call.path in calls or call.hidden is None or call.result is None:
            raise InputError(
                f"the rules call {call.path} a block, but it is called more than once or without a floating tensor; "
                "name modules that a run calls once"
            )
        if call.items < 0:
            raise InputError(
                f"the rules call {call.path} a block, but it returns neither a tensor nor a tuple, which nobody else "
                "can make; name the blocks inside it"
            )
        calls[call.path] = call
    for path in calls:
        outer = next((other for other in calls if path.startswith(f"{other}.")), None)
        if outer is not None:
            raise InputError(f"the rules call {path} and {outer}, which holds it, blocks; name one of them")
    if not calls:
        raise InputError(f"the rules call {min(named)} a block, but the example calls none of the blocks; name others")
    return Chain(tuple(calls.values()))


def excluded(rules: Rules, module: nn.Module) -> set[str]:
    """Paths of modules that must not be blocks."""
    kinds = {path: type(item).__name__ for path, item in module.named_modules() if path}
    return {path for path, kind in kinds.items() if rules.says(path, kind, BLOCKS) == "inside"}


def ruled_sites(rules: Rules, model: Model, found: Structure) -> Structure:
    """The structure with the roles and groups that the rules say.

    Raises:
        InputError: for a module called linear that is none, or sites of one name that cannot read the same tensor.
    """
    sites = [_with_role(rules, model, site) for site in found.sites]
    known = {site.path for site in sites}
    for path, module in model.module.named_modules():
        if path and path not in known and rules.says(path, type(module).__name__, ROLES) == "linear":
            sites.append(_forced(model, path, found.blocks))
    return replace(found, sites=tuple(_grouped(rules, model, sites)))


def _kind(model: Model, path: str) -> str:
    return type(model.module.get_submodule(path)).__name__


def _with_role(rules: Rules, model: Model, site: WeightSite) -> WeightSite:
    word = rules.says(site.path, _kind(model, site.path), ROLES)
    if word is None:
        return site
    plain = "outside" if site.block is None else "block"
    return replace(site, role=plain if word == "linear" else word)


def _forced(model: Model, path: str, blocks: tuple[str, ...]) -> WeightSite:
    """A site at a module that the experiment did not take for one."""
    module = model.module.get_submodule(path)
    arrays = [name for name, p in module.named_parameters(recurse=False) if p.dim() == 2]
    if len(arrays) == 1:
        with model.unit(path) as unit:
            found = probe(unit, arrays[0])
        if found is not None and found.kind == "linear":
            bias = next((n for n, p in module.named_parameters(recurse=False) if p.dim() == 1), None)
            block = block_of(path, blocks)
            return replace(
                found, path=path, parameter=arrays[0], block=block, role="outside" if block is None else "block",
                bias=None if bias is None else f"{path}.{bias}",
            )  # fmt: skip
    raise InputError(f"the rules call {path} linear, but alone it does not compute x·Wᵀ + b; leave the line out")


def _grouped(rules: Rules, model: Model, sites: list[WeightSite]) -> Iterator[WeightSite]:
    """Sites with the numbers of their groups; sites of one name in one block share one."""
    fresh = max((site.shared_input for site in sites), default=0) + 1
    named: dict[tuple[int | None, str], WeightSite] = {}
    for site in sites:
        word = rules.says(site.path, _kind(model, site.path), ("alone", SHARED))
        if word is None:
            yield site
            continue
        if word == "alone":
            yield replace(site, shared_input=fresh)
            fresh += 1
            continue
        first = named.setdefault((site.block, word), site)
        if first.shape[1] != site.shape[1]:
            raise InputError(
                f"the rules say that {first.path} and {site.path} read one tensor, but they read {first.shape[1]} and "
                f"{site.shape[1]} channels; give them other names"
            )
        yield replace(site, shared_input=first.shared_input)
