"""What Bitwright asks to be installed, read from its own metadata: which extra brings which distribution."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Requirement:
    """One distribution: its name, the extra that brings it (None: the base install), its installed version or None."""

    name: str
    extra: str | None
    installed: str | None


# Where the name that is imported differs from the name that is installed.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}


def requirements() -> tuple[Requirement, ...]:
    """All requirements in the order of the metadata; empty when Bitwright runs without being installed.

    An extra that only collects other extras contributes nothing of its own.
    """
    try:
        lines = metadata.requires("bitwright") or []
    except metadata.PackageNotFoundError:
        return ()
    return tuple(need for need in map(_parse, lines) if need.name != "bitwright")


def extra_for(module: str) -> str | None:
    """The smallest extra that installs the distribution of an imported module, or None where no extra does."""
    wanted = _normal(_DISTRIBUTIONS.get(module, module))
    every = requirements()
    sizes = Counter(need.extra for need in every)
    offers = [need.extra for need in every if need.extra and _normal(need.name) == wanted]
    return min(offers, key=lambda extra: sizes[extra], default=None)


def _parse(line: str) -> Requirement:
    name = re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0]
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
    return Requirement(name, extra[1] if extra else None, _version(name))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
