"""Random changes of valid files are accepted or refused with a sentence; nothing else may happen.

Longer runs, also guided by coverage: ``python -m benchmarks.fuzz.run``.
"""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.cli.main import run
from bitwright.errors import InputError
from bitwright.models.header import parse_header
from tests.fault.fuzzing import FORMATS, VALUES, Target, targets
from tests.fault.hostile import bounded
from tests.unit.jobs_toys import save_model, tiny_llama

# How many cases: those that build a network are slow.
CASES = {"config": 15, "native, bytes": 15, "native, header": 20, "native, manifest": 20}
NAMES = (
    "checkpoint, bytes", "checkpoint, header", "index", "config", "native, bytes", "native, header",
    "native, manifest", "ids, safetensors", "ids, npz", "text, jsonl", "gguf", "rules", "format", "request",
    "journal",
)  # fmt: skip


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    place = tmp_path_factory.mktemp("fuzz")
    model = save_model(place / "model", tiny_llama())
    words = ["--recipe", "rtn", "--weights", "int4 g16 asym", "--no-verify", "--out", str(place / "native")]
    assert run(["quantize", str(model), *words]) == 0
    found = targets(place, model, place / "native")
    assert tuple(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_accepted_or_refused(name: str, chosen: Mapping[str, Target], tmp_path: Path) -> None:
    """In a forked child that may add 1 GiB, so that neither a crash nor an absurd allocation passes."""
    target = chosen[name]
    folder = Path(shutil.copytree(target.folder, tmp_path / "work"))
    valid = target.valid()
    assert target.outcome(valid, folder) == "accepted"

    @settings(max_examples=CASES.get(name, 40))
    @given(st.randoms(use_true_random=False))
    def changed(random: Random) -> None:
        said = target.outcome(target.mutate(valid, random), folder)
        assert said == "accepted" or (len(said) < 6000 and "Traceback" not in said)

    def work() -> int:
        changed()
        return 0

    assert bounded(work, 2**30) == 0


_WORDS = [*" ".join(FORMATS).split(), "g999999999", "int9", "pot8", "=", "clip=nan"]
_JSON = st.recursive(
    st.sampled_from([value for value in VALUES if not isinstance(value, dict | list)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=300) | st.text(alphabet='{}[]":,0123456789.eEtrufalsn\\x ', max_size=300).map(str.encode))
def test_any_text_as_a_header_takes_little_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        parse_header(raw, 8 + len(raw), "fuzz")
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


@given(st.lists(st.sampled_from(_WORDS), max_size=4))
def test_any_words_as_a_format(words: list[str]) -> None:
    from bitwright.formats import parse

    try:
        fmt = parse(" ".join(words))
    except InputError:
        return
    assert parse(str(fmt)) == fmt


@given(_JSON)
def test_any_value_as_a_manifest(value: object) -> None:
    from bitwright.runtime.manifest import read_manifest

    head = {"quant_method": "bitwright", "format_version": 1}
    for key in ("modules", "removed", "kv_cache", "experts", "recipe"):
        for raw in ({**head, key: value}, {**head, key: {"a": value}}, value):
            with suppress(InputError):
                read_manifest(raw)  # type: ignore[arg-type]
