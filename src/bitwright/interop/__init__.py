"""Interop: files of other programs, written and read by pure functions on tensors and configs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bitwright.errors import InputError, nearest_key
from bitwright.interop import compressed_tensors
from bitwright.interop.network import Network, Plan, Planner

TARGETS: Mapping[str, Planner] = MappingProxyType({"compressed-tensors": compressed_tensors.plan})
"""Every format that ``bitwright export --to`` writes, and what plans it."""


def planner(target: str) -> Planner:
    """Return the planner of a format by name.

    Raises:
        InputError: an unknown format; the nearest name is given.
    """
    if target not in TARGETS:
        raise InputError(f"unknown export format {target!r}; {nearest_key(target, TARGETS)}")
    return TARGETS[target]


__all__ = ["TARGETS", "Network", "Plan", "Planner", "planner"]
