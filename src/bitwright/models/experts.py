"""Find fused experts by experiment and open them, so that each expert is a layer like any other.

Transformers and others keep the experts of a layer in one parameter ``[experts, out, in]`` or ``[experts, in, out]``.
Which of a model's three-dimensional parameters are such stacks is seen in a run: a matrix cut out of the parameter is
the weight of a product. Opening is proved by running the model again: its output must not move.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from bitwright.models.calling import example_inputs, experts_configs, experts_run, on_device_of, shrunk
from bitwright.models.expert_stack import ExpertStack
from bitwright.models.model import Model
from bitwright.models.naming import NameMap, Source
from bitwright.models.outline import record_shapes
from bitwright.models.record import Op, Ref, Run, Slot, record_run

logger = logging.getLogger(__name__)

# operation -> slots of the weight with whether it is used as [in, out] there
_PRODUCTS: dict[str, dict[Slot, bool]] = {
    "linear": {1: False, "weight": False},
    "addmm": {2: True, "mat2": True},
    "matmul": {0: False, 1: True, "other": True},
    "__matmul__": {0: False, 1: True},
    "mm": {0: False, 1: True, "mat2": True},
    "bmm": {0: False, 1: True, "mat2": True},
    "baddbmm": {2: True, "batch2": True},
}
# What cuts a matrix out of a stack, and what hands the same matrices on.
_CUTS = frozenset({"__getitem__", "select", "unbind", "index_select", "chunk", "split", "narrow", "squeeze"})
_MOVES = frozenset({
    "to", "float", "type", "type_as", "contiguous", "clone", "detach", "half", "bfloat16", "double", "T", "mT", "t",
    "transpose", "permute", "data",
})  # fmt: skip
# What makes three axes of two.
_VIEWS = frozenset({"view", "reshape", "unflatten"})


@dataclass(frozen=True)
class FusedWeight:
    """A parameter that holds the matrices of several experts.

    Attributes:
        path: full name of the parameter; opened, it is the path of the module that stands in its place.
        experts: number of matrices.
        shape: (out, in) of one matrix.
        transposed: each rests as [in, out].
    """

    path: str
    experts: int
    shape: tuple[int, int]
    transposed: bool

    def names(self) -> Iterator[str]:
        """Names of the experts' own weights once it is opened."""
        return (self.name(e) for e in range(self.experts))

    def name(self, expert: int) -> str:
        """Name of one expert's weight once it is opened."""
        return f"{self.path}.{expert}.weight"


def open_experts(model: Model, example: Any = None) -> tuple[FusedWeight, ...]:
    """Find the fused experts of ``model`` and open them in place; () where there are none.

    Where the library offers several implementations of its experts, the plain one (a loop over experts) is chosen: the
    others call no expert by itself. A run of shapes finds them where it can be made; it reads no weight.
    """
    if not any(_may_be_stack(name, p) for name, p in model.module.named_parameters()):
        return ()
    example = on_device_of(model.module, example_inputs(model.module) if example is None else shrunk(example))
    run = record_shapes(model, example)
    if run is None:
        with experts_run(model.module, "eager"):
            run = record_run(model, example)
    found = find_fused(model.module, run)
    aliases = model.names.aliases if model.names is not None else {}
    found = tuple(f for f in found if f.path not in aliases and f.path not in aliases.values())
    open_stacks(model, found)
    return found


def _may_be_stack(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is worth a run to see what is done with the parameter: a plain layer's weight has two axes."""
    return parameter.dim() == 3 or (parameter.dim() == 2 and not name.endswith("weight"))


def find_fused(module: nn.Module, run: Run) -> tuple[FusedWeight, ...]:
    """The parameters whose matrices are weights of products, in order of use.

    They have three axes, or two of which the run makes three. One that is shared by two modules is left alone.
    """
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.dim() == 3 and p.is_contiguous()}
    shapes.update(_flat_stacks(module, run))
    owners = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    shapes = {name: shape for name, shape in shapes.items() if owners[id(module.get_parameter(name))] == 1}
    held = {key: name for key, name in run.constants.items() if name in shapes}
    seen: dict[str, set[bool]] = {}
    for op in run.ops:
        name = _handed_on(op, held, shapes)
        if name is not None:
            for ref in op.outputs:
                if ref.shape[-2:] in (shapes[name][1:], shapes[name][:0:-1]):
                    held.setdefault(ref.key, name)
        for name, used_turned in _weights_of(op, held, shapes):
            seen.setdefault(name, set()).add(used_turned)
    found = []
    for name, turned in seen.items():
        if len(turned) == 1:
            (transposed,) = turned
            experts, first, second = shapes[name]
            found.append(FusedWeight(name, experts, (second, first) if transposed else (first, second), transposed))
    return tuple(found)


