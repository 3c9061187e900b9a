"""The text form of formats: what it means, that it prints back, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright import formats
from bitwright.errors import InputError
from bitwright.formats import (
    NAMED,
    Block,
    Channel,
    CodebookGrid,
    FlatBlock,
    Format,
    Group,
    IntGrid,
    MiniFloat,
    ScaleFormat,
    TableGrid,
    Tensor,
    Token,
    ZeroFormat,
    parse,
    table,
)

FP16, FP32 = ScaleFormat("fp16"), ScaleFormat("fp32")
NF4 = TableGrid.derived("nf4")

MEANINGS = {
    "int4 g128 asym": Format(IntGrid(4, signed=False), Group(128), FP16, ZeroFormat()),
    "int8 channel": Format(IntGrid(8), Channel(), FP16),
    "int4 g128 narrow": Format(IntGrid(4, narrow=True), Group(128), FP16),
    "e4m3 tensor": Format(MiniFloat(4, 3, "fn"), Tensor(), FP16),
    "e5m2 tensor": Format(MiniFloat(5, 2, "ieee"), Tensor(), FP16),
    "nf4 b64": Format(NF4, FlatBlock(64), FP16),
    "nf4 b64 scale=double": Format(NF4, FlatBlock(64), ScaleFormat.named("double")),
    "mxfp4": Format(MiniFloat(2, 1), Group(32), ScaleFormat("e8m0")),
    "e2m1 g32 scale=e8m0-ct": Format(MiniFloat(2, 1), Group(32), ScaleFormat("e8m0", rule="ct")),
    "nvfp4": Format(MiniFloat(2, 1), Group(16), ScaleFormat.named("e4m3")),
    "mxint8": Format(IntGrid(8), Group(32), ScaleFormat("e8m0")),
    "mxfp8_e4m3 dynamic": Format(MiniFloat(4, 3), Group(32), ScaleFormat("e8m0"), time="dynamic"),
    "int8 token dynamic": Format(IntGrid(8), Token(), FP32, time="dynamic"),
    "int8 token dynamic clip=0.9": Format(IntGrid(8), Token(), FP32, time="dynamic", clip=0.9),
    "mxfp4 clip=0.5": Format(MiniFloat(2, 1), Group(32), ScaleFormat("e8m0"), clip=0.5),
    "lut4 channel": Format(CodebookGrid(4), Channel(), ScaleFormat("none")),
    "ternary channel": Format(TableGrid.derived("ternary"), Channel(), FP16),
    "pot4 channel": Format(TableGrid.derived("pot4"), Channel(), FP16),
    "int4 block128x128": Format(IntGrid(4), Block(128, 128), FP16),
    "int4 g64 axis=0": Format(IntGrid(4), Group(64, axis=0), FP16),
    "int4 g64 asym zero=fp16": Format(IntGrid(4, signed=False), Group(64), FP16, ZeroFormat("fp16")),
    "uint8 tensor": Format(IntGrid(8, signed=False), Tensor(), FP16),
    "table[-1,0.25,1] g32": Format(table([-1, 0.25, 1]), Group(32), FP16),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_canonical_texts(text: str) -> None:
    assert parse(text) == MEANINGS[text]
    assert str(parse(text)) == text


SYNONYMS = {
    "int4 g128 sym": "int4 g128",
    "int4": "int4 channel",
    "  int4   asym g128 ": "int4 g128 asym",
    "uint4 g128 asym": "int4 g128 asym",
    "int4 zero=code g8": "int4 g8 asym",
    "int8 tensor asym static": "int8 tensor asym scale=fp32",
    "int4 g64 axis=1": "int4 g64",
    "e4m3fn tensor": "e4m3 tensor",
    "int4 g64 scale=fp16 static": "int4 g64",
    "mxfp4 g32 static": "mxfp4",
    "mxfp4 g16": "e2m1 g16 scale=e8m0",
    **{meaning: name for name, meaning in NAMED.items()},
}


@pytest.mark.parametrize("text", SYNONYMS)
def test_other_ways_to_say_the_same(text: str) -> None:
    assert str(parse(text)) == SYNONYMS[text]


GRIDS = st.one_of(
    st.builds(IntGrid, st.integers(1, 8), st.booleans()),
    st.builds(IntGrid, st.integers(2, 8), st.just(True), st.just(True)),
    st.integers(3, 8).flatmap(
        lambda bits: st.integers(1, bits - 1).map(lambda e: MiniFloat(e, bits - 1 - e, "fn")),
    ),
    st.sampled_from([MiniFloat(4, 3, "ieee"), MiniFloat(2, 2, "ieee"), MiniFloat(5, 2)]),
    st.sampled_from(["nf2", "nf4", "fp4-bnb", "pot3", "apot5", "ternary", "binary", "lloyd2"]).map(TableGrid.derived),
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6).map(lambda values: table([1.0, *values])),
)
GRANULARITIES = st.one_of(
    st.sampled_from([Tensor(), Channel(), Channel(1), Token()]),
    st.builds(Group, st.integers(1, 4096), st.integers(0, 1)),
    st.builds(Block, st.integers(1, 256), st.integers(1, 256)),
    st.builds(FlatBlock, st.integers(1, 4096)),
)
SCALES = st.sampled_from(["fp32", "fp16", "bf16", "e8m0", "e8m0-ct", "e4m3"]).map(ScaleFormat.named)
TIMES = st.sampled_from(["static", "dynamic"])
ZEROS = st.sampled_from(["code", "fp16", "bf16", "fp32"]).map(ZeroFormat)
CLIPS = st.one_of(st.just(1.0), st.floats(0, 2, exclude_min=True))
FORMATS = st.one_of(
    st.builds(Format, GRIDS, GRANULARITIES, SCALES, st.none(), TIMES, CLIPS),
    st.builds(Format, st.builds(IntGrid, st.integers(1, 8), st.just(False)), GRANULARITIES, SCALES, ZEROS, TIMES),
    st.builds(Format, GRIDS, st.builds(FlatBlock, st.integers(1, 99)), st.just(ScaleFormat.named("double"))),
    st.builds(Format, st.builds(CodebookGrid, st.integers(1, 8)), GRANULARITIES, st.just(ScaleFormat("none"))),
)


@given(FORMATS)
def test_every_format_prints_a_text_that_means_itself(fmt: Format) -> None:
    text = str(fmt)
    assert parse(text) == fmt
    assert str(parse(text)) == text
    assert hash(parse(text)) == hash(fmt)


@given(FORMATS)
def test_a_repr_can_be_pasted(fmt: Format) -> None:
    assert eval(repr(fmt), vars(formats)) == fmt


REFUSALS = {
    "": "empty",
    "int9 g128": "1 to 8 bits",
    "it4 g128": "did you mean 'int4'",
    "mxpf4": "did you mean 'mxfp4'",
    "int4 gg128": "did you mean 'g128'",
    "int4 asymm": "did you mean 'asym'",
    "int4 scale=fp61": "did you mean 'scale=fp16'",
    "int4 g0": "at least 1",
    "int4 g128 g64": "keep one",
    "int4 sym asym": "keep one",
    "int4 b64 axis=0": "drop it",
    "int4 axis=2": "did you mean 'axis=",
    "nf4 asym": "belongs to integers",
    "e4m3 narrow": "belongs to integers",
    "int4 sym zero=fp16": "needs zero points",
    "int1 narrow": "binary",
    "int4 scale=none": "codebooks",
    "int4 token clip=0": "share of a range",
    "int4 token clip=2.5": "share of a range",
    "int4 token clip=nan": "share of a range",
    "int4 token clip=x": "no number",
    "int4 token clip=0.9 clip=0.8": "keep one",
    "int4 g64 scale=double": "flat blocks",
    "e9m9 tensor": "no minifloat",
    "nf9 b64": "2 to 8 bits",
    "table[1,x]": "no list of numbers",
    "table[1,1e99]": "not finite",
    "table[1]": "2 to 256",
    "lut9": "1 to 8 bits",
}


@pytest.mark.parametrize("text", REFUSALS)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse(text)
    assert REFUSALS[text] in str(refusal.value)


PIECES = st.sampled_from(
    [
        "int4",
        "g128",
        "e2m1",
        "nf4",
        "b64",
        "asym",
        "table[",
        "]",
        ",",
        "scale=",
        "e8m0",
        "-1",
        "x",
        "=",
        "²",
        "9" * 5000,
    ]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=6), st.sampled_from(["", " "]))
def test_any_other_text_is_refused_as_input(pieces: list[str], glue: str) -> None:
    text = glue.join(pieces)
    try:
        fmt = parse(text)
    except InputError:
        return
    assert parse(str(fmt)) == fmt


def test_parts_that_exclude_each_other_are_refused() -> None:
    for make in (
        lambda: Format(IntGrid(4), Channel(), FP16, ZeroFormat()),
        lambda: Format(NF4, Channel(), ScaleFormat("none")),
        lambda: Format(NF4, Channel(), FP16, None, "later"),  # type: ignore[arg-type]
        lambda: ScaleFormat("e4m3"),
        lambda: ScaleFormat("fp8"),  # type: ignore[arg-type]
        lambda: ScaleFormat("fp16", rule="ct"),
        lambda: ZeroFormat("int8"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            make()
