"""Load the extension when it is first asked for, and say why where it is not there."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from bitwright.errors import InputError

Library = Any
"""``_core.Library``: the kernels of one instruction set; compiled code has no types that mypy could read."""


@lru_cache(maxsize=1)
def _extension() -> tuple[Any, str]:
    try:
        return importlib.import_module("bitwright.native._core"), ""
    except ImportError as error:
        return None, str(error)


def unavailable() -> str | None:
    """Why there are no compiled kernels here, in one sentence, or ``None`` where there are."""
    found, reason = _extension()
    if found is not None:
        return None
    return f"the compiled kernels are not installed ({reason}); install a C++20 compiler and bitwright again"


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that this processor has and this build serves, the fastest first; empty without a build."""
    found, _ = _extension()
    return () if found is None else tuple(found.instruction_sets())


def chosen() -> str:
    """The instruction set that kernels run on here, ``none`` without a build: results may differ in last bits."""
    return next(iter(instruction_sets()), "none")


@lru_cache(maxsize=8)
def _opened(name: str) -> Library:
    return _extension()[0].Library(name)


def library(instruction_set: str | None = None) -> Library | None:
    """The compiled kernels of an instruction set, by default the fastest; ``None`` where there is no build.

    Raises:
        InputError: if the processor does not have that instruction set.
    """
    known = instruction_sets()
    if not known:
        return None
    name = known[0] if instruction_set is None else instruction_set
    if name not in known:
        raise InputError(f"this machine has no kernels for {name}; choose one of {', '.join(known)}")
    return _opened(name)


def extension() -> Any:
    """The extension module.

    Raises:
        InputError: where there is no build, with the reason.
    """
    require_library()
    return _extension()[0]


def require_library(instruction_set: str | None = None) -> Library:
    """As :func:`library`.

    Raises:
        InputError: also where there is no build, with the reason.
    """
    found = library(instruction_set)
    if found is None:
        raise InputError(unavailable() or "there are no compiled kernels")
    return found
