"""Find every weight that enters a product: linear, convolution or embedding, by the operation that used it.

A weight is linear because the run multiplied by it, never because of a class name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from bitwright.models.chain import downstream
from bitwright.models.model import Model
from bitwright.models.record import ModuleCall, Op, Ref, Run, Slot
from bitwright.models.structure import WeightSite

# operation -> (kind, slot of the data, slot of the weight, slot of the bias, weight is used as [in, out])
_PRODUCTS: dict[str, tuple[str, int, int, int, bool]] = {
    "linear": ("linear", 0, 1, 2, False),
    "addmm": ("linear", 1, 2, 0, True),
    "matmul": ("linear", 0, 1, -1, True),
    "__matmul__": ("linear", 0, 1, -1, True),
    "mm": ("linear", 0, 1, -1, True),
    "conv1d": ("conv", 0, 1, 2, False),
    "conv2d": ("conv", 0, 1, 2, False),
    "conv3d": ("conv", 0, 1, 2, False),
    "embedding": ("embedding", 0, 1, -1, False),
    "embedding_bag": ("embedding", 0, 1, -1, False),
}
# Operations whose result is the whole parameter in another dtype, memory or shape.
_COPIES = frozenset({
    "to", "float", "type", "type_as", "contiguous", "clone", "detach", "half", "bfloat16", "double", "T", "mT", "t",
    "transpose", "permute", "view", "reshape", "data", "squeeze", "unsqueeze",
})  # fmt: skip
_KEYWORDS = {"input": 0, "weight": 1, "bias": 2}


@dataclass(frozen=True)
class Use:
    """A site together with the operation that used it and the values it read and made.

    ``points``: a convolution whose kernel is a single point.
    """

    site: WeightSite
    op: int
    entry: Ref
    result: Ref
    points: bool = False


def find_uses(model: Model, run: Run, blocks: tuple[str, ...]) -> tuple[Use, ...]:
    """Every weight product of a recorded run, in call order (roles of heads are not set yet).

    A weight that is used twice appears twice, with equal sites; one that is a table in one call of its module and a
    factor in another is not ``whole``: no layer of one kind can take its place.
    """
    origins = _origins(run)
    owners = {name for name, _ in model.module.named_parameters()}
    sites: dict[str, WeightSite] = {}
    inputs: dict[tuple[object, ...], int] = {}
    kinds: dict[str, set[str]] = {}
    uses = []
    for op in run.ops:
        if op.name not in _PRODUCTS or not op.outputs:
            continue
        use = _use_of(op, model.module, run, origins, owners, blocks)
        if use is not None:
            number = inputs.setdefault(_reading(use), len(inputs))
            site = sites.setdefault(use.site.name, replace(use.site, shared_input=number))
            uses.append(replace(use, site=site))
            kinds.setdefault(site.name, set()).add(use.site.kind)
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    return tuple(replace(u, site=replace(u.site, whole=False)) if u.site.name in mixed else u for u in uses)


def _reading(use: Use) -> tuple[object, ...]:
    """Equal for uses whose products see the same rows.

    Two convolutions see the same windows of an image only where these are single points with the same steps between.
    """
    site = use.site
    if site.kind != "conv":
        return (use.entry.key,)
    if use.points:
        return use.entry.key, site.groups, use.result.shape[2:]
    return use.entry.key, use.op


def sites_of(uses: tuple[Use, ...]) -> list[WeightSite]:
    """The distinct sites of all uses, in call order."""
    return list({use.site.name: use.site for use in uses}.values())


def mark_head(run: Run, uses: tuple[Use, ...], last: ModuleCall | None) -> tuple[Use, ...]:
    """Give the role ``head`` to the last linear behind the last block, if all outputs of the stream pass it."""
    begin = last.exit if last is not None else 0
    linears = [use for use in uses if use.site.kind == "linear" and use.site.role == "outside" and use.op >= begin]
    if not linears:
        return uses
    head = linears[-1]
    behind = downstream(head.result.key, head.op, run)
    leaving = last.result if last is not None else None
    stream = downstream(leaving.key if leaving is not None else head.entry.key, begin, run)
    outputs = [ref.key for ref in run.outputs if ref.floating]
    if not any(key in behind for key in outputs) or any(key in stream and key not in behind for key in outputs):
        return uses
    name = head.site.name
    return tuple(replace(u, site=replace(u.site, role="head")) if u.site.name == name else u for u in uses)


def block_of(path: str, blocks: tuple[str, ...]) -> int | None:
    """Number of the block that holds module ``path``."""
    return next((i for i, block in enumerate(blocks) if path == block or path.startswith(f"{block}.")), None)


def _origins(run: Run) -> dict[int, str]:
    """Values that are a parameter or a plain copy of one."""
    origins = dict(run.constants)
    for op in run.ops:
        if op.name not in _COPIES or len(op.outputs) != 1 or not op.inputs:
            continue
        given, made = op.inputs[0][1], op.outputs[0]
        if given.key in origins and _product(given.shape) == _product(made.shape):
            origins.setdefault(made.key, origins[given.key])
    return origins


def _use_of(
    op: Op, module: nn.Module, run: Run, origins: dict[int, str], owners: set[str], blocks: tuple[str, ...]
) -> Use | None:
    kind, data, weight, bias, as_input_output = _PRODUCTS[op.name]
    slots: dict[Slot, Ref] = {}
    for slot, tensor in op.inputs:
        slots.setdefault(_KEYWORDS.get(slot, slot) if isinstance(slot, str) else slot, tensor)
    entry, matrix = slots.get(data), slots.get(weight)
    if entry is None or matrix is None or origins.get(matrix.key) is None or entry.key in run.constants:
        return None
    if len(matrix.shape) < 2 or (kind == "linear" and len(matrix.shape) != 2):
        return None
    if origins[matrix.key] not in owners:
        return None  # a fixed table, not a weight
    parameter = module.get_parameter(origins[matrix.key])
    path, name = _owner(module, op.scope, parameter, origins[matrix.key])
    flipped = kind == "linear" and matrix.stride[0] < matrix.stride[1] and 1 not in matrix.shape
    used = tuple(matrix.shape) if kind != "linear" or not as_input_output else tuple(reversed(matrix.shape))
    shape = (used[0], _product(used[1:]))
    block = block_of(path, blocks)
    role = "embedding" if kind == "embedding" else "outside" if block is None else "block"
    bias_ref = slots.get(bias)
    bias_name = origins.get(bias_ref.key) if bias_ref is not None else None
    tied = origins[matrix.key] if origins[matrix.key] != (f"{path}.{name}" if path else name) else None
    groups = entry.shape[1] // used[1] if kind == "conv" and len(entry.shape) == len(used) else 1
    site = WeightSite(
        path, name, kind, role, block, shape, -1, tied, as_input_output != flipped, _whole(op, path, entry, run, kind),
        bias_name, groups, axes=len(matrix.shape) - 2 if kind == "conv" else 0,
    )  # fmt: skip
    return Use(site, op.index, entry, op.outputs[0], kind == "conv" and _product(used[2:]) == 1)


def _owner(module: nn.Module, scope: str, parameter: nn.Parameter, name: str) -> tuple[str, str]:
    """The module that used the weight if it holds it itself, else the one that the parameter's name says."""
    for own, value in module.get_submodule(scope).named_parameters(recurse=False):
        if value is parameter:
            return scope, own
    path, _, leaf = name.rpartition(".")
    return path, leaf


def _whole(op: Op, path: str, entry: Ref, run: Run, kind: str) -> bool:
    """Whether the module's call is this product and nothing else (no turning of axes around it either)."""
    for call in run.calls_of(path):
        if call.enter <= op.index < call.exit:
            given = [ref for _, ref in call.inputs]
            ends = [*zip(given, [entry], strict=False), *zip(call.outputs, op.outputs[:1], strict=False)]
            counted = len(given) == len(call.outputs) == 1 and call.items == 0
            return counted and all(outer.key == inner.key and _lies_like(outer, inner, kind) for outer, inner in ends)
    return False


def _lies_like(outer: Ref, inner: Ref, kind: str) -> bool:
    """Whether two views of the same values have their channels in the same place."""
    if kind == "embedding":
        return True
    return outer.shape == inner.shape if kind == "conv" else outer.shape[-1:] == inner.shape[-1:]


def _product(sizes: tuple[int, ...]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
