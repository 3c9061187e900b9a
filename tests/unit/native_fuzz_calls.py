"""Calls of the extension with wrong arguments, one function for each area; decoding has a file of its own."""

from __future__ import annotations

from array import array
from typing import Any

from bitwright.native import _core
from tests.unit.native_fuzz_draws import NONE, SIZES, Wrong


def linear(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Pack, unpack and multiply."""
    draw = wrong.random
    shape = wrong.shape()
    out, columns, bits, block, _ = shape
    rows, kind = draw.randint(0, 12), draw.choice((0, 1, 2))
    packed = -(-out // 16) * -(-columns // block) * 2 * block * bits
    numbers = [wrong.number(value) for value in shape[:4]]
    _core.packed_bytes(*numbers)
    kernels.pack_weight(*numbers, wrong.span(out * columns), wrong.span(packed), threads)
    weight = wrong.weight(shape, draw.choice((0, 0, 1, 2)))
    kernels.unpack_weight(weight, wrong.span(out * columns), threads)
    kernels.linear(
        weight, wrong.span(rows * columns * SIZES[kind]), wrong.number(kind), wrong.number(rows),
        wrong.span(rows * out * SIZES[kind]), wrong.maybe(wrong.span(4 * out)), draw.random() < 0.5, threads,
    )  # fmt: skip


def bits(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Dense streams of codes."""
    draw = wrong.random
    rows, codes, width = draw.randint(0, 5), draw.randint(0, 700), draw.randint(1, 8)
    numbers = [wrong.number(rows), wrong.number(codes), wrong.number(width)]
    packed = rows * -(-codes * width // 8)
    kernels.pack_bits(*numbers, wrong.span(rows * codes), wrong.span(packed), threads)
    kernels.unpack_bits(*numbers, wrong.span(packed), wrong.span(rows * codes), threads)


def rounding(wrong: Wrong, out: int, columns: int) -> Any:
    """A rounding rule of any kind."""
    draw = wrong.random
    kind, sets, count = draw.choice((0, 1, 2)), draw.randint(1, 3), draw.choice((1, 2, 16, 256))
    tiles = -(-out // 32)
    rows = sets * tiles * 32
    tables = rows if kind == 2 else 1
    low = draw.choice((-8.0, 0.0))
    return _core.Rounding(
        wrong.number(tiles), wrong.number(columns), wrong.number(kind), wrong.number(sets),
        wrong.numbers([draw.randrange(sets) for _ in range(columns)], "i"), wrong.floats(rows),
        wrong.maybe(wrong.floats(rows)), wrong.real(low), wrong.real(low + draw.choice((1, 15, 255))),
        wrong.number(count), wrong.span(4 * tables * count), wrong.span(4 * tables * (count - 1)),
        wrong.span(2 * count),
    )  # fmt: skip


def sweep(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Every call of a column sweep."""
    draw = wrong.random
    out, columns = draw.randint(1, 70), draw.randint(1, 150)
    tiles, carries = -(-out // 32), draw.random() < 0.5
    places = tiles * 32 * columns
    order = list(range(columns))
    draw.shuffle(order)
    made = _core.Sweep(
        wrong.number(out), wrong.number(columns), wrong.span(4 * columns**2),
        wrong.span(4 * columns**2) if carries else NONE, wrong.numbers(order), wrong.span(4 * places),
        wrong.span(4 * places * (2 if carries else 1)),
    )  # fmt: skip
    start = draw.randrange(columns)
    width = draw.randint(1, columns - start)
    first = draw.randint(start, start + width - 1)
    last = min(start + width, first + draw.randint(1, 128))
    kernels.sweep_load(made, wrong.floats(out * columns), threads)

    def window() -> tuple[Any, ...]:
        return wrong.number(start), wrong.number(width), wrong.span(4 * tiles * 32 * width)

    kernels.sweep_begin(made, *window(), threads)
    part = wrong.number(first), wrong.number(last)
    kernels.sweep_feed(made, *window(), wrong.number(0), wrong.number(start), *part, threads)
    stride, offset = draw.randint(last - first, 160), draw.choice((0, 0, 1))
    current = wrong.span(4 * out * stride)
    kernels.sweep_look(made, *window(), *part, current, wrong.number(stride), wrong.number(offset), threads)
    other = rounding(wrong, out if draw.random() < 0.9 else out + 32, columns)
    kernels.sweep_round(made, *window(), *part, other, wrong.span(out * columns), threads)
    kernels.sweep_values(made, wrong.span(4 * out * columns), threads)


def descent(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Coordinate descent."""
    draw = wrong.random
    out, columns = draw.randint(1, 70), draw.randint(1, 150)
    places = 4 * -(-out // 32) * 32 * columns
    made = _core.Descent(
        wrong.number(out), wrong.number(columns), wrong.span(4 * columns**2), wrong.floats(columns),
        wrong.span(places), wrong.span(places), wrong.span(places),
    )  # fmt: skip
    first = draw.randrange(columns)
    last = min(columns, first + draw.randint(1, 128))
    rule = rounding(wrong, out if draw.random() < 0.9 else out + 32, columns) if draw.random() < 0.8 else None
    kernels.descend(made, wrong.number(first), wrong.number(last), rule, threads)


def kmeans(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Tables of levels from any values, even such as have no order."""
    draw = wrong.random
    lines, count, cells = draw.randint(0, 4), draw.randint(1, 60), draw.randint(1, 20)
    levels = draw.randint(2, 20)
    places = [cell * count // cells for _ in range(lines) for cell in range(cells + 1)]
    kernels.kmeans(
        wrong.number(lines), wrong.number(count), wrong.number(cells), wrong.number(levels),
        wrong.number(draw.randint(0, 8)), wrong.number(draw.randint(0, 4)), wrong.span(8 * lines * count),
        wrong.span(8 * lines * (count + 1)), wrong.span(8 * lines * (count + 1)), wrong.numbers(places),
        wrong.span(4 * lines * levels), threads,
    )  # fmt: skip


def hadamard(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Blockwise transforms."""
    draw = wrong.random
    base, power, kind = draw.choice((1, 4, 12)), 16 << draw.randint(0, 3), draw.choice((0, 1, 2))
    rows, dim = draw.randint(0, 5), base * power * draw.randint(1, 3)
    kernels.hadamard(
        wrong.number(rows), wrong.number(dim), wrong.number(base), wrong.number(power), wrong.span(4 * base**2),
        wrong.maybe(wrong.span(4 * dim)), wrong.maybe(wrong.span(4 * dim)), wrong.real(0.5), wrong.number(kind),
        wrong.span(rows * dim * SIZES[kind]), wrong.span(rows * dim * SIZES[kind]), threads,
    )  # fmt: skip


def terms(wrong: Wrong, out: int, columns: int, shifts: int) -> Any:
    """Single weights, narrow factors and sums; sometimes for another matrix."""
    draw = wrong.random
    if draw.random() < 0.1:
        out, columns = draw.randint(1, 40), draw.randint(1, 300)
    rows, rank = -(-out // 16) * 16, draw.choice((0, 3))
    per_row = [draw.randint(0, 4) for _ in range(out)]
    count = sum(per_row)
    starts = [sum(per_row[:row]) for row in range(out + 1)]
    columns_ = wrong.numbers([draw.randrange(columns) for _ in range(count)], "i")
    return _core.Terms(
        wrong.number(out), wrong.number(columns), wrong.maybe(wrong.numbers(starts, "i"), 0.7), columns_,
        wrong.span(4 * count), wrong.number(count), wrong.number(rank), wrong.span(4 * rows * rank),
        wrong.span(4 * rank * columns), wrong.number(shifts), wrong.span(4 * rows * shifts),
    )  # fmt: skip


def parts(wrong: Wrong, way: int, out: int, columns: int) -> list[Any]:
    """Everything that a product and a convolution share, for a matrix of a shape."""
    draw = wrong.random
    if way == 12:
        added = terms(wrong, out, columns, 0) if draw.random() < 0.4 else None
        return [wrong.number(way), None, None, None, sums_of_entries(wrong, out, columns), NONE, added, None]
    _, _, bits_, block, per_scale = wrong.shape()
    if way in (10, 11):
        block, bits_ = draw.choice((32, 64, 128)), draw.randint(2, 4)
    if way in (6, 7):
        block, bits_ = draw.choice((32, 64, 128)), 2
    if way == 2:
        bits_ = draw.choice((2, 4))
    shape = (out, columns, bits_, block, per_scale)
    weight = ternary = tables = vectors = coding = None
    unit = 160 if way == 4 else block
    if way == 4:
        ternary = wrong.ternary(out, columns)
    else:
        weight = wrong.weight(shape, 0 if way > 9 else draw.choice((0, 0, 0, 1, 2)))
    if way == 2:
        other = shape if draw.random() < 0.9 else (draw.randint(1, 40), draw.randint(1, 300), 4, block, 1)
        tables = wrong.tables(weight if other == shape else wrong.weight(other, 0), other)
    if way in (10, 11):
        tables_of = weight if draw.random() < 0.9 else wrong.weight((out, columns, bits_, 32, per_scale), 0)
        weight = weight if draw.random() < 0.9 else wrong.weight((out, columns, bits_, 16, per_scale), 0)
        vectors = _core.lattice_tables(tables_of, wrong.span(6 * 256), wrong.span(32))
    shifts = 0
    if way == 5 or draw.random() < 0.3:
        run = columns if way == 5 or draw.random() < 0.5 else unit
        asymmetric = draw.random() < 0.4
        shifts = -(-columns // run) if asymmetric else 0
        low, high = (0.0, draw.choice((15.0, 255.0))) if asymmetric else (-8.0, 7.0)
        coding = _core.Coding(
            draw.random() < 0.2, asymmetric, wrong.number(run), wrong.real(low), wrong.real(high), wrong.real(15.0),
            wrong.real(1.0), wrong.real(0.1), wrong.real(0.0),
        )  # fmt: skip
    added = terms(wrong, out, columns, shifts) if shifts or draw.random() < 0.4 else None
    groups = -(-columns // (block * per_scale))
    size = 4 * -(-out // 16) * 16 * groups if way == 5 else 2 << bits_
    return [wrong.number(way), weight, ternary, tables, vectors, wrong.span(size), added, coding]


WAYS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)


def sums_of_entries(wrong: Wrong, out: int, columns: int) -> Any:
    """A matrix of sums of codebook entries."""
    draw = wrong.random
    books, size, group = draw.randint(1, 3), draw.choice((1, 1, 2)), draw.choice((16, 32, columns, columns + 5))
    columns = max(columns // 8 * 8, 8)
    groups = 1 if group >= columns else -(-columns // group)
    return _core.additive_tables(
        wrong.number(out), wrong.number(columns), wrong.number(books), wrong.number(size), wrong.number(group),
        wrong.span(out * columns // 8 * books * size), wrong.span(books * 256**size * 16),
        wrong.span(4 * out * groups),
    )  # fmt: skip


def vectors(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Searches of vector codebooks that hold any numbers."""
    draw = wrong.random
    count, books, entries, span = draw.randint(0, 80), draw.randint(1, 3), draw.randint(1, 90), draw.randint(1, 9)
    kernels.beam_search(
        wrong.number(count), wrong.number(books), wrong.number(entries), wrong.number(span),
        wrong.number(draw.randint(1, 6)), wrong.span(4 * count * span), wrong.span(4 * books * entries * span),
        wrong.span(4 * books * entries), wrong.span(4 * count * books), threads,
    )  # fmt: skip
    base = array("f", [0.5] * 2048).tobytes()
    kernels.nearest_e8p(
        wrong.number(count), wrong.span(32 * count), wrong.span(8192, base), wrong.span(1024), wrong.span(4 * count),
        threads,
    )  # fmt: skip


def trellis(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Search, packing and products of trellis codes."""
    draw = wrong.random
    code_bits = draw.randint(1, 4)
    state = draw.randint(max(2 * code_bits, code_bits + 4), 10)
    span, rows = draw.choice((32, 64)), draw.randint(0, 3)
    columns, kind, out = span * draw.randint(1, 3), draw.choice((0, 1, 2)), draw.randint(1, 35)
    kernels.trellis_search(
        wrong.number(rows), wrong.number(columns), wrong.number(span), wrong.number(code_bits), wrong.number(state),
        wrong.number(draw.randint(1, span)), wrong.span(4 << state), wrong.span(4 * rows * columns),
        wrong.maybe(wrong.span(4 * columns)), wrong.span(rows * columns), threads,
    )  # fmt: skip
    shape = [wrong.number(value) for value in (out, columns, span, code_bits, state)]
    packed = -(-out // 16) * 16 * columns // 32 * code_bits * 4
    kernels.trellis_pack(*shape, wrong.span(out * columns), wrong.span(packed), threads)
    per_scale, scale = draw.choice((1, 2, 9)), draw.choice((0, 1, 2))
    groups = -(-columns // (span * per_scale))
    weight = _core.TrellisWeight(
        *shape, wrong.number(draw.choice((0, 1))), wrong.number(per_scale), wrong.span(packed),
        wrong.span(-(-out // 16) * 16 * groups * SIZES[scale]), wrong.number(scale), wrong.real(0.5),
    )  # fmt: skip
    kernels.trellis_linear(
        weight, wrong.span(rows * columns * SIZES[kind]), wrong.number(kind), wrong.number(rows),
        wrong.span(rows * out * SIZES[kind]), wrong.maybe(wrong.span(4 * out)), draw.random() < 0.7, threads,
    )  # fmt: skip


def product(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Products in every way."""
    draw = wrong.random
    way, kind, rows = draw.choice(WAYS), draw.choice((0, 1, 2)), draw.randint(0, 20)
    out, columns = (64 if way in (6, 7) else draw.randint(1, 40)), draw.randint(1, 300)
    columns = max(columns // 8 * 8, 8) if way == 12 else columns
    kernels.product(
        *parts(wrong, way, out, columns), wrong.span(rows * columns * SIZES[kind]), wrong.number(kind),
        wrong.number(rows), wrong.span(rows * out * SIZES[kind]), wrong.maybe(wrong.span(4 * out)), threads,
    )  # fmt: skip


def convolve(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Convolutions in every way."""
    draw = wrong.random
    way, kind, batch = draw.choice(WAYS[:-1]), draw.choice((0, 1, 2)), draw.randint(0, 2)
    out, channels = (64 if way in (6, 7) else draw.randint(1, 20)), draw.randint(1, 5)
    count = draw.randint(1, channels)
    kernel, image, made = ([draw.randint(1, 3), draw.randint(1, 3)], [draw.randint(1, 9), draw.randint(1, 9)], [3, 2])
    outputs = out + draw.randint(0, 3)

    def pair(values: list[int]) -> tuple[Any, Any]:
        return wrong.number(values[0]), wrong.number(values[1])

    kernels.convolve(
        *parts(wrong, way, out, count * kernel[0] * kernel[1]),
        wrong.span(batch * channels * image[0] * image[1] * SIZES[kind]), wrong.number(kind),
        (wrong.number(batch), wrong.number(channels), *pair(image)), wrong.number(channels - count), pair(kernel),
        pair([1, 2]), pair([1, 0]), pair([1, 2]), pair(made), wrong.span(batch * outputs * 6 * SIZES[kind]),
        wrong.number(outputs), wrong.number(outputs - out), wrong.maybe(wrong.span(4 * out)), threads,
    )  # fmt: skip


def others(wrong: Wrong, kernels: Any, threads: Any) -> None:
    """Probes and memory."""
    kernels.read_all(wrong.span(wrong.random.choice((0, 5, 1 << 19))), threads)
    kernels.multiply_bytes(wrong.number(1), threads)
    pages = _core.pages(wrong.number(4096))
    if pages is None:
        raise AssertionError("memory is refused or given")


CALLS = (linear, bits, sweep, descent, kmeans, hadamard, product, product, convolve, vectors, trellis, others)
