"""Networks put together from wrong parts, and sequences read with wrong tokens and caches."""

from __future__ import annotations

from typing import Any

from bitwright.native import _core
from tests.unit.native_fuzz_draws import SIZES, Wrong


def matrix(wrong: Wrong, network: Any, out: int, columns: int, readable: bool = False) -> int:
    """A linear layer in any form; ``readable``: in one whose rows can be read."""
    draw = wrong.random
    form = draw.choice(("dense", "packed") if readable else ("dense", "packed", "lookup", "halves", "ternary"))
    bias = wrong.maybe(wrong.floats(out))
    if form == "dense":
        kind = draw.choice((0, 1, 2))
        values = wrong.span(out * columns * SIZES[kind])
        return int(network.dense(wrong.number(out), wrong.number(columns), values, wrong.number(kind), bias))
    if form == "ternary":
        return int(network.ternary(wrong.ternary(out, columns), bias))
    _, _, bits, block, per_scale = wrong.shape()
    if form == "lookup":
        bits = draw.choice((2, 4))
    shape = (out, columns, bits, block, per_scale)
    weight = wrong.weight(shape, 0)
    if form == "packed":
        return int(network.packed(weight, bias, draw.random() < 0.5))
    if form == "halves":
        return int(network.halves(weight, wrong.span(2 << bits), bias))
    tables = wrong.tables(weight, shape)
    if draw.random() < 0.1:
        weight = wrong.weight((out, columns, 4, 32, 1), 0)
    return int(network.lookup(weight, tables, bias))


def norm(wrong: Wrong, network: Any, dim: int) -> int:
    return int(
        network.norm(wrong.number(dim), wrong.floats(dim), wrong.maybe(wrong.floats(dim)), wrong.real(1e-5),
                     wrong.random.random() < 0.5)
    )  # fmt: skip


def layer(wrong: Wrong, network: Any, hidden: int, heads: int, kv_heads: int, dim: int, context: int) -> None:
    draw = wrong.random
    queries, keys, inner = heads * dim, kv_heads * dim, draw.randint(1, 40)
    qkv = matrix(wrong, network, queries + 2 * keys, hidden)
    feed = matrix(wrong, network, 2 * inner, hidden)
    planes = max(dim // 2, 1)
    rotary = -1
    if draw.random() < 0.5:
        angles = [wrong.span(4 * context * planes) for _ in range(2)]
        rotary = network.rotary(wrong.number(context), wrong.number(planes), *angles, draw.random() < 0.5)
    own, other = norm(wrong, network, hidden), norm(wrong, network, dim)
    places = [(0, 0), (0, queries), (0, queries + keys), (0, 0), (0, inner)]
    network.layer(
        [wrong.number(qkv)], [wrong.number(feed)],
        [(wrong.number(number), wrong.number(at)) for number, at in places],
        [wrong.number(value) for value in (
            own, draw.choice((-1, other)), draw.choice((-1, other)), rotary, draw.choice((0, 5)),
            matrix(wrong, network, hidden, queries), draw.choice((-1, own)), own, draw.choice((0, 1)),
            draw.randint(0, 6), matrix(wrong, network, hidden, inner), draw.choice((-1, own)),
        )],
        [wrong.real(value) for value in (0.3, draw.choice((0.0, 5.0)), 1.0, 1.0)],
    )  # fmt: skip


def coding(wrong: Wrong, dim: int) -> list[Any]:
    """One side of a cache; empty: floats."""
    draw = wrong.random
    if draw.random() < 0.4:
        return []
    across, zero = draw.random() < 0.5, draw.random() < 0.5
    group = draw.choice((16, 32, 256)) if across else draw.choice((dim, dim + 3, 16, 2**31 - 1))
    values = (draw.randint(2, 8), across, group, not zero, 0, zero, draw.choice((0, 1)), draw.choice((0, 1, 2)),
              draw.choice((0, 1, 2)))  # fmt: skip
    return [wrong.number(int(value)) for value in values]


def decode(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """A network of one layer that reads, goes back and reads again."""
    draw = wrong.random
    # A network takes a hundred arguments; most must be right for the last of them to be looked at.
    wrong.share /= 12
    hidden, vocabulary = draw.randint(1, 20), draw.randint(1, 30)
    kv_heads, dim = draw.randint(1, 2), draw.randint(1, 20)
    heads, context = kv_heads * draw.randint(1, 2), 600
    sizes = (hidden, vocabulary, heads, kv_heads, dim, context)
    network = _core.Network(kernels, *map(wrong.number, sizes))
    layer(wrong, network, hidden, heads, kv_heads, dim, context)
    embedding = matrix(wrong, network, vocabulary, hidden, readable=draw.random() < 0.9)
    head, last = matrix(wrong, network, vocabulary, hidden), norm(wrong, network, hidden)
    network.finish(
        wrong.number(embedding), wrong.real(1.0), wrong.number(last), wrong.number(head), wrong.real(1.0),
        wrong.real(draw.choice((0.0, 20.0))),
    )  # fmt: skip
    keys, values = coding(wrong, dim), coding(wrong, dim)
    kind = 0 if keys or values else draw.choice((0, 1, 2))
    reader = _core.Reader(
        network, wrong.number(kind), keys, values, [wrong.real(1.0), wrong.real(0.9)], wrong.number(draw.choice((0, 7)))
    )
    wrong.share *= 2
    for _ in range(draw.randint(1, 4)):
        count = draw.choice((1, 1, 3, 40, 270))
        ids = wrong.numbers([draw.randrange(vocabulary) for _ in range(count)])
        reader.read(ids, wrong.span(4 * vocabulary), threads)
        if draw.random() < 0.4:
            reader.crop(wrong.number(draw.choice((0, 1, reader.tokens // 2, reader.tokens))))
        if reader.bytes() < 0:
            raise AssertionError("bytes are counted")


def unfinished(kernels: Any) -> None:
    """A network that is not finished has no reader."""
    network = _core.Network(kernels, 1, 1, 1, 1, 1, 1)
    _core.Reader(network, 0, [], [], [1.0, 1.0], 0)


__all__ = ["decode", "unfinished"]
