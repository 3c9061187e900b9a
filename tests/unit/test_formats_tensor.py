"""Sums of terms: values, exact bits, saving, and the refusal of damaged files."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import Codes, LowRank, QuantizedTensor, Scale, Sparse, parse

SHAPE = (40, 70)


def matrix(seed: int = 0) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.05


def codes_of(text: str) -> Codes:
    fmt = parse(text)
    if not text.startswith("lut"):
        return fmt.quantize(matrix())
    rows, groups = fmt.granularity.layout(SHAPE).params_shape
    book = torch.linspace(-0.1, 0.1, 1 << fmt.grid.bits).expand(rows, groups, -1).to(torch.float16).contiguous()
    layout, ones = fmt.granularity.layout(SHAPE), torch.ones(rows, groups)
    encoded = layout.join(fmt.encode(layout.split(matrix()), ones, None, book))
    return Codes(encoded, fmt, Scale(torch.empty(0), ones), None, book)


def sparse() -> Sparse:
    return Sparse.where(matrix(1), matrix(1).abs() > 0.12)


def low_rank() -> LowRank:
    return LowRank(matrix(2)[:, :3].to(torch.float16).contiguous(), matrix(3)[:3].to(torch.bfloat16))


TEXTS = ["int4 g128 asym", "int3 g16", "int8 channel", "nf4 b64", "nf4 b64 scale=double", "mxfp4", "mxint8", "nvfp4"]
TEXTS += [
    "int4 g32 zero=fp16",
    "e4m3 tensor",
    "lut3 channel",
    "table[-1,0.25,1] g7",
    "ternary channel",
    "int5 g9 axis=0",
]


def tensors_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("text", TEXTS)
def test_a_coded_matrix_is_saved_in_exactly_its_bits(text: str) -> None:
    q = QuantizedTensor((codes_of(text),))
    tensors, meta = q.to_tensors()
    assert 8 * sum(t.numel() * t.element_size() for t in tensors.values()) == q.storage_bits()
    assert q.storage_bits() == parse(text).storage_bits(SHAPE)
    assert q.bits_per_weight == pytest.approx(parse(text).bits_per_weight(SHAPE))
    again = QuantizedTensor.from_tensors(tensors, json.loads(json.dumps(meta)))
    assert torch.equal(again.dequantize(), q.dequantize())
    assert tensors_equal(again.to_tensors()[0], tensors)
    assert again.to_tensors()[1] == meta


EXPECTED_BITS = {
    "int4 g128": 4 + 16 / 128,
    "int4 g128 asym": 4 + 16 / 128 + 4 / 128,
    "int4 g128 zero=fp16": 4 + 32 / 128,
    "int3 g64 asym": 3 + 16 / 64 + 3 / 64,
    "int8 channel": 8 + 16 / 1024,
    "mxfp4": 4 + 8 / 32,
    "mxfp6_e2m3": 6 + 8 / 32,
    "nvfp4": 4 + 8 / 16 + 32 / (512 * 1024),
    "nf4 b64": 4 + 16 / 64,
    "nf4 b64 scale=double": 4 + 8 / 64 + 32 / (64 * 256) + 32 / (512 * 1024),
    "lut4 channel": 4 + 16 * 16 / 1024,
    "ternary channel": 2 + 16 / 1024,
    "e4m3 block128x128": 8 + 16 / (128 * 128),
    "int4 g64 axis=0": 4 + 16 / 64,
    "table[-1,0,1] tensor": 2 + (16 + 3 * 32) / (512 * 1024),
}


@pytest.mark.parametrize("text", EXPECTED_BITS)
def test_bits_per_weight_by_hand(text: str) -> None:
    assert parse(text).bits_per_weight((512, 1024)) == pytest.approx(EXPECTED_BITS[text], rel=1e-12)


def test_rows_that_do_not_fill_a_byte_are_counted_with_their_padding() -> None:
    assert parse("int3 channel").storage_bits((2, 3)) == 2 * (16 + 16)
    # Zero points are one stream: 3 of 3 bits take 2 bytes.
    assert parse("int3 channel asym").storage_bits((3, 8)) == 3 * (24 + 16) + 16


def test_the_sum_of_terms() -> None:
    terms = (codes_of("int4 g32"), sparse(), low_rank())
    q = QuantizedTensor(terms)
    total = terms[0].dequantize() + terms[1].dequantize() + terms[2].dequantize()
    assert torch.allclose(q.dequantize(), total, atol=1e-7)
    assert torch.equal(q.dequantize(level=1), terms[0].dequantize())
    assert q.dequantize(torch.bfloat16).dtype == torch.bfloat16
    assert q.normal_form == "affine+sparse+lowrank"
    assert QuantizedTensor((codes_of("nf4 b64"),)).normal_form == "table"
    assert QuantizedTensor((codes_of("lut3 channel"), sparse())).normal_form == "codebook+sparse"
    assert q.codes is terms[0]
    assert q.storage_bits() == sum(term.storage_bits() for term in terms)


def composed() -> QuantizedTensor:
    eight = parse("int8 channel")
    left, right = eight.quantize(matrix(4)[:, :5]), eight.quantize(matrix(5)[:5])
    terms = (codes_of("int4 g32"), sparse(), low_rank(), codes_of("int2 g32 asym"), LowRank(left, right))
    return QuantizedTensor(terms)


def test_several_terms_of_a_kind_are_saved_under_numbers() -> None:
    q = composed()
    tensors, meta = q.to_tensors()
    assert {"codes", "scale", "1.codes", "1.zero", "sparse.indptr", "sparse.indices", "sparse.values"} < set(tensors)
    assert {"lowrank.left", "lowrank.right", "lowrank1.left.codes", "lowrank1.right.scale"} < set(tensors)
    assert 8 * sum(t.numel() * t.element_size() for t in tensors.values()) == q.storage_bits()
    again = QuantizedTensor.from_tensors(tensors, meta)
    assert torch.equal(again.dequantize(), q.dequantize())
    assert again.normal_form == q.normal_form


def test_sparse_terms() -> None:
    w = matrix(1)
    term = Sparse.where(w, w.abs() > 0.12, torch.float32)
    assert torch.equal(term.dequantize(), torch.where(w.abs() > 0.12, w, torch.zeros_like(w)))
    empty = QuantizedTensor((Sparse.where(w, torch.zeros_like(w, dtype=torch.bool)),))
    assert not bool(QuantizedTensor.from_tensors(*empty.to_tensors()).dequantize().any())
    with pytest.raises(InputError, match="bfloat16"):
        Sparse.where(w * 1e7, w.abs() > 0.12)


def positions(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("rows", "cols"),
    [((0, 0), (1, 1)), ((1, 0), (0, 0)), ((0, 2), (0, 0)), ((0, 1), (0, 9)), ((0, 1), (-1, 0)), ((0,), (0, 1))],
)
def test_sparse_positions_are_checked(rows: tuple[int, ...], cols: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        Sparse(positions(*rows), positions(*cols), torch.ones(2), (2, 4))


def test_parts_that_do_not_fit_are_refused() -> None:
    good = codes_of("int4 g32 asym")
    assert good.zero is not None
    for make in (
        lambda: QuantizedTensor(()),
        lambda: QuantizedTensor((good, parse("int4").quantize(torch.ones(3, 3)))),
        lambda: LowRank(torch.ones(3, 2), torch.ones(3, 2)),
        lambda: LowRank(torch.ones(3, 2, dtype=torch.float64), torch.ones(2, 3)),
        lambda: Codes(good.codes.float(), good.format, good.scale, good.zero),
        lambda: Codes(good.codes, good.format, good.scale, None),
        lambda: Codes(good.codes, parse("int4 g32"), good.scale, good.zero),
        lambda: Codes(good.codes, parse("int4 g16 asym"), good.scale, good.zero),
        lambda: Codes(good.codes, good.format, good.scale, good.zero[:, :1]),
        lambda: Codes(good.codes, good.format, good.scale, good.zero, torch.zeros(40, 3, 16)),
    ):
        with pytest.raises(InputError):
            make()


def saved(text: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return QuantizedTensor((codes_of(text),)).to_tensors()


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


DAMAGE: dict[str, tuple[str, str, Any]] = {
    "missing": ("int4 g32", "scale", None),
    "float64": ("int4 g32", "scale", lambda t: t.double()),
    "short": ("int4 g32", "codes", lambda t: t[:, :-1]),
    "rows": ("int4 g32", "codes", lambda t: t[:-1]),
    "zero scale": ("int4 g32", "scale", lambda t: with_value(t, 0.0)),
    "negative scale": ("int4 g32", "scale", lambda t: -t),
    "nan scale": ("int4 g32", "scale", lambda t: with_value(t, float("nan"))),
    "nan e8m0": ("mxfp4", "scale", lambda t: with_value(t, 255)),
    "nan e4m3": ("nvfp4", "scale", lambda t: with_value(t, 127)),
    "no outer": ("nvfp4", "scale_outer", None),
    "infinite outer": ("nvfp4", "scale_outer", lambda t: with_value(t, float("inf"))),
    "outer length": ("nf4 b64 scale=double", "scale_outer", lambda t: torch.cat([t, t])),
    "unused pattern": ("ternary channel", "codes", lambda t: with_value(t, 255)),
    "narrow pattern": ("int4 g32 narrow", "codes", lambda t: with_value(t, 255)),
    "nan code": ("e4m3 tensor", "codes", lambda t: with_value(t, 127)),
    "nan zero": ("int4 g32 zero=fp16", "zero", lambda t: with_value(t, float("nan"))),
    "nan codebook": ("lut3 channel", "codebook", lambda t: with_value(t, float("nan"))),
    "other levels": ("table[-1,0.25,1] g7", "codebook", lambda t: t + 1),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_tensors_are_refused(case: str) -> None:
    text, name, change = DAMAGE[case]
    tensors, meta = saved(text)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    with pytest.raises(InputError):
        QuantizedTensor.from_tensors(tensors, meta)


def test_unknown_tensors_and_keys_are_refused() -> None:
    tensors, meta = saved("int4 g32")
    with pytest.raises(InputError, match="unknown tensors"):
        QuantizedTensor.from_tensors({**tensors, "extra": tensors["codes"]}, meta)
    term = meta["terms"][0]
    changes: list[dict[str, Any]] = [
        {**meta, "format_version": 99},
        {**meta, "shapes": [1, 2]},
        {**meta, "shape": [40, -70]},
        {**meta, "shape": [40, 71]},
        {**meta, "shape": [40, True]},
        {**meta, "terms": "int4"},
        {**meta, "terms": []},
        {**meta, "terms": [{**term, "kind": "code"}]},
        {**meta, "terms": [{**term, "formats": "int4"}]},
        {**meta, "terms": [{**term, "format": "int5 g32"}]},
        {**meta, "terms": [term, term]},
        {key: value for key, value in meta.items() if key != "shape"},
    ]
    for changed in changes:
        with pytest.raises(InputError):
            QuantizedTensor.from_tensors(tensors, changed)


def test_damaged_row_pointers_are_refused() -> None:
    tensors, meta = QuantizedTensor((sparse(),)).to_tensors()
    good = tensors["sparse.indptr"]
    for damaged in (good.flip(0), good + 1, good.clone().index_fill_(0, torch.tensor([3]), 10_000)):
        with pytest.raises(InputError):
            QuantizedTensor.from_tensors({**tensors, "sparse.indptr": damaged}, meta)
    with pytest.raises(InputError):
        QuantizedTensor.from_tensors(tensors, {**meta, "terms": [{"kind": "lowrank", "prefix": "", "rank": 0}]})