def _flat_stacks(module: nn.Module, run: Run) -> dict[str, tuple[int, ...]]:
    """Shapes in which the run views parameters of two axes as several matrices, one below the other."""
    plain = {name for name, p in module.named_parameters() if p.dim() == 2 and p.is_contiguous()}
    found: dict[str, tuple[int, ...]] = {}
    for op in run.ops:
        if op.name not in _VIEWS or not op.inputs:
            continue
        name, stored = run.constants.get(op.inputs[0][1].key, ""), op.inputs[0][1].shape
        for ref in op.outputs if name in plain and len(stored) == 2 else ():
            if len(ref.shape) == 3 and ref.shape[0] > 1 and ref.shape[2] == stored[1]:
                found[name] = ref.shape
    return found


def _handed_on(op: Op, held: Mapping[int, str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The stack whose matrices the operation's output still is."""
    if not op.inputs or op.name not in _CUTS | _MOVES | _VIEWS:
        return None
    return held.get(op.inputs[0][1].key)


def _weights_of(op: Op, held: Mapping[int, str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, bool]]:
    """(parameter, whether it rests as [in, out]) of the stacks that the operation uses as its weight."""
    if op.name not in _PRODUCTS:
        return
    slots = _PRODUCTS[op.name]
    for slot, ref in op.inputs:
        if slot in slots and ref.key in held and len(ref.shape) in (2, 3):
            name = held[ref.key]
            yield name, slots[slot] != _is_turned(ref, shapes[name])


def _is_turned(ref: Ref, stored: tuple[int, ...]) -> bool:
    """Whether a matrix is the transpose of what is stored."""
    if stored[1] != stored[2]:
        return ref.shape[-2:] != stored[1:]
    return ref.stride[-2] < ref.stride[-1]


def open_stacks(model: Model, found: Sequence[FusedWeight]) -> None:
    """Put a module of layers in the place of every fused parameter; parameters without memory stay without."""
    for fused in found:
        put_stack(model.module, fused.path, fused.transposed, fused.experts)
    if found:
        eager_experts(model.module)
        model.experts = tuple(found)
        if model.names is not None:
            model.names = opened_names(model.names, found)


def put_stack(module: nn.Module, path: str, transposed: bool, experts: int) -> ExpertStack:
    """Replace the parameter ``path`` by its experts' layers, which look into its memory."""
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    parameter = owner.get_parameter(leaf)
    stack = ExpertStack.of(parameter, transposed, experts)
    delattr(owner, leaf)
    owner.add_module(leaf, stack)
    return stack


def opened_names(names: NameMap, found: Sequence[FusedWeight]) -> NameMap:
    """The map of names with the experts' own weights in the place of the fused ones.

    Where the checkpoint stores every expert by itself, an expert's weight is made of its own tensors; else it is a part
    of the stored stack.
    """
    sources = dict(names.sources)
    for fused in found:
        source = sources.pop(fused.path, None)
        if source is None:
            continue
        for expert, name in enumerate(fused.names()):
            sources[name] = replace(_expert_source(source, expert, fused.experts), parts=fused.experts)
    return replace(names, sources=sources)


def _expert_source(source: Source, expert: int, experts: int) -> Source:
    """The part of a stack's source that makes one expert."""
    groups: dict[str, list[str]] = {}
    for key, pattern in zip(source.keys, source.patterns, strict=False):
        groups.setdefault(pattern, []).append(key)
    if source.converter is not None and groups and all(len(keys) == experts for keys in groups.values()):
        own = [(keys[expert], pattern) for pattern, keys in groups.items()]
        return replace(source, keys=tuple(k for k, _ in own), patterns=tuple(p for _, p in own), part=0)
    return replace(source, part=expert)


def eager_experts(module: nn.Module) -> None:
    """Have transformers run experts one after the other; models without that choice are left alone."""
    for config in experts_configs(module):
        config._experts_implementation = "eager"


def is_expert_layer(module: nn.Module | None) -> bool:
    """Whether a module is a stack of experts' layers."""
    return isinstance(module, ExpertStack)
