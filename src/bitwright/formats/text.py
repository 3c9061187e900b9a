"""The text form of formats: ``int4 g128 asym``, ``nf4 b64 scale=double``, ``mxfp4``; parse and print."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field

from bitwright.errors import InputError, nearest_key
from bitwright.formats.derived import derived_table
from bitwright.formats.format import AnyGrid, Format, Time, default_scale
from bitwright.formats.granularity import Block, Channel, FlatBlock, Granularity, Group, Tensor, Token
from bitwright.formats.grids import IntGrid
from bitwright.formats.lattice import LatticeGrid
from bitwright.formats.minifloat import MiniFloat
from bitwright.formats.scales import FLOAT_STORAGE, SCALE_WORDS, ZeroFormat
from bitwright.formats.tables import CodebookGrid, TableGrid, table
from bitwright.formats.trellis import trellis_grid
from bitwright.formats.vectors import AdditiveGrid

NAMED = {
    "mxfp4": "e2m1 g32 scale=e8m0",
    "mxfp6_e2m3": "e2m3 g32 scale=e8m0",
    "mxfp6_e3m2": "e3m2 g32 scale=e8m0",
    "mxfp8_e4m3": "e4m3 g32 scale=e8m0",
    "mxfp8_e5m2": "e5m2 g32 scale=e8m0",
    "mxint8": "int8 g32 scale=e8m0",
    "nvfp4": "e2m1 g16 scale=e4m3",
}
"""Formats with a name of their own and what they stand for."""

_GRID_EXAMPLES = [f"int{b}" for b in range(1, 9)] + [f"uint{b}" for b in range(1, 9)]
_GRID_EXAMPLES += ["e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "e3m4", "nf2", "nf3", "nf4", "fp4-bnb", "ternary", "binary"]
_GRID_EXAMPLES += ["pot3", "pot4", "apot3", "apot4", "lloyd2", "lloyd3", "lloyd4", "lut2", "lut3", "lut4", *NAMED]
_GRID_EXAMPLES += ["e8p", "e8p3", "e8p4", "vq1x8d8", "vq2x8d8", "vq1x16d8"]
_GRID_EXAMPLES += ["trellis1", "trellis2", "trellis3", "trellis4", "trellis2-3inst"]
_OPTION_WORDS = ["tensor", "channel", "token", "g32", "g64", "g128", "b64", "block128x128", "sym", "asym", "narrow"]
_OPTION_WORDS += ["static", "dynamic", "clip=0.9", "axis=0", "axis=1", *(f"scale={word}" for word in SCALE_WORDS)]
_OPTION_WORDS += ["zero=code", *(f"zero={word}" for word in FLOAT_STORAGE)]


@dataclass
class _Words:
    """The parts of a text as they are read; None where nothing was said."""

    grid: AnyGrid
    granularity: Granularity | None = None
    axis: int | None = None
    symmetry: str | None = None
    scale: str | None = None
    zero: str | None = None
    time: Time | None = None
    clip: float = 1.0
    seen: dict[str, str] = field(default_factory=dict)

    def once(self, part: str, word: str) -> None:
        if part in self.seen and self.seen[part] != word:
            raise InputError(f"{self.seen[part]!r} and {word!r} both set the {part}; keep one of them")
        self.seen[part] = word


def _grid(word: str) -> AnyGrid:
    if match := re.fullmatch(r"(u?)int([0-9]{1,9})", word):
        return IntGrid(int(match[2]), signed=not match[1])
    if match := re.fullmatch(r"e([0-9]{1,9})m([0-9]{1,9})(fn|ieee|)", word):
        convention = {"fn": "fn", "ieee": "ieee", "": "ocp"}[match[3]]
        return MiniFloat(int(match[1]), int(match[2]), convention)  # type: ignore[arg-type]
    if match := re.fullmatch(r"lut([0-9]{1,9})", word):
        return CodebookGrid(int(match[1]))
    if match := re.fullmatch(r"vq([0-9]{1,9})x([0-9]{1,9})d([0-9]{1,9})", word):
        return AdditiveGrid(int(match[1]), int(match[2]), int(match[3]))
    if match := re.fullmatch(r"e8p([34]?)", word):
        return LatticeGrid(int(match[1] or 2))
    if word.startswith("trellis"):
        return trellis_grid(word)
    if match := re.fullmatch(r"table\[(.*)\]", word):
        return table(_numbers(match[1], word))
    values = derived_table(word)
    if values is None:
        raise InputError(f"unknown number grid {word!r}; {nearest_key(word, _GRID_EXAMPLES)}")
    return TableGrid(word, values)


def _numbers(text: str, word: str) -> list[float]:
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{word!r} is no list of numbers; write e.g. table[-1,-0.25,0.25,1]") from None
    if not all(math.isfinite(value) and abs(value) < 3e38 for value in values):
        raise InputError(f"{word!r} holds a number that is not finite in float32; remove it")
    return values


def _share(text: str, word: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{word!r} has no number; write e.g. clip=0.9") from None


def _granularity(word: str) -> Granularity | None:
    plain: dict[str, Granularity] = {"tensor": Tensor(), "channel": Channel(), "token": Token()}
    if word in plain:
        return plain[word]
    if match := re.fullmatch(r"g([0-9]{1,9})", word):
        return Group(int(match[1]))
    if match := re.fullmatch(r"b([0-9]{1,9})", word):
        return FlatBlock(int(match[1]))
    if match := re.fullmatch(r"block([0-9]{1,9})x([0-9]{1,9})", word):
        return Block(int(match[1]), int(match[2]))
    return None


def _read_option(words: _Words, word: str) -> None:
    granularity = _granularity(word)
    key, _, value = word.partition("=")
    if granularity is not None:
        words.once("granularity", word)
        words.granularity = granularity
    elif word in ("sym", "asym", "narrow"):
        words.once("symmetry", word)
        words.symmetry = word
    elif word in ("static", "dynamic"):
        words.once("time", word)
        words.time = "dynamic" if word == "dynamic" else "static"
    elif key == "scale" and value in SCALE_WORDS:
        words.once("scale", word)
        words.scale = value
    elif key == "zero" and (value == "code" or value in FLOAT_STORAGE):
        words.once("zero", word)
        words.zero = value
    elif key == "clip" and value:
        words.once("clip", word)
        words.clip = _share(value, word)
    elif key == "axis" and value in ("0", "1"):
        words.once("axis", word)
        words.axis = int(value)
    else:
        raise InputError(f"unknown word {word!r} in a format; {nearest_key(word, _OPTION_WORDS)}")


def _with_axis(granularity: Granularity, axis: int | None) -> Granularity:
    if axis is None:
        return granularity
    if isinstance(granularity, Channel):
        return Channel(axis)
    if isinstance(granularity, Group):
        return Group(granularity.size, axis)
    raise InputError(f"axis={axis} belongs to channels and groups, not to {granularity.text!r}; drop it")


def _symmetric_parts(words: _Words) -> tuple[AnyGrid, ZeroFormat | None]:
    """Return the grid and the zero point that sym, asym, narrow and zero= make of the grid's word."""
    grid, symmetry = words.grid, words.symmetry
    if symmetry is None:
        symmetry = "asym" if words.zero is not None else "sym"
    if symmetry == "sym":
        if words.zero is not None:
            raise InputError(f"zero={words.zero} needs zero points; write 'asym' or drop it")
        return grid, None
    if not isinstance(grid, IntGrid):
        raise InputError(f"{symmetry!r} belongs to integers, not to {grid.text}; drop it")
    if symmetry == "narrow":
        return IntGrid(grid.bits, grid.signed, narrow=True), None
    storage = words.zero or "code"
    return IntGrid(grid.bits, signed=False), ZeroFormat(storage)  # type: ignore[arg-type]


