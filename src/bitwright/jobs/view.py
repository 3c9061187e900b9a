"""The unit as the stages see it: weights by path, pairs, online operations, trial runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.jobs.units import Unit
from bitwright.models import Structure, WeightSite
from bitwright.models.stream import fresh, hidden_of
from bitwright.models.structure import StreamParameter
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.transforms import OnlineOperation
from bitwright.stages.transforms.base import PairView, Part, ResidualView, StreamTouch

Call = tuple[tuple[Any, ...], dict[str, Any]]


def flat_weight(module: nn.Module, transposed: bool) -> Tensor:
    """The weight as ``[out, in]`` (convolutions flattened), ``[rows, dim]`` (embeddings) or ``[dim]`` (norms), fp32."""
    w = module.get_parameter("weight").detach().float()
    if w.ndim < 2:
        return w.clone()
    if transposed:
        return w.t().contiguous()
    return w.reshape(w.shape[0], -1).clone()


def shaped_like(module: nn.Module, w: Tensor, transposed: bool) -> Tensor:
    """``w[out, in]`` in the layout of the module's own weight."""
    shape = module.get_parameter("weight").shape
    return w.t() if transposed else w.reshape(shape)


@contextmanager
def swapped_weights(root: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run with other weights (in the modules' own layout); gradients flow into them."""
    kept: list[tuple[nn.Module, nn.Parameter]] = []
    try:
        for path, w in weights.items():
            module = root.get_submodule(path)
            parameter = module.get_parameter("weight")
            kept.append((module, parameter))
            del module._parameters["weight"]
            module.weight = w.to(parameter.dtype)
        yield
    finally:
        for module, parameter in kept:
            del module.weight
            module.register_parameter("weight", parameter)


def _touch(entry: StreamParameter, sites: Mapping[str, WeightSite]) -> StreamTouch:
    path, _, parameter = entry.name.rpartition(".")
    site = sites.get(path)
    transposed = parameter == "weight" and site is not None and site.transposed
    return StreamTouch(path, parameter, 1 - entry.axis if transposed else entry.axis, entry.norm)


class UnitView:
    """Implements :class:`bitwright.stages.transforms.Block` over the modules of one unit.

    Args:
        root: the whole model, with the unit's modules in memory.
        stored_dtype: dtype in which a parameter will be written, by parameter name; every write is rounded to it so
            that what runs here is what will be loaded.
        quantizers, input_quantizers: what the recipe's rules chose, by path.
        trial: runs the unit on some float batches (for searches that look at outputs).
    """

    def __init__(
        self,
        root: nn.Module,
        unit: Unit,
        structure: Structure,
        stored_dtype: Callable[[str], torch.dtype],
        quantizers: Mapping[str, Quantizer],
        input_quantizers: Mapping[str, Quantizer],
        trial: Callable[[int | None], list[Tensor]] | None = None,
    ) -> None:
        self.root = root
        self.name = unit.name
        self.unit = unit
        self.structure = structure
        self.stored_dtype = stored_dtype
        self._quantizers = quantizers
        self._input_quantizers = input_quantizers
        self._trial = trial
        self._sites: dict[str, WeightSite] = {s.path: s for s in structure.sites}
        self.linears = tuple(s.path for s in unit.sites if s.kind in ("linear", "conv") and s.whole)
        self.changed: set[str] = set()
        # Calls of the experts of one family, taken in one run for all; see _calls.
        self._experts_calls: dict[str, list[Call]] = {}
        self.removed: list[str] = []
        self.online: dict[str, list[OnlineOperation]] = {}
        self.cache_online: dict[str, list[OnlineOperation]] = {}
        offsets = {n.path: n.offset for n in structure.norms}
        self.pairs = tuple(
            PairView(
                p.kind,
                p.source,
                tuple(p.sinks),
                p.repeat,
                p.head_dim,
                p.rows,
                tuple(p.through),
                offsets.get(p.source, 0.0),
                p.turns,
            )
            for p in structure.pairs
            if self._inside(p.source) and all(self._inside(s) and self._plain(s) for s in p.sinks)
        )
        stream = structure.residual
        self.residual: ResidualView | None = None if stream is None else ResidualView(
            stream.dim, stream.norm_kind, tuple(_touch(t, self._sites) for t in stream.writes),
            tuple(_touch(t, self._sites) for t in stream.reads), offsets,
        )  # fmt: skip

    def _plain(self, path: str) -> bool:
        """Whether the inputs of a layer are those of its module, and its weight goes by that name."""
        site = self._sites[path]
        return site.whole and site.parameter == "weight"

    def _inside(self, path: str) -> bool:
        if self.unit.kind == "whole":
            return True
        if self.unit.block is not None:
            block = self.structure.blocks[self.unit.block]
            return path == block or path.startswith(block + ".")
        return path in self.unit.paths

    def _module(self, path: str) -> nn.Module:
        return self.root.get_submodule(path)

    def _transposed(self, path: str) -> bool:
        site = self._sites.get(path)
        return bool(site is not None and getattr(site, "transposed", False))

    def holds(self, path: str) -> bool:
        """Whether the module lies in this unit and is in memory."""
        module = self._module(path)
        return self._inside(path) and not any(p.is_meta for p in module.parameters(recurse=False))

    def weight(self, path: str) -> Tensor:
        """See the protocol."""
        return flat_weight(self._module(path), self._transposed(path))

    def bias(self, path: str) -> Tensor | None:
        """See the protocol."""
        b = getattr(self._module(path), "bias", None)
        return None if b is None else b.detach().float().clone()

    def set_weight(self, path: str, w: Tensor) -> None:
        """See the protocol."""
        self._moves(path)
        module = self._module(path)
        name = f"{path}.weight"
        stored = shaped_like(module, w, self._transposed(path)).to(self.stored_dtype(name))
        module.get_parameter("weight").data.copy_(stored)
        self.changed.add(name)

    def set_bias(self, path: str, b: Tensor | None) -> None:
        """See the protocol."""
        self._moves(path)
        module = self._module(path)
        name = f"{path}.bias"
        if b is None:
            module.register_parameter("bias", None)
            return
        weight = module.get_parameter("weight")
        stored = b.to(self.stored_dtype(name)).to(weight.dtype)
        module.register_parameter("bias", nn.Parameter(stored.clone(), requires_grad=False))
        self.changed.add(name)

    def set_parameter(self, path: str, name: str, value: Tensor) -> None:
        """See the protocol."""
        self._moves(path)
        full = f"{path}.{name}".removeprefix(".")
        self._module(path).get_parameter(name).data.copy_(value.to(self.stored_dtype(full)))
        self.changed.add(full)

    def attribute(self, path: str, name: str) -> Any:
        """See the protocol."""
        return getattr(self._module(path), name)

    def remove(self, path: str) -> None:
        """See the protocol."""
        self._moves(path)
        parent, _, leaf = path.rpartition(".")
        setattr(self._module(parent), leaf, nn.Identity())
        self.removed.append(path)
        self.changed = {n for n in self.changed if not n.startswith(path + ".")}

    def quantizer(self, path: str) -> Quantizer | None:
        """See the protocol."""
        return self._quantizers.get(path)

    def input_quantizer(self, path: str) -> Quantizer | None:
        """See the protocol."""
        return self._input_quantizers.get(path)

    def add_online(self, path: str, operation: OnlineOperation) -> None:
        """See the protocol; the paths ``key`` and ``value`` are the sites of the KV cache."""
        table = self.cache_online if path in ("key", "value") else self.online
        table.setdefault(path, []).append(operation)

    def outputs(self, overrides: Mapping[str, Tensor], batches: int | None = None) -> list[Tensor]:
        """See the protocol."""
        if self._trial is None:
            raise RuntimeError(f"{self.name}: this stage looks at outputs, which needs calibration data")
        shaped = {p: shaped_like(self._module(p), w, self._transposed(p)) for p, w in overrides.items()}
        with swapped_weights(self.root, shaped), torch.no_grad():
            return self._trial(batches)

    def part(self, paths: Sequence[str], batches: int | None = None) -> Part:
        """See the protocol."""
        path = _common(paths)
        while path and self._inside(path) and path != self.name:
            calls = self._calls(path, batches)
            if calls:
                return lambda overrides: self._run(path, calls, overrides)
            path = path.rpartition(".")[0]  # a list of modules is not called itself
        return lambda overrides: self.outputs(overrides, batches)

    def _calls(self, path: str, batches: int | None) -> list[Call]:
        """The arguments with which the float stream now calls a module.

        Experts do not read one another, so one run serves a family, once for each until another layer changes.
        """
        family = self._sites[path].family if path in self._sites else ""
        if not family:
            return self._captured([path], batches)[path]
        if path not in self._experts_calls:
            alike = [s.path for s in self.unit.sites if s.family == family]
            self._experts_calls = self._captured(alike, batches)
        return self._experts_calls.pop(path)

    def _moves(self, path: str) -> None:
        """Forget the experts' calls where a change of layer ``path`` may move what experts read."""
        site = self._sites.get(path)
        if site is None or site.expert is None:
            self._experts_calls.clear()

    def _captured(self, paths: Sequence[str], batches: int | None) -> dict[str, list[Call]]:
        calls: dict[str, list[Call]] = {path: [] for path in paths}

        def hook(kept: list[Call], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append((fresh(args), fresh(kwargs)))  # the call itself may change a cache

        with ExitStack() as stack:
            for path, kept in calls.items():
                # First of all hooks: an online operation at this input will run again with every call.
                handle = self._module(path).register_forward_pre_hook(
                    partial(hook, kept), with_kwargs=True, prepend=True
                )
                stack.callback(handle.remove)
            self.outputs({}, batches)
        return calls

    def _run(self, path: str, calls: Sequence[Call], overrides: Mapping[str, Tensor]) -> list[Tensor]:
        shaped = {p: shaped_like(self._module(p), w, self._transposed(p)) for p, w in overrides.items()}
        with swapped_weights(self.root, shaped), torch.no_grad():
            return [hidden_of(self._module(path)(*args, **kwargs)) for args, kwargs in fresh(list(calls))]


def _common(paths: Sequence[str]) -> str:
    """The path of the smallest module that holds all of ``paths``."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, levels))
