"""GGUF beside the gguf package: sizes of blocks, values of random blocks, and files that it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitwright.interop.gguf import READABLE, TYPES, dequantize, read_gguf

gguf = pytest.importorskip("gguf")

INTEGERS = ("F64", "I8", "I16", "I32", "I64")


def test_sizes_of_blocks() -> None:
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: (kind.values, kind.bytes) for number, kind in TYPES.items()}.items() <= known.items()
    # Types of inputs within an engine are in no file.
    assert {gguf.GGMLQuantizationType(n).name for n in set(known) - set(TYPES)} == {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("name", [name for name in READABLE if name not in INTEGERS])
def test_random_blocks_have_the_same_values(name: str) -> None:
    kind = next(k for k in TYPES.values() if k.name == name)
    raw = np.random.default_rng(kind.number).integers(0, 256, (200, kind.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.number)).astype(np.float32)
    found = dequantize(raw.reshape(-1), kind)
    assert np.array_equal(found.view(np.uint32), expected.reshape(-1).view(np.uint32))


def test_a_file_that_the_package_wrote(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    kinds = {k: gguf.GGMLQuantizationType[k] for k in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5])
    writer.add_bool("some.truth", True)
    writer.add_uint64("some.number", 1 << 40)
    packed = {name: gguf.quants.quantize(values, kind) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        writer.add_tensor(name, packed[name], raw_dtype=kind)
    writer.add_tensor("plain", values)
    writer.add_tensor("halves", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "model.gguf")
    assert found.metadata["tokenizer.ggml.tokens"] == ("a", "b", "ü")
    assert found.metadata["some.truth"] is True
    assert found.metadata["some.number"] == 1 << 40
    assert np.array_equal(found.load("plain").numpy(), values)
    assert np.array_equal(found.load("halves").numpy(), values.astype(np.float16).astype(np.float32))
    for name, kind in kinds.items():
        assert np.array_equal(found.load(name).numpy(), gguf.quants.dequantize(packed[name], kind)), name
    read = {t.name: (t.data_offset, t.n_bytes) for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert {n: (t.start, t.bytes) for n, t in found.tensors.items()} == read
