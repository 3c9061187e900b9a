"""Find the residual stream of a pre-norm network and prove that it can be rotated.

The stream starts as the hidden state of the first block and goes on through every addition. It can be rotated by an
orthogonal matrix Q when everything that writes into it is a table or a linear layer (W becomes Q·W) and everything that
reads it does so through a norm whose gain can be folded into linears (W·diag(g) becomes W·diag(g)·Qᵀ). An rms norm
commutes with every Q, a layer norm with every Q that keeps the vector of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from bitwright.models.chain import Chain
from bitwright.models.flow import MOVES, PRODUCTS, Flow, by_number
from bitwright.models.model import Model
from bitwright.models.record import Op, Ref
from bitwright.models.sites import Use
from bitwright.models.structure import NormSite, ResidualStream, StreamParameter, WeightSite

Turn = Callable[[torch.Tensor], torch.Tensor]

ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
# Sums over tokens, experts or choices, which leave the channels alone.
GATHERS = frozenset({"index_add", "index_add_", "scatter_add", "scatter_add_", "sum", "index_put_", "__setitem__"})
NOTHING = frozenset({"zeros_like", "zeros", "new_zeros"})
JOINS = frozenset({"cat", "stack", "concat", "hstack", "repeat", "tile", "expand", "where"})


class NotOffered(Exception):
    """The stream cannot be rotated; the message says why."""


@dataclass
class _Walk:
    """State of the walk: keys of the stream, and what each value written beside it was made by."""

    stream: set[int]
    written: dict[int, tuple[Use, ...]] = field(default_factory=dict)
    writers: dict[str, Use] = field(default_factory=dict)
    norms: dict[str, NormSite] = field(default_factory=dict)
    bare: dict[str, Use] = field(default_factory=dict)
    tables: dict[str, StreamParameter] = field(default_factory=dict)


def propose_stream(model: Model, flow: Flow, chain: Chain) -> ResidualStream:
    """The residual stream with all its edits, not yet proved (``error`` is 0).

    Raises:
        NotOffered: with the reason.
    """
    if not chain.calls:
        raise NotOffered("there is no chain of blocks")
    hidden = chain.calls[0].hidden
    assert hidden is not None
    if len(hidden.shape) > 3 or any(c.result is None or c.result.shape != hidden.shape for c in chain.calls):
        raise NotOffered("the blocks change the shape of the hidden state")
    dim = hidden.shape[-1]
    walk = _forward(flow, hidden, dim)
    _check_cuts(flow, chain, walk)
    embeddings, tables = _origins(model, flow, hidden, dim)
    readers, reads = _reads(flow, walk, dim)
    writes = [*tables, *walk.tables.values()]
    writes += [item for use in walk.writers.values() for item in output_parameters(use.site)]
    kinds = {norm.kind for norm in walk.norms.values()}
    kind = "layer" if "layer" in kinds else "rms"
    head = next((use.site.path for use in flow.uses if use.site.role == "head" and use.site.path in readers), None)
    return ResidualStream(
        dim, embeddings, tuple(walk.norms), tuple(readers), tuple(walk.writers), head, 0.0, kind, tuple(writes),
        tuple(reads),
    )  # fmt: skip


def output_parameters(site: WeightSite) -> list[StreamParameter]:
    """The weight and bias of a site along their output channels."""
    found = [StreamParameter(site.name, 1 if site.transposed or site.kind == "embedding" else 0)]
    return found if site.bias is None else [*found, StreamParameter(site.bias, 0)]


def _origins(model: Model, flow: Flow, hidden: Ref, dim: int) -> tuple[tuple[str, ...], list[StreamParameter]]:
    """Modules and parameters that make the hidden state of the first block."""
    paths: dict[str, None] = {}
    tables: dict[str, StreamParameter] = {}
    waiting, seen = [hidden.key], {hidden.key}
    while waiting:
        key = waiting.pop()
        if key in flow.run.constants:
            name = flow.run.constants[key]
            tables[name] = _table(model, name, dim)
            continue
        index = flow.run.producer.get(key)
        if index is None:
            raise NotOffered("the stream begins with a tensor that no recorded operation made")
        op, use = flow.run.ops[index], flow.by_op.get(index)
        if index in flow.in_norm:
            raise NotOffered(f"the norm {flow.in_norm[index]} writes into the residual stream before the first block")
        if use is not None:
            width = use.site.shape[1] if use.site.kind == "embedding" else use.site.shape[0]
            if width != dim:
                raise NotOffered(f"{use.site.path} makes {width} channels of a stream of {dim}")
            paths[use.site.path] = None
            tables.update({item.name: item for item in output_parameters(use.site)})
            continue
        fresh = [ref.key for ref in _linear_operands(op, dim) if ref.key not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    for index in (i for key in seen - {hidden.key} for i in flow.run.readers.get(key, ()) if i in flow.in_norm):
        raise NotOffered(f"{flow.in_norm[index]} reads the residual stream before the first block, so it began earlier")
    return tuple(paths), list(tables.values())


def _table(model: Model, name: str, dim: int) -> StreamParameter:
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    if name not in parameters:
        raise NotOffered(f"the fixed table {name} is added to the residual stream")
    if parameters[name].shape[-1] != dim:
        raise NotOffered(f"{name} is added to the residual stream but has other channels")
    return StreamParameter(name, parameters[name].dim() - 1)


def _linear_operands(op: Op, dim: int) -> list[Ref]:
    """The operands through which an operation is linear along the channels.

    Raises:
        NotOffered: when it is not.
    """
    floating = [ref for _, ref in op.inputs if ref.floating]
    if op.name in ADDITIONS and not _adds_number(op):
        return floating
    if op.name in MOVES or op.name in JOINS:
        return floating
    wide = [ref for ref in floating if not _is_scalar(ref)]
    if op.name in PRODUCTS and len(wide) == 1:
        return wide
    raise NotOffered(f"{op.scope or 'the model'} makes the residual stream by {op.name}")


def _adds_number(op: Op) -> bool:
    """Whether a number other than zero is added to every channel (or an operand is multiplied on the way)."""
    return any(value != 0 for _, value in op.scalars)


def _is_scalar(ref: Ref) -> bool:
    """One value for all channels of a token."""
    return not ref.shape or ref.shape[-1] == 1


def _forward(flow: Flow, hidden: Ref, dim: int) -> _Walk:
    walk = _Walk({hidden.key})
    for op in flow.run.ops:
        if all(any(ref.key == out.key for _, ref in op.inputs) for out in op.outputs):
            continue  # only another view of the same values
        if any(ref.key in walk.stream for _, ref in op.inputs):
            _on_stream(op, flow, walk, dim)
        else:
            _beside(op, flow, walk, dim)
    return walk


def _beside(op: Op, flow: Flow, walk: _Walk, dim: int) -> None:
    """Follow what linears wrote until it is added to the stream."""
    use = flow.by_op.get(op.index)
    if use is not None:
        if use.site.kind == "linear" and use.site.shape[0] == dim:
            walk.written[use.result.key] = (use,)
        return
    if op.index in flow.in_norm:
        return
    if op.name in NOTHING:
        walk.written.update({ref.key: () for ref in op.outputs if ref.shape and ref.shape[-1] == dim})
        return
    made = [walk.written.get(ref.key) for _, ref in op.inputs if ref.floating and not _is_scalar(ref)]
    sums = op.name in ADDITIONS | MOVES | GATHERS or (op.name in PRODUCTS and len(made) == 1)
    if sums and made and all(item is not None for item in made) and not (op.name in ADDITIONS and _adds_number(op)):
        together = tuple(dict.fromkeys(use for item in made if item is not None for use in item))
        walk.written.update({ref.key: together for ref in op.outputs if ref.shape and ref.shape[-1] == dim})


def _on_stream(op: Op, flow: Flow, walk: _Walk, dim: int) -> None:
    where = op.scope or "the model"
    norm = flow.in_norm.get(op.index)
    if norm is not None:
        walk.norms.setdefault(norm, next(item for item in flow.norms if item.path == norm))
        return
    use = flow.by_op.get(op.index)
    if use is not None:
        if use.entry.key not in walk.stream or use.site.kind != "linear":
            raise NotOffered(f"{use.site.path} reads the residual stream other than as a linear layer")
        walk.bare.setdefault(use.site.name, use)
        if use.site.shape[0] == dim:
            walk.written[use.result.key] = (use,)
        return
    others = [ref for _, ref in op.inputs if ref.floating and ref.key not in walk.stream]
    if op.name in ADDITIONS and not _adds_number(op):
        for ref in others:
            _added(ref, flow, walk, where)
    elif not (op.name in MOVES or (op.name in PRODUCTS and all(_is_scalar(ref) for ref in others))):
        raise NotOffered(f"{where} reads the residual stream by {op.name}")
    walk.stream.update(ref.key for ref in op.outputs if ref.floating and ref.shape and ref.shape[-1] == dim)


def _added(ref: Ref, flow: Flow, walk: _Walk, where: str) -> None:
    """Account for one operand that is added to the stream."""
    if walk.written.get(ref.key):
        walk.writers.update({use.site.path: use for use in walk.written[ref.key]})
        return
    if ref.key in flow.run.constants:
        raise NotOffered(f"{where} adds {flow.run.constants[ref.key]} to the residual stream inside the blocks")
    index = _maker(flow, ref.key)
    if index is not None and index in flow.in_norm:
        raise NotOffered(f"the norm {flow.in_norm[index]} writes into the residual stream, its gain cannot move")
    made = f"made by {flow.run.ops[index].name}" if index is not None else "from outside"
    raise NotOffered(f"{where} adds to the residual stream what no linear layer wrote ({made})")


def _maker(flow: Flow, key: int) -> int | None:
    """The operation that made a value, before it was moved or multiplied by one number."""
    index = flow.run.producer.get(key)
    while index is not None and index not in flow.in_norm:
        op = flow.run.ops[index]
        if not op.inputs or not (op.name in MOVES or by_number(op, op.inputs[0][1].key)):
            break
        index = flow.run.producer.get(op.inputs[0][1].key)
    return index


def _check_cuts(flow: Flow, chain: Chain, walk: _Walk) -> None:
    """Every hidden state between blocks must be the stream itself, and nobody outside may see it."""
    for call in chain.calls:
        assert call.hidden is not None
        assert call.result is not None
        for ref in (call.hidden, call.result):
            if ref.key not in walk.stream:
                index = flow.run.producer.get(ref.key, -1)
                if index in flow.in_norm:
                    raise NotOffered(f"post-norm: {flow.in_norm[index]} normalises the residual stream itself")
                raise NotOffered(f"the hidden state of {call.path} is not a sum of writes")
    if any(ref.key in walk.stream for ref in flow.run.outputs):
        raise NotOffered("the model returns the residual stream itself")


def _reads(flow: Flow, walk: _Walk, dim: int) -> tuple[dict[str, None], list[StreamParameter]]:
    """Paths of all reading linears and their edits."""
    readers: dict[str, None] = {}
    reads: list[StreamParameter] = []
    for norm in walk.norms.values():
        if norm.kind == "batch" or norm.dim != dim:
            raise NotOffered(f"{norm.path} normalises the residual stream over other channels")
        sinks, other = flow.norm_readers(norm)
        if other is not None:
            raise NotOffered(f"the output of {norm.path} is not only read by linears: {other}")
        for use in sinks:
            readers[use.site.path] = None
            reads.append(StreamParameter(use.site.name, 0 if use.site.transposed else 1, norm.path))
    for use in walk.bare.values():
        readers[use.site.path] = None
        reads.append(StreamParameter(use.site.name, 0 if use.site.transposed else 1, None))
    return readers, reads


def rotated(tensor: torch.Tensor, axis: int, turn: Turn) -> torch.Tensor:
    """Rotate the channels of a parameter that lie along ``axis`` (``turn`` rotates vectors along the last axis)."""
    moved = tensor.movedim(axis, -1)
    return turn(moved.float()).to(tensor.dtype).movedim(-1, axis).contiguous()


def stream_edits(
    model: Model, all_norms: Iterable[NormSite], stream: ResidualStream, turn: Turn, prefix: str = "",
    skip: tuple[str, ...] = (), side: str = "both",
) -> dict[str, torch.Tensor]:  # fmt: skip
    """New values of the stream's parameters whose names begin with ``prefix`` and with none of ``skip``.

    Gains are folded into the readers (a norm's shift b stays in the norm as Q·(b / gain)), then all is rotated;
    ``turn`` maps vectors v along the last axis to Q·v. ``side`` is ``writes``, ``reads`` (norms included) or ``both``.

    Raises:
        NotOffered: when a gain is zero where the norm has a shift.
    """
    norms = {norm.path: norm for norm in all_norms if norm.path in stream.norms}

    def wanted(name: str) -> bool:
        return name.startswith(prefix) and not name.startswith(skip)

    edits: dict[str, torch.Tensor] = {}
    for item in stream.writes if side != "reads" else ():
        if wanted(item.name):
            edits[item.name] = rotated(model.read_parameter(item.name), item.axis, turn)
    if side == "writes":
        return edits
    for item in stream.reads:
        if wanted(item.name):
            norm = norms.get(item.norm or "")
            edits[item.name] = rotated(_with_gain(model, item, norm, edits), item.axis, turn)
    for norm in norms.values():
        if norm.weight is not None and wanted(f"{norm.path}.{norm.weight}"):
            edits.update(_plain_norm(model, norm, turn))
    return edits


def _with_gain(
    model: Model, item: StreamParameter, norm: NormSite | None, edits: dict[str, torch.Tensor]
) -> torch.Tensor:
    """A reader with the gain of its norm folded in; one that also writes was rotated on that side already."""
    value = edits.pop(item.name) if item.name in edits else model.read_parameter(item.name)
    if norm is None or norm.weight is None:
        return value
    gain = norm_gain(model, norm).to(value)
    return value * (gain if item.axis == value.dim() - 1 else gain.unsqueeze(-1))


def norm_gain(model: Model, norm: NormSite) -> torch.Tensor:
    """The gain of a norm, its offset included."""
    assert norm.weight is not None
    return model.read_parameter(f"{norm.path}.{norm.weight}") + norm.offset


def _plain_norm(model: Model, norm: NormSite, turn: Turn) -> dict[str, torch.Tensor]:
    gain = norm_gain(model, norm)
    edits = {f"{norm.path}.{norm.weight}": torch.full_like(gain, 1.0 - norm.offset)}
    if norm.bias is not None:
        shift = model.read_parameter(f"{norm.path}.{norm.bias}")
        if bool(((gain == 0) & (shift != 0)).any()):
            raise NotOffered(f"{norm.path} has a shift where its gain is zero")
        edits[f"{norm.path}.{norm.bias}"] = rotated(shift / torch.where(gain == 0, 1.0, gain), 0, turn)
    return edits
