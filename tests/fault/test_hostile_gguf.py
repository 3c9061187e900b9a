"""GGUF files that lie: each is refused with one sentence, before anything of the size that it names is made."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.cli.main import run
from bitwright.errors import InputError
from bitwright.interop.gguf import read_gguf
from tests.unit.gguf_writer import Wanted, array, info, pair, text, valid

HUGE = struct.pack("<Q", 1 << 60)


def _deep(levels: int) -> bytes:
    value = array(0, 1, b"\1")
    for _ in range(levels):
        value = array(9, 1, value)
    return value


def _with(**changes: object) -> Callable[[], bytes]:
    return lambda: Wanted(**changes).bytes()  # type: ignore[arg-type]


def _key(kind: int, value: bytes, key: str | bytes = "key") -> Callable[[], bytes]:
    return _with(pairs=[pair(key, kind, value)])


def _tensor(*entries: bytes, data: bytes = bytes(4096)) -> Callable[[], bytes]:
    return _with(infos=list(entries), data=data)


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the magic wants 4 bytes"),
    "magic": (_with(magic=b"GGML"), "does not begin as GGUF files do"),
    "version 1": (_with(version=1), "it has version 1 and 2 and 3 are read"),
    "big-endian": (_with(version=3 << 24), "big-endian machine"),
    "counts of tensors": (_with(counts=(1 << 63, 0)), r"holds 9,223,372,036,854,775,808 tensors"),
    "counts of keys": (_with(counts=(0, 1 << 40)), r"holds 1,099,511,627,776 keys"),
    "one tensor too many": (_with(counts=(1, 0)), "holds 1 tensors, which cannot be in"),
    "cut in the counts": (lambda: Wanted().bytes()[:20], "the number of keys wants 8 bytes"),
    "cut in a key": (lambda: Wanted(pairs=[pair("k" * 40, 0, b"\1")]).bytes()[:60], "a key wants 40 bytes"),
    "cut in a tensor": (lambda: valid().bytes()[:-110], "wants 8 bytes|ends at byte"),
    "length of a key": (_with(pairs=[HUGE + b"k" * 40]), "a key says that it has"),
    "length of a string": (_key(8, HUGE + b"abc"), "key 'key' says that it has"),
    "length in reach of no file": (_key(8, struct.pack("<Q", 1000) + b"abc"), "wants 1,000 bytes"),
    "no UTF-8": (_key(8, text(b"\xff\xfe")), "key 'key' is not UTF-8"),
    "key of no UTF-8": (_key(0, b"\1", b"\xff"), "a key is not UTF-8"),
    "empty key": (_key(0, b"\1\0", ""), "a key is empty"),
    "key twice": (_with(pairs=[pair("a", 0, b"\1"), pair("a", 0, b"\2")]), "two keys are called 'a'"),
    "value type": (_key(13, bytes(8)), "unknown value type 13"),
    "truth": (_key(7, b"\2"), "a truth value of 2"),
    "truths": (_key(9, array(7, 2, b"\0\2")), "truth values other than 0 and 1"),
    "length of an array": (_key(9, struct.pack("<I", 4) + HUGE), "numbers of key 'key'"),
    "length of strings": (_key(9, struct.pack("<I", 8) + HUGE), "items of key 'key'"),
    "array of unknown": (_key(9, array(77, 1, bytes(8))), "array of the unknown value type 77"),
    "deep arrays": (_key(9, _deep(4)), "an array within more than 4 arrays"),
    "very deep arrays": (_key(9, struct.pack("<IQ", 9, 1) * 100_000), "an array within more than 4 arrays"),
    "alignment 0": (_with(pairs=[pair("general.alignment", 4, bytes(4))]), "has to be a power of two"),
    "alignment 24": (_with(pairs=[pair("general.alignment", 4, struct.pack("<I", 24))]), "general.alignment is 24"),
    "alignment text": (_with(pairs=[pair("general.alignment", 8, text("32"))]), "general.alignment is '32'"),
    "alignment truth": (_with(pairs=[pair("general.alignment", 7, b"\1")]), "general.alignment is True"),
    "unknown type": (_tensor(info("a", (32,), 99, 0)), "tensor 'a' has the unknown type 99"),
    "type of inputs": (_tensor(info("a", (32,), 9, 0)), "tensor 'a' has the unknown type 9"),
    "no name": (_tensor(info("", (32, 1), 0, 0)), "a tensor has no name"),
    "name twice": (_tensor(info("a", (4,), 0, 0), info("a", (4,), 0, 32)), "two tensors are called 'a'"),
    "long name": (_tensor(info("a" * 2000, (4,), 0, 0)), "says that it has 2,000 bytes"),
    "no dimensions": (_tensor(info("aaaaaaaaaa", (), 0, 0)), "has 0 dimensions"),
    "many dimensions": (_tensor(text("a") + struct.pack("<I", 1 << 31) + bytes(64)), "has 2,147,483,648 dimensions"),
    "side of zero": (_tensor(info("a", (4, 0), 0, 0)), r"has the shape \[4, 0\]"),
    "absurd shape": (_tensor(info("a", (1 << 40, 1 << 40), 0, 0)), "has the shape"),
    "shape that wraps": (_tensor(info("a", (1 << 32, 1 << 32), 24, 0)), "has the shape"),
    "large shape": (_tensor(info("a", (1 << 40,), 0, 0)), "ends at byte 4,398,046,"),
    "row of no block": (_tensor(info("a", (48,), 2, 0)), "rows of 48 and Q4_0 comes in blocks of 32"),
    "offset outside": (_tensor(info("a", (4,), 0, 1 << 62)), "ends at byte"),
    "offset that wraps": (_tensor(info("a", (4,), 0, (1 << 64) - 32)), "ends at byte"),
    "offset not aligned": (_tensor(info("a", (4,), 0, 4)), "begins at 4, which is no multiple of 32"),
    "end outside": (_tensor(info("a", (4,), 0, 0), data=bytes(12)), "ends at byte"),
    "overlap": (_tensor(info("a", (16,), 0, 32), info("b", (16,), 0, 64)), "tensors 'a' and 'b' share bytes"),
    "same bytes": (_tensor(info("a", (4,), 0, 0), info("b", (4,), 0, 0)), "share bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_lie_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, why = CASES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=why) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("download or convert the file again")


def test_the_command_line_says_it_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CASES["overlap"][0]())
    assert run(["inspect", str(path)]) == 2
    assert "share bytes" in capsys.readouterr().err
    path.write_bytes(b"")
    assert run(["inspect", str(path)]) == 2


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_behind_the_counts(raw: bytes, keys: bool) -> None:
    with TemporaryDirectory() as folder, suppress(InputError):
        path = Path(folder) / "model.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0 if keys else 1, 1 if keys else 0) + raw)
        read_gguf(path)
