"""Walk along the recorded flow of values: who finally reads a value, and what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bitwright.models.record import ModuleCall, Op, Ref, Run
from bitwright.models.sites import Use
from bitwright.models.structure import NormSite

# Operations that move values without changing them.
MOVES = frozenset({
    "view", "reshape", "contiguous", "to", "float", "type", "type_as", "clone", "flatten", "unsqueeze", "squeeze",
    "expand", "expand_as", "__getitem__", "transpose", "permute", "t", "dropout", "detach", "unflatten", "chunk",
    "split", "unbind", "select", "narrow", "index_select", "repeat_interleave", "alpha_dropout", "T", "mT", "movedim",
    "swapaxes", "pad_packed_sequence", "split_with_sizes", "tensor_split", "requires_grad_", "identity",
})  # fmt: skip


# Products; by one number they change no direction of the channels.
PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "true_divide", "__truediv__"})


def by_number(op: Op, key: int) -> bool:
    """Whether the operation multiplies ``key`` by one number."""
    if op.name not in PRODUCTS or not op.inputs or op.inputs[0][1].key != key:
        return False
    return all(other.key != key and not any(size > 1 for size in other.shape) for _, other in op.inputs[1:])


@dataclass
class Flow:
    """A recorded run with the meaning of its operations: weight products by number, and calls of norms."""

    run: Run
    uses: tuple[Use, ...]
    norms: tuple[NormSite, ...]
    by_op: dict[int, Use] = field(init=False)
    norm_calls: dict[str, ModuleCall] = field(init=False)
    in_norm: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.by_op = {use.op: use for use in self.uses}
        self.norm_calls = {}
        self.in_norm = {}
        known = {norm.path for norm in self.norms}
        for call in self.run.calls:
            if call.path in known:
                self.norm_calls.setdefault(call.path, call)
                self.in_norm.update(dict.fromkeys(range(call.enter, call.exit), call.path))

    def readers(self, key: int, after: int = -1) -> Iterator[Op]:
        """Operations behind number ``after`` that read ``key`` and make something new of it."""
        for index in self.run.readers.get(key, ()):
            op = self.run.ops[index]
            if index > after and any(ref.key != key for ref in op.outputs):
                yield op

    def final_readers(self, key: int, after: int = -1) -> list[tuple[Op, int]]:
        """(operation, key it read) of everything that reads ``key``, through operations that only move
        values or multiply them by one number."""
        found: list[tuple[Op, int]] = []
        waiting, seen = [key], {key}
        while waiting:
            current = waiting.pop()
            for op in self.readers(current, after):
                if (op.name in MOVES or by_number(op, current)) and op.index not in self.by_op:
                    for ref in op.outputs:
                        if ref.key not in seen:
                            seen.add(ref.key)
                            waiting.append(ref.key)
                else:
                    found.append((op, current))
        return found

    def reaches_output(self, key: int) -> bool:
        """Whether ``key`` (moved or not) is an output of the model."""
        outputs = {ref.key for ref in self.run.outputs}
        waiting, seen = [key], {key}
        while waiting:
            current = waiting.pop()
            if current in outputs:
                return True
            for op in self.readers(current):
                if op.name in MOVES and op.index not in self.by_op:
                    fresh = [ref.key for ref in op.outputs if ref.key not in seen]
                    seen.update(fresh)
                    waiting.extend(fresh)
        return False

    def norm_readers(self, norm: NormSite) -> tuple[list[Use], str | None]:
        """The linears that read a norm's output, and who else does (or None)."""
        call = self.norm_calls[norm.path]
        assert call.result is not None
        if self.reaches_output(call.result.key):
            return [], "the model returns it"
        sinks: dict[str, Use] = {}
        other = None
        for op, key in self.final_readers(call.result.key, call.exit - 1):
            use = self.by_op.get(op.index)
            if use is not None and use.entry.key == key and use.site.shape[1] == norm.dim and use.site.kind == "linear":
                sinks.setdefault(use.site.name, use)
            elif other is None:
                other = f"{op.scope or 'the model'} also reads it ({op.name})"
        return list(sinks.values()), other

    def sources(self, use: Use, begin: int) -> dict[str, tuple[Use, list[Ref]]]:
        """Weight products whose output flows into ``use`` with no other product or norm between, by site name.

        Only operations from number ``begin`` on are followed. With each source come the views of its output's memory
        that were read on the way.
        """
        found: dict[str, tuple[Use, list[Ref]]] = {}
        products = [item for item in self.uses if begin <= item.op < use.op and item.site.kind != "embedding"]
        by_storage = {item.result.storage: item for item in products}
        waiting, seen = [use.entry], {(use.entry.key, use.entry.shape)}
        while waiting:
            ref = waiting.pop()
            source = by_storage.get(ref.storage)
            if source is not None:
                found.setdefault(source.site.name, (source, []))[1].append(ref)
            index = self.run.producer.get(ref.key)
            if index is None or index < begin or index in self.in_norm or index in self.by_op:
                continue
            for _, other in self.run.ops[index].inputs:
                if other.floating and (other.key, other.shape) not in seen:
                    seen.add((other.key, other.shape))
                    waiting.append(other)
        return found


def rows_of_view(view: Ref, source: Ref) -> tuple[tuple[int, ...], int]:
    """(rows, head size): which output rows of ``source`` [.., out] a view of its memory shows, in the view's order.

    The head size is the innermost number of rows that stay together (0 where there is no inner axis).
    """
    width = source.shape[-1]
    rows = [(view.offset - source.offset) % width]
    inner = 0
    for size, stride in zip(view.shape, view.stride, strict=True):
        if size == 1 or stride == 0 or stride >= width:
            continue
        rows = [row + step * stride for row in rows for step in range(size)]
        inner = size
    return tuple(row % width for row in rows), inner
