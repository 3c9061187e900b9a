"""Quantized tensors as named plain tensors and metadata, and back.

Names of the first coded term: ``codes`` (packed uint8, rows end on a byte), ``scale`` (as stored), ``scale_outer``,
``scale_offset``, ``zero`` (packed b-bit codes in one stream, or floats), ``codebook``. A sparse term has
``sparse.indptr``, ``sparse.indices``, ``sparse.values``; a low-rank term ``lowrank.left`` and ``lowrank.right`` or, if
a factor is coded, ``lowrank.left.codes`` and so on. Later terms of a kind have a number: ``1.codes``,
``sparse1.values``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError, nearest_key
from bitwright.formats.format import Format
from bitwright.formats.packing import pack, packed_columns, unpack
from bitwright.formats.scales import FLOAT_STORAGE, Scale, load
from bitwright.formats.tables import TableGrid
from bitwright.formats.tensor import Codes, LowRank, QuantizedTensor, Sparse, Term
from bitwright.formats.text import parse

FORMAT_VERSION = 1

_META_KEYS = {"format_version", "shape", "terms"}
_TERM_KEYS = {"codes": {"kind", "prefix", "format"}, "sparse": {"kind", "prefix"}}
_TERM_KEYS["lowrank"] = {"kind", "prefix", "rank", "left", "right"}


def to_tensors(q: QuantizedTensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return packed tensors by name and metadata of JSON values (format version, shape, terms)."""
    tensors: dict[str, Tensor] = {}
    terms: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for term in q.terms:
        kind = "codes" if isinstance(term, Codes) else term.kind
        number = seen.get(kind, 0)
        seen[kind] = number + 1
        mark = str(number) if number else ""
        prefix = (f"{mark}." if mark else "") if kind == "codes" else f"{kind}{mark}."
        terms.append({"kind": kind, "prefix": prefix, **_save_term(term, prefix, tensors)})
    return tensors, {"format_version": FORMAT_VERSION, "shape": list(q.shape), "terms": terms}


