"""Operators of compiled kernels in ``torch.library``, so that compiled and exported graphs hold them as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Return the new operator ``bitwright::name``: ``run`` on processors, ``fake`` where only shapes are known.

    Called when a module of kernels is imported, which happens when one of its kernels is asked for: torch.compile can
    not follow a registration.
    """
    torch.library.define(f"bitwright::{name}", schema)
    torch.library.impl(f"bitwright::{name}", "CPU", run)
    torch.library.register_fake(f"bitwright::{name}", fake)
    return getattr(torch.ops.bitwright, name).default
