"""One sweep of the data through a unit, with collectors at the inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.statistics import Collector, Statistic, View

Requests = Mapping[str, Sequence[Statistic]]
Results = dict[str, dict[Statistic, Any]]


class StopSweep(Exception):
    """Raised inside a forward pass once the last wanted input was seen."""


def input_rows(module: nn.Module, x: Tensor, view: View, keep: Tensor | None) -> Tensor:
    """Lay a layer's input out as rows ``[tokens, in]``; padding tokens (``keep`` false) are left out."""
    geometry = convolution(module)
    if geometry is None or x.ndim < 3:
        if keep is not None and x.shape[: keep.ndim] == keep.shape:
            return x[keep]
        return x.reshape(-1, x.shape[-1])
    if view == "channels" or geometry.groups > 1:
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    padded = functional.pad(x, [pad for p in reversed(geometry.padding) for pad in (p, p)])
    if x.ndim == 3:
        padded = padded.unsqueeze(2)
    columns = functional.unfold(
        padded, geometry.two("kernel"), dilation=geometry.two("dilation"), stride=geometry.two("stride")
    )
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution; tuples have one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def two(self, name: str) -> tuple[int, int]:
        """A property for two spatial axes; a missing first axis has length one."""
        values: tuple[int, ...] = getattr(self, name)
        return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def convolution(module: nn.Module) -> Convolution | None:
    """The geometry of a float or quantized convolution, ``None`` for anything else."""
    source: Any = getattr(module, "geometry", module)
    if not all(hasattr(source, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")):
        return None
    padding = source.padding
    steps = [step * (size - 1) for step, size in zip(source.dilation, source.kernel_size, strict=True)]
    if padding == "valid":
        padding = tuple(0 for _ in steps)
    elif padding == "same" and not any(step % 2 for step in steps):
        padding = tuple(step // 2 for step in steps)
    if isinstance(padding, str):
        raise InputError(f"a convolution with padding={padding!r} cannot be laid out as columns; give numbers")
    return Convolution(
        tuple(source.kernel_size), tuple(source.stride), tuple(padding), tuple(source.dilation), int(source.groups)
    )


@contextmanager
def input_hooks(
    root: nn.Module, paths: Iterable[str], seen: Callable[[str, nn.Module, Tensor], None]
) -> Iterator[None]:
    """Call ``seen(path, module, x)`` at every call of the modules while the context lasts."""
    with ExitStack() as stack:
        for path in paths:
            module = root.get_submodule(path)

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                seen(path, module, args[0] if args else next(iter(kwargs.values())))

            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def output_hooks(root: nn.Module, paths: Iterable[str], seen: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``seen(path, y)`` with every output of the modules while the context lasts."""
    with ExitStack() as stack:
        for path in paths:

            def hook(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
                seen(path, output if isinstance(output, Tensor) else output[0])

            handle = root.get_submodule(path).register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


class Gatherer:
    """Collectors of one sweep; feed it through hooks, then read :meth:`results`."""

    def __init__(self, root: nn.Module, requests: Requests) -> None:
        self.root = root
        self.requests = {path: tuple(dict.fromkeys(wanted)) for path, wanted in requests.items() if wanted}
        self.collectors: dict[tuple[str, Statistic], Collector] = {}
        self.keep: Tensor | None = None
        self.twins: dict[str, list[Tensor]] = {}
        # Layers that get other tokens than their twins do (experts): they are their own twins.
        self.alone: frozenset[str] = frozenset()

    def __call__(self, path: str, module: nn.Module, x: Tensor) -> None:
        """Feed one input."""
        twin = self.twins[path].pop(0) if self.twins.get(path) else None
        rows: dict[View, Tensor] = {}
        for request in self.requests[path]:
            if request.view not in rows:
                rows[request.view] = input_rows(module, x.detach(), request.view, self.keep)
            data = rows[request.view]
            key = (path, request)
            if key not in self.collectors:
                self.collectors[key] = request.open(data.shape[1])
            other = None
            if request.reads_twin and path in self.alone:
                other = data
            elif request.reads_twin and twin is not None:
                other = input_rows(module, twin, request.view, self.keep)
            self.collectors[key].update(data, other)

    @property
    def reads_twin(self) -> bool:
        """Whether any request wants the float model's tokens."""
        return any(r.reads_twin for path, wanted in self.requests.items() if path not in self.alone for r in wanted)

    def results(self) -> Results:
        """Results by path and request; a layer that was never called has none."""
        found: Results = {path: {} for path in self.requests}
        for (path, request), collector in self.collectors.items():
            found[path][request] = collector.result()
        return found


def capture_inputs(
    root: nn.Module, paths: Iterable[str], run: Callable[[], object], stop: str | None = None
) -> dict[str, list[Tensor]]:
    """Run once and return the inputs of the modules, in call order; ``stop`` ends the pass at that module's input."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        stack.enter_context(input_hooks(root, paths, lambda path, _, x: found.setdefault(path, []).append(x.detach())))
        if stop is not None:
            stack.enter_context(stop_after(root, stop))
        with torch.no_grad():
            run()
    return found


@contextmanager
def stop_after(root: nn.Module, path: str) -> Iterator[None]:
    """End a forward pass at the input of module ``path``, after the hooks that were there before."""

    def hook(module: nn.Module, args: object) -> None:
        raise StopSweep

    handle = root.get_submodule(path).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