def _save_term(term: Term, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(term, Codes):
        _save_codes(term, prefix, tensors)
        return {"format": str(term.format)}
    if isinstance(term, Sparse):
        counts = torch.bincount(term.rows.to(torch.int64), minlength=term.shape[0])
        indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        tensors[prefix + "indptr"] = indptr.to(torch.int32)
        tensors[prefix + "indices"] = term.cols.to(term.index_type)
        tensors[prefix + "values"] = term.values
        return {}
    entry: dict[str, Any] = {"rank": term.rank}
    for side, factor in (("left", term.left), ("right", term.right)):
        if isinstance(factor, Codes):
            _save_codes(factor, f"{prefix}{side}.", tensors)
            entry[side] = str(factor.format)
        else:
            tensors[prefix + side] = factor.contiguous()
            entry[side] = "float"
    return entry


def _save_codes(term: Codes, prefix: str, tensors: dict[str, Tensor]) -> None:
    fmt, bits = term.format, term.format.grid.bits
    parts: dict[str, Tensor | None] = {"codes": pack(term.codes, bits)}
    if fmt.scale.storage != "none":
        parts |= {"scale": term.scale.stored, "scale_outer": term.scale.outer, "scale_offset": term.scale.offset}
    if term.zero is not None and fmt.zero is not None:
        coded = fmt.zero.storage == "code"
        parts["zero"] = pack(term.zero.reshape(1, -1), bits).view(-1) if coded else term.zero
    if term.codebook is not None:
        parts["codebook"] = term.codebook.to(torch.float16)
    if isinstance(fmt.grid, TableGrid) and fmt.grid.custom:
        parts["codebook"] = fmt.grid.levels()
    tensors.update({prefix + name: part.contiguous() for name, part in parts.items() if part is not None})


class _Reader:
    """Hands out the tensors of a mapping once each, with the expected type and shape."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]) -> Tensor:
        if name not in self._left:
            raise InputError(f"the tensor {name!r} is missing; the file is incomplete, quantize again")
        tensor = self._left.pop(name)
        fits = len(shape) == tensor.dim() and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype not in dtypes or not fits:
            wanted = " or ".join(str(dtype) for dtype in dtypes)
            raise InputError(
                f"the tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {wanted} of {shape}"
            )
        return tensor

    def finish(self) -> None:
        if self._left:
            raise InputError(f"unknown tensors {sorted(self._left)}; the file and its metadata do not fit together")


def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> QuantizedTensor:
    """Return the quantized tensor that :func:`to_tensors` wrote; nothing is taken on trust.

    Raises:
        InputError: a missing, unknown or ill-shaped tensor or key, a newer format version.
    """
    shape = _check_meta(meta)
    reader = _Reader(tensors)
    terms = tuple(_load_term(entry, shape, reader) for entry in meta["terms"])
    reader.finish()
    return QuantizedTensor(terms)


def check_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Check what metadata, shapes and types alone can tell; the tensors may be on the meta device.

    Raises:
        InputError: a missing, unknown or ill-shaped tensor or key, a newer format version.
    """
    shape = _check_meta(meta)
    reader = _Reader(tensors)
    for entry in meta["terms"]:
        _check_term(entry, shape, reader)
    reader.finish()


def _check_meta(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Check the metadata itself and return the shape."""
    _check_keys(meta, _META_KEYS, "metadata")
    if meta["format_version"] != FORMAT_VERSION:
        raise InputError(f"format version {meta['format_version']!r} is not {FORMAT_VERSION}; update bitwright")
    shape = meta["shape"]
    if not (isinstance(shape, list | tuple) and len(shape) == 2 and all(_is_size(side) for side in shape)):
        raise InputError(f"the metadata's shape {shape!r} is not [out, in]")
    terms = meta["terms"]
    if not isinstance(terms, list | tuple) or not terms or not all(isinstance(term, Mapping) for term in terms):
        raise InputError("the metadata's terms are not a list of objects")
    return shape[0], shape[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_keys(entry: Mapping[str, Any], valid: set[str], what: str) -> None:
    for key in entry:
        if key not in valid:
            raise InputError(f"unknown key {key!r} in the {what}; {nearest_key(str(key), valid)}")
    missing = sorted(valid - set(entry))
    if missing:
        raise InputError(f"the {what} lacks {missing}; the file is incomplete")


def _term_kind(entry: Mapping[str, Any]) -> str:
    """The kind of a term whose keys are those that this kind has."""
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in _TERM_KEYS:
        raise InputError(f"unknown kind of term {kind!r}; {nearest_key(str(kind), _TERM_KEYS)}")
    _check_keys(entry, _TERM_KEYS[kind], f"{kind} term")
    if kind == "lowrank" and not _is_size(entry["rank"]):
        raise InputError(f"a low-rank term has a rank of at least 1, not {entry['rank']!r}")
    return kind


def _check_term(entry: Mapping[str, Any], shape: tuple[int, int], reader: _Reader) -> None:
    kind, prefix = _term_kind(entry), str(entry["prefix"])
    if kind == "codes":
        _check_coded(parse(str(entry["format"])), shape, prefix, reader)
    elif kind == "sparse":
        reader.take(prefix + "indptr", (torch.int32,), (shape[0] + 1,))
        cols = reader.take(prefix + "indices", (torch.int16, torch.int32), (None,))
        reader.take(prefix + "values", tuple(FLOAT_STORAGE.values()), (cols.numel(),))
    else:
        rank = entry["rank"]
        for side, sides in (("left", (shape[0], rank)), ("right", (rank, shape[1]))):
            if entry[side] == "float":
                reader.take(prefix + side, tuple(FLOAT_STORAGE.values()), sides)
            else:
                _check_coded(parse(str(entry[side])), sides, f"{prefix}{side}.", reader)


def _check_coded(fmt: Format, shape: tuple[int, int], prefix: str, reader: _Reader) -> None:
    fmt.check_shape(shape)
    bits, params = fmt.grid.bits, fmt.granularity.layout(shape).params_shape
    count = params[0] * params[1]
    reader.take(prefix + "codes", (torch.uint8,), (shape[0], packed_columns(shape[1], bits)))
    if fmt.scale.storage != "none":
        reader.take(prefix + "scale", (FLOAT_STORAGE.get(fmt.scale.storage, torch.uint8),), params)
        if fmt.scale.outer is not None:
            offsets = int(fmt.scale.outer.offset)
            reader.take(prefix + "scale_outer", (torch.float32,), (fmt.scale.outer_count(count) - offsets,))
            if offsets:
                reader.take(prefix + "scale_offset", (torch.float32,), (1,))
    if fmt.zero is not None and fmt.zero.storage == "code":
        reader.take(prefix + "zero", (torch.uint8,), (packed_columns(count, bits),))
    elif fmt.zero is not None:
        reader.take(prefix + "zero", (FLOAT_STORAGE[fmt.zero.storage],), params)
    if (book := fmt.codebook_shape(shape)) is not None:
        reader.take(prefix + "codebook", (torch.float16,), book)
    elif isinstance(fmt.grid, TableGrid) and fmt.grid.custom:
        reader.take(prefix + "codebook", (torch.float32,), (len(fmt.grid.values),))


def _load_term(entry: Mapping[str, Any], shape: tuple[int, int], reader: _Reader) -> Term:
    kind, prefix = _term_kind(entry), str(entry["prefix"])
    if kind == "codes":
        return _load_codes(parse(str(entry["format"])), shape, prefix, reader)
    if kind == "sparse":
        return _load_sparse(shape, prefix, reader)
    rank = entry["rank"]
    left = _load_factor(str(entry["left"]), (shape[0], rank), f"{prefix}left", reader)
    return LowRank(left, _load_factor(str(entry["right"]), (rank, shape[1]), f"{prefix}right", reader))


def _load_factor(form: str, shape: tuple[int, int], name: str, reader: _Reader) -> Tensor | Codes:
    if form == "float":
        return reader.take(name, tuple(FLOAT_STORAGE.values()), shape)
    return _load_codes(parse(form), shape, f"{name}.", reader)


def _load_sparse(shape: tuple[int, int], prefix: str, reader: _Reader) -> Sparse:
    indptr = reader.take(prefix + "indptr", (torch.int32,), (shape[0] + 1,)).to(torch.int64)
    cols = reader.take(prefix + "indices", (torch.int16, torch.int32), (None,))
    values = reader.take(prefix + "values", tuple(FLOAT_STORAGE.values()), (cols.numel(),))
    counts = indptr.diff()
    if int(indptr[0]) != 0 or int(indptr[-1]) != cols.numel() or bool((counts < 0).any()):
        raise InputError(f"the row pointers {prefix + 'indptr'!r} do not fit {cols.numel()} entries")
    rows = torch.arange(shape[0], dtype=torch.int32, device=cols.device).repeat_interleave(counts)
    return Sparse(rows, cols.to(torch.int32), values, shape)


def _load_codes(fmt: Format, shape: tuple[int, int], prefix: str, reader: _Reader) -> Codes:
    fmt.check_shape(shape)
    bits = fmt.grid.bits
    params = fmt.granularity.layout(shape).params_shape
    count = params[0] * params[1]
    packed = reader.take(prefix + "codes", (torch.uint8,), (shape[0], packed_columns(shape[1], bits)))
    codes = unpack(packed, bits, shape[1])
    _check_codes(fmt, codes, prefix)
    scale = _load_scale(fmt, params, prefix, reader, codes.device)
    zero = None
    if fmt.zero is not None and fmt.zero.storage == "code":
        stream = reader.take(prefix + "zero", (torch.uint8,), (packed_columns(count, bits),))
        zero = unpack(stream.view(1, -1), bits, count).view(params)
    elif fmt.zero is not None:
        zero = reader.take(prefix + "zero", (FLOAT_STORAGE[fmt.zero.storage],), params)
        _check_finite(zero, prefix + "zero")
    codebook = None
    if (book := fmt.codebook_shape(shape)) is not None:
        codebook = reader.take(prefix + "codebook", (torch.float16,), book)
        _check_finite(codebook, prefix + "codebook")
    elif isinstance(fmt.grid, TableGrid) and fmt.grid.custom:
        levels = reader.take(prefix + "codebook", (torch.float32,), (len(fmt.grid.values),))
        if not torch.equal(levels.cpu(), fmt.grid.levels()):
            raise InputError(f"the levels {prefix + 'codebook'!r} are not those of the format {fmt}")
    return Codes(codes, fmt, scale, zero, codebook)


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"the tensor {name!r} holds NaN or Inf; the file is damaged, quantize again")


def _check_codes(fmt: Format, codes: Tensor, prefix: str) -> None:
    """Refuse codes that name no finite level (tables and narrow integers do not use every pattern)."""
    if fmt.learned or fmt.grid.span > 1:
        # Every pattern of bits names an entry.
        return
    levels = fmt.grid.levels()
    usable = torch.zeros(256, dtype=torch.bool)
    usable[: len(levels)] = torch.isfinite(levels)
    if bool(usable[: len(levels)].all()):
        damaged = int(codes.max()) >= len(levels)
    else:
        used = torch.bincount(codes.reshape(-1).to(torch.int64), minlength=256).cpu() > 0
        damaged = bool((used & ~usable).any())
    if damaged:
        raise InputError(f"{prefix + 'codes'!r} holds a code that {fmt} does not have; the file is damaged")


def _load_scale(fmt: Format, params: tuple[int, int], prefix: str, reader: _Reader, device: torch.device) -> Scale:
    form = fmt.scale
    if form.storage == "none":
        return Scale(torch.empty(0, device=device), torch.ones(params, device=device))
    dtype = FLOAT_STORAGE.get(form.storage, torch.uint8)
    stored = reader.take(prefix + "scale", (dtype,), params)
    outer = offset = None
    if form.outer is not None:
        offsets = int(form.outer.offset)
        blocks = form.outer_count(params[0] * params[1]) - offsets
        outer = reader.take(prefix + "scale_outer", (torch.float32,), (blocks,))
        if offsets:
            offset = reader.take(prefix + "scale_offset", (torch.float32,), (1,))
    return load(form, stored, fmt.step_exponent, outer, offset)
