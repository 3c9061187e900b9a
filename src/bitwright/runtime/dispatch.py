"""Which kernel serves which quantized operation: a table that is asked, never patched.

A kernel says what it serves (operation, normal forms, devices), how much it is preferred, and ``refuses`` what it
cannot do with a reason. The default table is one immutable value, :data:`bitwright.runtime.kernels.table.TABLE`;
callers may hand their own to everything that takes ``table``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bitwright.errors import InputError


class UnsupportedError(InputError):
    """No kernel serves a request; the message names the limit of every kernel that was considered."""


@dataclass(frozen=True)
class Request:
    """What is asked of a kernel.

    Args:
        op: ``linear``, ``conv2d``, ``embedding`` or ``hadamard``.
        form: normal form of the weight (``affine``, ``table``, ``codebook``, ``affine+sparse`` ...; "" without one).
        device: device type, ``cpu`` or ``cuda``.
        dtype: dtype of the activations.
        shape: ``(out, in)`` of the weight, or ``(size,)`` of a transform.
        format: text of the weight's first format.
        rows: tokens in this call, rounded up to a power of two (``None``: any), so that a table can hold kernels for
            decoding and for long prompts.
        input: text of the input's format (``None``: the input is float).
        keep_dense: the caller allows one dequantized copy of the weight to be kept.
        exact: activations may not be rounded beyond what the recipe says.
    """

    op: str
    form: str
    device: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    format: str = ""
    rows: int | None = None
    input: str | None = None
    keep_dense: bool = False
    exact: bool = True


def serve_floats(request: Request) -> str | None:
    """Refuse what torch cannot multiply: the ``refuses`` of the reference kernels."""
    if request.dtype.is_floating_point and request.dtype.itemsize >= 2:
        return None
    return f"serves float16, bfloat16, float32 and float64, not {str(request.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operation.

    Args:
        name: unique in a table, e.g. ``linear/reference``.
        op: the operation.
        priority: higher is preferred; the references have 0.
        why: one clause for people: why this kernel is preferred where it serves.
        prepare: makes what ``run`` needs of a :class:`~bitwright.runtime.weight.PackedWeight` and a dtype; the result
            is kept by the module until it moves or reloads.
        run: the operation. linear: ``run(x, prepared, bias, quantizer)``; conv2d: ``run(x, prepared, bias, quantizer,
            geometry)``; embedding: ``run(ids, prepared, dtype)``; hadamard: ``run(x, size, seed, inverse)``.
        forms: normal forms it serves (empty: every one). devices: device types (empty: every one).
        refuses: reason why a request is not served, or ``None``.
    """

    name: str
    op: str
    priority: int
    why: str
    prepare: Callable[..., Any]
    run: Callable[..., Any]
    forms: frozenset[str] = field(default=frozenset())
    devices: frozenset[str] = field(default=frozenset())
    refuses: Callable[[Request], str | None] = serve_floats

    def limit(self, request: Request) -> str | None:
        """Return why this kernel does not serve the request, or ``None`` if it does."""
        if request.op != self.op:
            return f"serves {self.op}"
        if self.forms and request.form not in self.forms:
            return f"serves the forms {', '.join(sorted(self.forms))}, not {request.form}"
        if self.devices and request.device not in self.devices:
            return f"serves {', '.join(sorted(self.devices))}, not {request.device}"
        return self.refuses(request)

    def supports(self, request: Request) -> bool:
        """Whether the kernel serves the request."""
        return self.limit(request) is None


@dataclass(frozen=True)
class Choice:
    """The kernel for a request, and why it was taken (``passed_over``: better ones and what stopped them)."""

    kernel: Kernel
    why: str
    passed_over: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """Kernels in the order in which they are asked: by priority, equal ones as registered."""

    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        names = [kernel.name for kernel in self.kernels]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise InputError(f"kernels are registered twice: {', '.join(sorted(repeated))}; give them other names")

    def choose(self, request: Request) -> Choice:
        """Return the preferred kernel that serves the request.

        Raises:
            UnsupportedError: no kernel does; the message lists each limit.
        """
        passed_over: list[tuple[str, str]] = []
        for kernel in sorted(self.kernels, key=lambda item: -item.priority):
            if kernel.op != request.op:
                continue
            limit = kernel.limit(request)
            if limit is None:
                return Choice(kernel, kernel.why, tuple(passed_over))
            passed_over.append((kernel.name, limit))
        reasons = "; ".join(f"{name}: {limit}" for name, limit in passed_over) or "none is registered"
        form = f" for {request.form} weights" if request.form else ""
        raise UnsupportedError(
            f"no {request.op} kernel{form} with {request.dtype} on {request.device} ({reasons}); "
            "use another dtype or device, or a table with such a kernel"
        )

    def with_kernels(self, *kernels: Kernel) -> Table:
        """Return a table that holds further kernels, asked before the present ones of equal priority."""
        return Table((*kernels, *self.kernels))
