"""No function of one instruction set can be taken for another's by the linker.

Templates and inline functions that are not inlined become weak symbols; the linker keeps one of equal names, perhaps
one compiled for a processor that is not there. Kernels therefore live in a namespace of their instruction set, and
nothing else may come out of their object files.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILDS = Path(__file__).parents[2] / "build"
FOLDER = re.compile(r"kernels_(\w+)\.dir$")
# What a symbol is: U is asked for, not brought; lower-case letters are local, except the weak v and w.
LINE = re.compile(r"^\s*(?:[0-9a-f]+\s+)?(?P<kind>[A-Za-z])\s+(?P<name>.+)$")


def foreign(lines: list[str], name: str) -> list[str]:
    """Symbols that the objects of instruction set ``name`` bring without its namespace in their name."""
    found = []
    for line in lines:
        match = LINE.match(line)
        if match is None or match["kind"] == "U" or (match["kind"].islower() and match["kind"] not in "vwu"):
            continue
        # Personality routines and the like are data that the compiler itself shares between objects.
        if f"bw::{name}::" not in match["name"] and not match["name"].startswith("DW.ref."):
            found.append(match["name"])
    return found


def optimized(folder: Path) -> bool:
    """Whether the build is one that ships; without optimization, as in the sanitizers' builds, nothing is inlined."""
    caches = [parent / "CMakeCache.txt" for parent in folder.parents if (parent / "CMakeCache.txt").is_file()]
    return not caches or re.search(r"^BITWRIGHT_SANITIZE:STRING=.", caches[0].read_text(), re.MULTILINE) is None


def object_folders() -> list[Path]:
    found = (path for path in BUILDS.rglob("kernels_*.dir") if FOLDER.search(path.name) and any(path.rglob("*.o")))
    return sorted(path for path in found if optimized(path))


def test_every_kernel_is_looked_at() -> None:
    """The sources are found by their folder, so a new file is compiled for, and looked at in, every instruction set."""
    sources = list((BUILDS.parent / "native" / "kernels").glob("*.cpp"))
    newest = max(path.stat().st_mtime for path in sources)
    objects = {folder: list(folder.rglob("kernels/*.o")) for folder in object_folders()}
    current = {folder: found for folder, found in objects.items() if max(map(_written, found), default=0) > newest}
    if not current:
        pytest.skip("no build here is newer than the sources; `make native` makes one")
    for folder, found in current.items():
        assert {path.name.removesuffix(".o") for path in found} >= {path.name for path in sources}, folder


def _written(path: Path) -> float:
    return path.stat().st_mtime


def test_objects_bring_symbols_of_their_own_namespace_only() -> None:
    folders = object_folders()
    if not folders or shutil.which("nm") is None:
        pytest.skip("there are no object files here; `make native` leaves them in build/")
    for folder in folders:
        match = FOLDER.search(folder.name)
        assert match is not None
        objects = [str(path) for path in folder.rglob("*.o")]
        shown = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout
        found = foreign(shown.splitlines(), match[1])
        assert not found, f"{folder}: {sorted(set(found))[:10]}"


def test_what_counts_as_foreign() -> None:
    lines = [
        "file.cpp.o:",
        "0000000000000000 W void bw::parallel_for<bw::avx2::pack()::{lambda(long)#1}>(int, long)",
        "0000000000000000 W float const& std::max<float>(float const&, float const&)",
        "0000000000000000 W bw::Weight::tiles() const",
        "                 U memcpy",
        "0000000000000010 t bw::helper(int)",
        "                 w pthread_once",
        "0000000000000000 T bw::avx2::table()",
    ]
    assert foreign(lines, "avx2") == [
        "float const& std::max<float>(float const&, float const&)", "bw::Weight::tiles() const", "pthread_once",
    ]  # fmt: skip