def parse(text: str) -> Format:
    """Return the format of a text; ``parse(str(f)) == f``.

    The first word is a grid (``int4``, ``uint8``, ``e4m3``, ``nf4``, ``fp4-bnb``, ``pot4``, ``apot4``, ``ternary``,
    ``binary``, ``lloyd3``, ``lut4``, ``table[-1,0,1]``, ``e8p``, ``vq2x8d8``, ``trellis2``) or a named
    format (``mxfp4``, ``nvfp4``, ``mxint8``). Then, in any order: granularity (``tensor channel g128 b64 block128x128
    token``, ``axis=0|1``), ``sym|asym|narrow``, ``scale=fp32|fp16|bf16|e8m0|e8m0-ct|e4m3|double|none``,
    ``zero=code|fp16|bf16|fp32``, ``static|dynamic``, ``clip=0.9`` (the share of a range that is covered, 1 by default).
    Defaults: sym, channel, fp16 scales (fp32 for tokens, ``dynamic`` and a written ``static``), static.

    Raises:
        InputError: an unknown word (with the nearest valid one) or words that exclude each other.
    """
    parts = text.split()
    if not parts:
        raise InputError("an empty format; write e.g. 'int4 g128' or 'mxfp4'")
    named = NAMED.get(parts[0])
    head = (named or parts[0]).split()
    words = _Words(_grid(head[0]))
    for word in head[1:]:
        _read_option(words, word)
    if named:
        words.seen.clear()
    for word in parts[1:]:
        _read_option(words, word)
    grid, zero = _symmetric_parts(words)
    granularity = _with_axis(words.granularity or Channel(), words.axis)
    time: Time = words.time or "static"
    scale = default_scale(grid, granularity, time)
    if words.scale is not None:
        scale = SCALE_WORDS[words.scale]
    elif words.time == "static" and scale.storage == "fp16":
        # Who writes "static" speaks of activations: one range, kept in full precision.
        scale = SCALE_WORDS["fp32"]
    return Format(grid, granularity, scale, zero, time, words.clip)


@functools.cache
def _named_formats() -> dict[Format, str]:
    return {parse(meaning): name for name, meaning in NAMED.items()}


def format_text(fmt: Format) -> str:
    """Return the canonical text: a name where one fits, defaults left out."""
    tail = " dynamic" if fmt.time == "dynamic" else ""
    if fmt.clip != 1:
        tail += f" clip={fmt.clip!r}"
    name = _named_formats().get(Format(fmt.grid, fmt.granularity, fmt.scale, fmt.zero))
    if name is not None:
        return name + tail
    grid = fmt.grid
    asymmetric = fmt.zero is not None and isinstance(grid, IntGrid)
    words = [f"int{grid.bits}" if asymmetric else grid.text, fmt.granularity.text]
    if isinstance(grid, IntGrid) and grid.narrow:
        words.append("narrow")
    if fmt.zero is not None:
        words.append("asym" if fmt.zero.storage == "code" else f"asym zero={fmt.zero.storage}")
    if fmt.scale != default_scale(grid, fmt.granularity, fmt.time):
        words.append(f"scale={fmt.scale.text}")
    return " ".join(words) + tail
