"""Account for every parameter of two or more dimensions: a weight site, or a sentence that says what else it is."""

from __future__ import annotations

from collections.abc import Iterable

from bitwright.models.flow import MOVES
from bitwright.models.record import Op, Run

# What hands the values of a parameter on, in another type, memory or shape, whole or in part.
_HANDS_ON = MOVES | {"half", "bfloat16", "double", "data", "cat", "stack", "concat", "index", "repeat", "tile", "pad"}
_PRODUCTS = frozenset({
    "matmul", "__matmul__", "bmm", "baddbmm", "einsum", "mm", "addmm", "linear", "tensordot", "bilinear",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "lstm", "gru",
    "multi_head_attention_forward", "_grouped_mm",
})  # fmt: skip


def exceptions(run: Run, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(parameter, sentence) for those of ``names`` that the run used otherwise than as the weight of a product."""
    wanted = set(names)
    held: dict[int, set[str]] = {key: {name} for key, name in run.constants.items() if name in wanted}
    found: dict[str, str] = {}
    for op in run.ops:
        used = {name for _, ref in op.inputs for name in held.get(ref.key, ())}
        used |= {name for _, name in op.parameters if name in wanted}
        if op.name in _HANDS_ON:
            for ref in op.outputs if used else ():
                if ref.key not in run.constants:
                    held.setdefault(ref.key, set()).update(used)
            continue
        for name in used:
            found.setdefault(name, _sentence(op))
    return tuple((name, found[name]) for name in names if name in found)


def out_of_reach(run: Run, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(parameter, sentence) for those of ``names`` that the run did not touch."""
    ran = {call.path for call in run.calls}
    touched = {name for op in run.ops for _, name in op.parameters}
    module = "the example does not reach its module, which cannot be asked alone either: it stays float"
    alone = "the example's run does not read it: it stays float"
    return tuple(
        (name, module if name.rpartition(".")[0] not in ran else alone) for name in names if name not in touched
    )


def _sentence(op: Op) -> str:
    where = f" in {op.scope}" if op.scope else ""
    if op.name in _PRODUCTS:
        return f"an operand of `{op.name}`{where}, which is no plain linear layer: it stays float"
    return f"no weight of a product: `{op.name}`{where} reads it"
